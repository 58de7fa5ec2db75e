"""`--lora` on the command line: what is kept, what is said, what is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from jano_dist import load_config
from jano_dist.config import notes_on_skipping
from jano_dist.models import model_digest
from tests.cli.sentence import BALL, assert_sentence
from tests.lora import write_lora
from tests.parity.diffusers_pipeline import wan_tiny_pipeline


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    return write_lora(tmp_path_factory.mktemp("lora"), wan_tiny_pipeline().transformer, seed=1)


def changed(lora, path, change):
    """A copy of a LoRA whose weights went through `change`."""
    save_file({key: value.contiguous() for key, value in change(load_file(lora)).items()}, path)


def test_it_is_noted_and_changes_the_video(cli, small, tmp_path, lora):
    out, options = tmp_path / "run", ["--config", small, "--policy", "full", "--frames", 1, "--save-latents"]
    for name, given in (("with", ["--lora", f"{lora}:0.5"]), ("without", [])):
        made = cli("generate", BALL, "--out", out / name, *options, *given)
        assert made.code == 0, made.err
    record = json.loads((out / "with" / "run.json").read_text())
    assert record["config"]["model"]["lora"] == [f"{lora}:0.5"]
    a, b = (load_file(out / name / "latents.safetensors")["latents"] for name in ("with", "without"))
    assert (a - b).abs().max() > 0.1


def test_a_check_looks_at_it(cli, small, tmp_path, lora):
    options = ["--config", small, "--out", tmp_path / "run", "--check"]
    assert cli("generate", BALL, *options, "--lora", lora).code == 0
    assert_sentence(
        cli("generate", BALL, *options, "--lora", "no.safetensors"), "no.safetensors does not exist"
    )


def test_digests_tell_them_apart(lora, tmp_path):
    """Another LoRA, its place in the list, another file of the same name; but not the scale, which is
    the config's."""
    other = tmp_path / lora.name
    changed(lora, other, lambda weights: {key: value + 1 for key, value in weights.items()})
    a, b = (str(lora), 1.0), (str(other), 1.0)
    lists = ([], [a], [b], [a, b], [b, a])
    assert len({model_digest("wan-tiny", each) for each in lists}) == len(lists)
    assert model_digest("wan-tiny", [a]) == model_digest("wan-tiny", [(str(lora), 0.5)])


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a.safetensors", 1.0), ("a.safetensors:0.5", 0.5), ("a.safetensors:-1", -1.0), ("o/a:2e-1", 0.2)],
)
def test_scales(text, expected):
    config = load_config("wan-tiny", overrides={"model.lora": text})
    assert config.model.lora == (text,)
    assert config.model.loras == ((text.partition(":")[0], expected),)


NOTES = {
    "few": ({"sampling.steps": 8, "policy.warmup": 3}, "8 steps leave policy jano little to skip"),
    "distilled": ({"model.lora": "a/Wan_LightX2V_r32.safetensors"}, "Wan_LightX2V_r32.safetensors seems"),
    "full": ({"policy.name": "full", "sampling.steps": 4, "model.lora": "lcm.safetensors"}, None),
    "many": ({"sampling.steps": 30, "model.lora": "lcm/style.safetensors"}, None),
}


@pytest.mark.parametrize("case", NOTES)
def test_notes(case):
    overrides, words = NOTES[case]
    notes = notes_on_skipping(load_config("wan-tiny", overrides=overrides))
    assert len(notes) == (words is not None)
    assert all(words in note and "--policy full" in note for note in notes)


def test_a_note_is_said(cli, small, tmp_path):
    steps = ["--steps", 8, "--frames", 1]
    made = cli("generate", BALL, "--out", tmp_path / "run", "--config", small, *steps)
    assert made.code == 0
    assert "8 steps leave policy jano little to skip: consider --policy full" in made.out + made.err


def one_key_more(weights):
    more = {key.replace("blocks.0", "blocks.99"): value.clone() for key, value in weights.items()}
    return {**weights, **more}


def wider(weights):
    return {
        key: torch.cat([value] * 2, dim=1) if "lora_A" in key else value for key, value in weights.items()
    }


# What is done to a good LoRA -> words of the sentence.
UNFIT = {
    "another_model": (one_key_more, ["for another model", "blocks.99.", "for this model"]),
    "other_sizes": (wider, ["for another model", "channels where this one has", "for this model"]),
    "another_part": (
        lambda weights: {f"unet.{key}": value for key, value in weights.items()},
        ["holds weights such as unet.", "WanTransformer3DModel's", "for this model"],
    ),
    "nothing": (lambda weights: {}, ["holds no weights", "for this model"]),
    "no_lora": (lambda weights: {"transformer.scale_shift_table": torch.ones(2)}, ["no LoRA's weight"]),
    "unknown_format": (lambda weights: {"diffusion_model.x": torch.ones(2)}, ["cannot be used with"]),
    "dora": (
        lambda weights: {**weights, "transformer.blocks.0.attn1.to_q.dora_scale": torch.ones(2)},
        ["is a DoRA", "plain LoRA"],
    ),
    "not_finite": (lambda weights: {k: v * float("nan") for k, v in weights.items()}, ["cannot be used"]),
}  # fmt: skip


@pytest.mark.parametrize("case", UNFIT)
def test_what_does_not_fit(cli, unchanged, small, tmp_path, lora, case):
    change, words = UNFIT[case]
    changed(lora, tmp_path / "bad.safetensors", change)
    with unchanged(tmp_path):
        result = cli(
            "generate",
            BALL,
            "--out",
            tmp_path / "run",
            "--config",
            small,
            "--lora",
            tmp_path / "bad.safetensors",
        )
    assert_sentence(result, "LoRA", "bad.safetensors", *words)
    assert case == "not_finite" or "load" not in result.out.splitlines()  # said before anything is read


# --lora -> words of the sentence.
BAD = {
    "missing": ("no.safetensors", ["LoRA no.safetensors does not exist", "give a .safetensors file"]),
    "no_such_name": ("nobody/nothing", ["nobody/nothing is neither a file here nor", "check the name"]),
    "torn": ("{folder}/torn.safetensors", ["torn.safetensors", "fetch it again"]),
    "pickled": ("{folder}/old.bin", ["old.bin is no .safetensors file", "give one"]),
    "empty_folder": ("{folder}/empty", ["holds 0 .safetensors files", "give the file itself"]),
    "words_as_scale": ("a.safetensors:much", ["'a.safetensors:much' is not FILE or", "a.safetensors:0.8"]),
    "no_scale": ("a.safetensors:", ["'a.safetensors:' is not FILE or", "a.safetensors:0.8"]),
    "infinite": ("a.safetensors:inf", ["is not FILE or", "a.safetensors:0.8"]),
    "no_file": (":1", ["':1' is not FILE or", "style.safetensors:0.8"]),
    "empty": ("", ["'' is not FILE or", "style.safetensors:0.8"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(cli, unchanged, small, tmp_path, lora, case):
    name, words = BAD[case]
    (tmp_path / "torn.safetensors").write_bytes(lora.read_bytes()[:-8])
    (tmp_path / "old.bin").write_bytes(b"pickle")
    (tmp_path / "empty").mkdir()
    with unchanged(tmp_path):
        result = cli(
            "generate",
            BALL,
            "--out",
            tmp_path / "run",
            "--config",
            small,
            "--lora",
            name.format(folder=tmp_path),
        )
    assert_sentence(result, *words)
