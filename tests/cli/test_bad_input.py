"""Bad input: one sentence on stderr that says what is wrong and what to do, exit code 2, nothing written."""

import json
import os
import subprocess
import sys

import pytest
from safetensors.torch import load, save

from jano_dist import target
from tests.cli.sentence import BALL, assert_sentence


def settings(*pairs):
    """The `--set` options for some `key=value` pairs."""
    return [option for pair in pairs for option in ("--set", pair)]


# id -> options of `generate`, and what its sentence holds: first what is wrong, then what to do.
OPTIONS = {
    # Config keys and names.
    "unknown_key": (
        settings("sampling.stepz=3"),
        ["unknown key 'sampling.stepz'", "did you mean 'sampling.steps'?", "correct or remove"],
    ),
    "unknown_nested_key": (
        settings("policy.enhance.strenght=1"),
        ["unknown key 'policy.enhance.strenght'", "did you mean 'policy.enhance.strength'?", "correct"],
    ),
    "unknown_section": (settings("vidoe.frames=5"), ["unknown key 'vidoe'", "did you mean 'video'?"]),
    "key_without_section": (
        settings("warmup=3"),
        ["unknown key 'warmup'", "did you mean 'policy.warmup'?"],
    ),
    "key_like_nothing": (settings("zzz.qqq=3"), ["unknown key 'zzz': correct or remove"]),
    "key_named_like_a_policy": (settings("full=3"), ["unknown key 'full'"]),
    "key_of_another_policy": (
        ["--policy", "full", *settings("policy.warmup=3")],
        ["unknown key 'policy.warmup'", "correct or remove"],
    ),
    "set_without_equals": (
        settings("sampling.steps"),
        ["'sampling.steps' is not of the form key=value", "write"],
    ),
    "set_without_key": (settings("=3"), ["'=3' is not of the form key=value", "write"]),
    "set_invalid_yaml": (settings("sampling.steps=["), ["'sampling.steps=['", "not valid YAML", "put"]),
    "wrong_type": (settings("sampling.steps=abc"), ["sampling.steps should be a valid integer, not 'abc'"]),
    "wrong_choice": (settings("model.dtype=int8"), ["model.dtype should be 'auto', 'float32'", "not 'int8'"]),
    "not_finite": (settings("sampling.guidance=.inf"), ["sampling.guidance should be a finite number"]),
    "value_for_a_section": (settings("video=3"), ["video is a section, not 3", "set one of the keys"]),
    "value_for_the_policy": (settings("policy=full"), ["policy is a section, not 'full'", "set one"]),
    "section_for_a_value": (settings("sampling.steps.x=3"), ["sampling.steps should be a valid integer"]),
    "two_faults": (
        ["--policy", "janno", *settings("sampling.stepz=3")],
        ["did you mean 'sampling.steps'?"],
    ),
    "unknown_config": (
        ["--config", "wan-tinny"],
        ["there is no config 'wan-tinny'", "did you mean 'wan-tiny'?", "choose one of", "wan-tiny"],
    ),
    "policy_of_no_name": (settings("policy={}"), ["policy has no name", "choose one of full, jano"]),
    "block_that_is_no_list": (settings("policy.block=3"), ["policy.block should be a list such as [1, 4"]),
    "empty_preset": (["--preset", ""], ["has no preset ''", "choose one of", "balanced"]),
    "key_that_is_no_text": (settings("\udcff=1"), ["key", "correct or remove"]),
    "long_config": (["--config", "x" * 300], ["there is no config", "choose one of"]),
    "long_config_file": (["--config", "x" * 300 + ".yaml"], ["does not exist", "give a file"]),
    "long_model": (["--model", "x" * 300], ["there is no model folder", "give wan-tiny"]),
    "unknown_config_file": (["--config", "no.yaml"], ["no.yaml does not exist", "give", "wan-tiny"]),
    "unknown_preset": (
        ["--preset", "fats"],
        ["has no preset 'fats'", "did you mean 'fast'?", "choose one of", "balanced"],
    ),
    "unknown_policy": (
        ["--policy", "janno"],
        ["there is no policy 'janno'", "did you mean 'jano'?", "choose one of full, jano"],
    ),
    # The video and the steps.
    "frames_not_4n_plus_1": (["--frames", "6"], ["must be 4n+1, not 6", "use --frames 5 or --frames 9"]),
    "no_frames": (["--frames", "0"], ["video.frames should be greater than or equal to 1, not 0"]),
    "height_not_divisible": (
        ["--height", "60"],
        ["height must be divisible by 16 (VAE stride 8 x patch 2), not 60", "use --height 48 or --height 64"],
    ),
    "width_not_divisible": (
        ["--width", "72"],
        ["width must be divisible by 16", "not 72", "use --width 64 or --width 80"],
    ),
    "width_below_the_stride": (["--width", "8"], ["width must be divisible by 16", "use --width 16"]),
    "negative_height": (["--height", "-64"], ["video.height should be greater than or equal to 1, not -64"]),
    "negative_seed": (["--seed", "-1"], ["sampling.seed should be greater than or equal to 0, not -1"]),
    "no_integer": (settings("sampling.seed=true"), ["sampling.seed should be a valid integer, not True"]),
    "no_whole_number": (settings("video.frames=5.5"), ["video.frames should be a valid integer, not 5.5"]),
    "no_number": (settings("sampling.guidance=true"), ["sampling.guidance should be a valid number"]),
    "no_degree": (settings("mesh.cfg=true"), ["mesh.cfg should be a valid integer, not True"]),
    "no_edge": (settings("policy.block=[1,true,4]"), ["policy.block.1 should be a valid integer, not True"]),
    "no_text": (settings("sampling.negative_prompt=5"), ["negative_prompt should be a valid string"]),
    "too_fast": (settings("video.fps=100000"), ["video.fps should be less than or equal to 240, not 100000"]),
    "too_many_steps": (["--steps", "1001"], ["sampling.steps should be less than or equal to 1000"]),
    "too_patient": (settings("runtime.timeout_seconds=1.0e+300"), ["timeout_seconds should be less than"]),
    "seed_too_large": (["--seed", str(2**64)], ["sampling.seed should be less than", "not 1844"]),
    "steps_not_above_warmup_and_cooldown": (
        ["--steps", "6", *settings("policy.warmup=4", "policy.cooldown=2")],
        ["6 steps leave nothing between 4 warm-up and 2 cool-down steps", "lower", "--policy full"],
    ),
    "one_step": (["--steps", "1"], ["1 step leaves nothing between 4 warm-up", "use more"]),
    "no_steps": (["--steps", "0"], ["sampling.steps should be greater than or equal to 1, not 0"]),
    "thresholds_out_of_order": (
        settings("policy.static_threshold=0.6", "policy.moderate_threshold=0.5"),
        ["policy.static_threshold 0.6 is above policy.moderate_threshold 0.5", "give them in order"],
    ),
    "threshold_above_1": (
        settings("policy.moderate_threshold=1.5"),
        ["policy.moderate_threshold should be less than or equal to 1, not 1.5", "correct"],
    ),
    "threshold_below_0": (
        settings("policy.static_threshold=-0.1"),
        ["policy.static_threshold should be greater than or equal to 0, not -0.1", "correct"],
    ),
    "block_larger_than_the_latent": (
        settings("policy.block=[1,40,4]"),
        ["block of (1, 40, 4) does not fit in a latent of (2, 8, 8)", "choose a smaller policy.block"],
    ),
    "block_of_nothing": (settings("policy.block=[1,0,4]"), ["policy.block.1 should be greater than"]),
    "block_with_two_edges": (settings("policy.block=[4,4]"), ["policy.block.2 is missing", "add it"]),
    "block_with_four_edges": (settings("policy.block=[1,1,4,4]"), ["policy.block has 4 values", "give 3"]),
    # The model and the machine.
    "model_without_a_name": (["--model", ""], ["the model has no name", "give wan-tiny"]),
    "model_below_the_shipped": (["--model", "wan-tiny/vae/x"], ["no model folder 'wan-tiny/vae/x'", "give"]),
    "config_without_a_name": (["--config", ""], ["the config has no name", "choose one of", "wan-tiny"]),
    "unknown_model": (["--model", "wan-huge"], ["there is no model folder 'wan-huge'", "give wan-tiny"]),
    "unknown_model_folder": (["--model", "/no/such/folder"], ["no model folder '/no/such/folder'", "give"]),
    "unknown_hub_name": (
        ["--model", "nobody-at-all/nothing"],
        ["'nobody-at-all/nothing' is neither a folder here nor", "check the name and the network"],
    ),
    "unknown_kernel": (
        settings("attention.backend=flash"),
        ["attention.backend should be auto, torch, cudnn", "or xfuser:NAME, not 'flash'", "correct it"],
    ),
    "unknown_kernel_of_xfuser": (
        settings("attention.backend=xfuser:flash_9"),
        ["there is no attention.backend xfuser:FLASH_9", "choose auto, torch", "FLASH_3"],
    ),
    "kernel_of_a_gpu": (
        settings("attention.backend=cudnn", "runtime.device=cpu"),
        ["attention.backend cudnn cannot be used here", "it needs a GPU", "set it to auto"],
    ),
    # The command line itself.
    "unknown_option": (["--frame", "5"], ["No such option: --frame", "--frames", "see `jano-dist generate"]),
    "option_of_wrong_type": (["--steps", "many"], ["--steps", "valid integer", "see `jano-dist generate"]),
    "empty_out": (["--out", ""], ["--out", "it is empty", "give a path", "see `jano-dist generate"]),
    "two_prompts": (["a blue ball"], ["unexpected extra argument", "a blue ball", "see `jano-dist"]),
}  # fmt: skip


@pytest.mark.parametrize(("options", "words"), OPTIONS.values(), ids=OPTIONS)
def test_bad_option(cli, unchanged, tmp_path, small, options, words):
    with unchanged(tmp_path):
        result = cli("generate", BALL, "--out", tmp_path / "new" / "run", "--config", small, *options)
        check = cli(
            "generate", BALL, "--out", tmp_path / "new" / "run", "--config", small, "--check", *options
        )
    assert_sentence(result, *words)
    assert result.out == ""
    assert check == result


@pytest.mark.parametrize("prompt", ["", "  \n\t "])
def test_empty_prompt(cli, unchanged, tmp_path, prompt):
    with unchanged(tmp_path):
        result = cli("generate", prompt, "--out", tmp_path / "run")
    assert_sentence(result, "the prompt is empty", "say what the video shows")


@pytest.mark.parametrize("prompt", ["a \udcff ball", "\ud83d"])
def test_prompt_that_is_no_utf8(cli, unchanged, tmp_path, small, prompt):
    """`$'a \\xff ball'` in a shell."""
    with unchanged(tmp_path):
        result = cli("generate", prompt, "--out", tmp_path / "run", "--config", small)
    assert_sentence(result, "the prompt ", "is not valid UTF-8", "type it anew")


@pytest.mark.parametrize("prompt", ["-a red ball", "--a red ball", "-o my"])
def test_prompt_that_begins_with_a_dash(cli, unchanged, tmp_path, prompt):
    with unchanged(tmp_path):
        result = cli("generate", prompt, "--out", tmp_path / "run")
    assert_sentence(result, f"{prompt!r} begins with a dash", "put -- before it")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "--out", "run"], ["Missing argument", "prompt", "see `jano-dist generate --help`"]),
        (["generate", BALL], ["Missing option '--out'", "see `jano-dist generate --help`"]),
        (["generat", BALL, "--out", "run"], ["No such command 'generat'", "see `jano-dist --help`"]),
        (["compare", "a"], ["Missing argument", "see `jano-dist compare --help`"]),
        (["--frames", "5"], ["No such option: --frames", "see `jano-dist --help`"]),
    ],
    ids=["no_prompt", "no_out", "unknown_command", "one_video", "no_command"],
)
def test_incomplete_command_line(cli, unchanged, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    with unchanged(tmp_path):
        result = cli(*arguments)
    assert_sentence(result, *words)


MODEL_AND_VIDEO = "model: {name: a}, video: {frames: 5, height: 64, width: 64}"

# id -> a config file, and what the sentence about it holds.
CONFIG_FILES = {
    "not_yaml": ("model: [", ["is not valid YAML", "correct the file"]),
    "binary": (b"\xff\xfe\x00", ["is not valid YAML", "correct the file"]),
    "no_settings": ("- 1", ["holds no settings", "write at least"]),
    "empty": ("", ["holds no settings", "write at least"]),
    "no_video": ("model: {name: wan-tiny}", ["video is missing", "add it"]),
    "no_width": (
        "{model: {name: wan-tiny}, video: {frames: 5, height: 64}}",
        ["video.width is missing", "add it"],
    ),
    "policy_is_a_word": ("{model: {name: a}, policy: jano}", ["policy is a section, not 'jano'", "write"]),
    "key_is_a_number": (f"{{{MODEL_AND_VIDEO}, 1: 2}}", ["1", "correct"]),
    "own_preset_unknown": ("{preset: slow, presets: {fast: {}}}", ["no preset 'slow'", "choose one of fast"]),
    "preset_without_presets": ("{preset: fast}", ["has no presets", "add it to the file"]),
    "presets_are_a_list": ("{preset: fast, presets: [fast]}", ["presets must hold rows", "correct the file"]),
    "unknown_key_in_a_preset": (
        f"{{{MODEL_AND_VIDEO}, preset: fast, presets: {{fast: {{static_treshold: 0.1}}}}}}",
        ["unknown key 'policy.static_treshold'", "did you mean 'policy.static_threshold'?"],
    ),
}


@pytest.mark.parametrize(("content", "words"), CONFIG_FILES.values(), ids=CONFIG_FILES)
def test_bad_config_file(cli, unchanged, tmp_path, content, words):
    file = tmp_path / "mine.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with unchanged(tmp_path):
        result = cli("generate", BALL, "--out", tmp_path / "run", "--config", file)
    assert_sentence(result, "mine.yaml" if words[0] != "policy is a section, not 'jano'" else "", *words)


INDEX = "diffusion_pytorch_model.safetensors.index.json"


def lose(component):
    """Delete a component's weights."""

    def damage(model):
        model.weights(component).unlink()

    return damage


def cut(component, keep):
    """Keep the first `keep` bytes of a component's weights (all but the last, if negative)."""

    def damage(model):
        file = model.weights(component)
        model.write(file, file.read_bytes()[:keep])

    return damage


def lack(component):
    """Take the last tensor out of a component's weights; the file itself is whole."""

    def damage(model):
        file = model.weights(component)
        tensors = load(file.read_bytes())
        del tensors[max(tensors)]
        model.write(file, save(tensors))

    return damage


def text(path, content):
    """Give a small file this content; None deletes it."""

    def damage(model):
        if content is None:
            (model.folder / path).unlink()
        else:
            model.write(model.folder / path, content)

    return damage


def setting(path, **changes):
    """Change some keys of a JSON file."""

    def damage(model):
        file = model.folder / path
        model.write(file, json.dumps({**json.loads(file.read_text()), **changes}))

    return damage


def shards(missing):
    """Cut the transformer's weights in two files with an index, and delete the second if asked."""

    def damage(model):
        file = model.weights("transformer")
        tensors = load(file.read_bytes())
        names = sorted(tensors)
        parts = {"one.safetensors": names[:9], "two.safetensors": names[9:]}
        file.unlink()
        for part, held in parts.items():
            model.write(file.parent / part, save({name: tensors[name] for name in held}))
        where = {name: part for part, held in parts.items() for name in held}
        model.write(file.parent / INDEX, json.dumps({"metadata": {}, "weight_map": where}))
        if missing:
            (file.parent / "two.safetensors").unlink()

    return damage


def lose_folder(name):
    def damage(model):
        for file in (model.folder / name).iterdir():
            file.unlink()
        (model.folder / name).rmdir()

    return damage


def second_expert_missing(model):
    setting("model_index.json", boundary_ratio=0.8)(model)


# id -> what is done to a copy of wan-tiny, and what the sentence about it holds.
MODELS = {
    "transformer_weights_missing": (lose("transformer"), ["transformer holds no .safetensors", "fetch"]),
    "vae_weights_missing": (lose("vae"), ["vae holds no .safetensors weights", "fetch"]),
    "text_encoder_weights_missing": (lose("text_encoder"), ["text_encoder holds no .safetensors", "fetch"]),
    "shard_missing": (shards(missing=True), ["two.safetensors is missing", "fetch it again"]),
    "index_damaged": (text(f"transformer/{INDEX}", "{"), [f"{INDEX} is not valid JSON", "fetch it again"]),
    "index_without_map": (text(f"transformer/{INDEX}", "{}"), [f"{INDEX} is damaged", "fetch it again"]),
    "weights_truncated": (cut("transformer", -1), ["safetensors has", "where its header says", "fetch it"]),
    "weights_truncated_in_the_header": (cut("vae", 100), ["is truncated or not safetensors", "fetch it"]),
    "weights_empty": (cut("text_encoder", 0), ["is truncated or not safetensors (0 bytes)", "fetch it"]),
    "weights_are_a_git_lfs_pointer": (
        text("transformer/diffusion_pytorch_model.safetensors", "version https://git-lfs.github.com/spec/v1\n"),
        ["is truncated or not safetensors", "fetch it again"],
    ),
    "transformer_lacks_a_tensor": (lack("transformer"), ["transformer lacks the weight", "fetch"]),
    "vae_lacks_a_tensor": (lack("vae"), ["vae lacks the weight", "fetch"]),
    "text_encoder_lacks_a_tensor": (lack("text_encoder"), ["text_encoder lacks the weight", "fetch"]),
    "no_model_index": (text("model_index.json", None), ["no model_index.json", "give one that is"]),
    "model_index_damaged": (text("model_index.json", "{"), ["model_index.json is not valid JSON", "fetch"]),
    "another_pipeline": (
        setting("model_index.json", _class_name="SomePipeline"),
        ["holds a SomePipeline, which is not supported: give another model, one of WanPipeline"],
    ),
    "second_expert_missing": (second_expert_missing, ["lacks the second of two experts", "fetch"]),
    "no_tokenizer": (lose_folder("tokenizer"), ["has no folder tokenizer", "fetch"]),
    "no_scheduler": (lose_folder("scheduler"), ["has no folder scheduler", "fetch"]),
    "no_transformer": (lose_folder("transformer"), ["does not load as a diffusers pipeline", "fetch"]),
    "statistics_too_few": (
        setting("vae/config.json", latents_std=[1.0] * 15),
        ["vae/config.json: latents_std is for 15 channels", "latent has 16", "fetch"],
    ),
    "statistics_too_many": (
        setting("vae/config.json", latents_mean=[1.0] * 17),
        ["vae/config.json: latents_mean is for 17 channels", "fetch"],
    ),
    "statistics_no_numbers": (
        setting("vae/config.json", latents_mean=["x"] * 16),
        ["does not load as a diffusers pipeline", "fetch"],
    ),
    "statistics_missing": (setting("vae/config.json", latents_std=None), ["does not load as a", "fetch"]),
    "vae_of_another_latent": (setting("vae/config.json", z_dim=8), ["z_dim is for 8 channels", "fetch"]),
    "no_stride": (setting("vae/config.json", scale_factor_spatial=None), ["does not load", "fetch"]),
    "no_patch": (setting("transformer/config.json", patch_size=None), ["does not load as a diff", "fetch"]),
    "config_damaged": (text("transformer/config.json", "{"), ["transformer/config.json", "fetch"]),
    "config_of_another_size": (
        setting("transformer/config.json", num_layers=99),
        ["transformer lacks the weight blocks.", "more: fetch"],
    ),
    "config_of_another_width": (
        setting("text_encoder/config.json", d_model=24),
        ["text_encoder: weight ", "has shape [", "its config.json asks for [", "fetch"],
    ),
    "tokenizer_damaged": (text("tokenizer/tokenizer.json", "{"), ["does not load as a diff", "fetch"]),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "words"), MODELS.values(), ids=MODELS)
def test_broken_model(cli, unchanged, tmp_path, small, model_copy, damage, words):
    damage(model_copy)
    with unchanged(tmp_path):
        result = cli(
            "generate", BALL, "--out", tmp_path / "run", "--config", small, "--model", model_copy.folder
        )
        check = cli(
            "generate", BALL, "--out", tmp_path / "run", "--config", small, "--model", model_copy.folder,
            "--check",
        )  # fmt: skip
    assert_sentence(result, str(model_copy.folder), *words)
    assert result.out == ""
    assert check == result


@pytest.mark.parametrize(
    ("options", "mesh"),
    [
        ((), "1 rank"),
        (("--nproc", "2"), "2 ranks: cfg 2 x kv 1 x ulysses 1"),
        (("--nproc", "4", "--cfg", "1"), "4 ranks: cfg 1 x kv 2 x ulysses 2"),
    ],
)
def test_check_of_what_would_run(cli, unchanged, tmp_path, small, options, mesh):
    """Says the mesh, computes nothing, and leaves nothing behind."""
    with unchanged(tmp_path):
        result = cli("generate", BALL, "--out", tmp_path / "run", "--config", small, "--check", *options)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"it would run: {mesh}")


def test_model_copies_are_not_broken_themselves(cli, tmp_path, small, model_copy):
    """What `test_broken_model` damages works before, in one file or in shards."""
    shards(missing=False)(model_copy)
    result = cli(
        "generate", BALL, "--out", tmp_path / "run", "--config", small, "--model", model_copy.folder,
        "--policy", "full", "--steps", "1",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert result.err == ""


def test_out_exists_and_is_no_run_folder(cli, unchanged, tmp_path, small):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with unchanged(tmp_path):
        result = cli("generate", BALL, "--out", tmp_path / "run", "--config", small)
    assert_sentence(result, "run exists and is not a run folder", "give a new folder")


@pytest.mark.parametrize("record", ['{"wandb": 1}', "[]", "not json", '{"versions": {}}'])
def test_out_holds_a_run_of_another_tool(cli, unchanged, tmp_path, small, record):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(record)
    (tmp_path / "run" / "video.mp4").write_text("mine")
    with unchanged(tmp_path):
        result = cli("generate", BALL, "--out", tmp_path / "run", "--config", small)
    assert_sentence(result, "run exists and is not a run folder", "give a new folder")


def test_more_shards_than_ranks(cli, tmp_path, small):
    result = cli("generate", BALL, "--out", tmp_path / "run", "--config", small, "--kv", 2)
    assert_sentence(result, "--kv 2 does not fit 1 rank", "start 2 ranks (--nproc 2)")


@pytest.mark.parametrize("below", ["", "deep/er"])
def test_out_is_a_file_or_below_one(cli, unchanged, tmp_path, small, below):
    (tmp_path / "run").write_text("mine")
    with unchanged(tmp_path):
        result = cli("generate", BALL, "--out", tmp_path / "run" / below, "--config", small)
    assert_sentence(result, "run", "is not a folder", "give a")


def test_out_is_a_dangling_link(cli, unchanged, tmp_path, small):
    (tmp_path / "run").symlink_to(tmp_path / "gone")
    with unchanged(tmp_path):
        result = cli("generate", BALL, "--out", tmp_path / "run", "--config", small)
    assert_sentence(result, "run is not a folder", "give a")


def test_out_with_a_name_that_is_too_long(cli, unchanged, tmp_path, small):
    with unchanged(tmp_path):
        result = cli("generate", BALL, "--out", tmp_path / ("x" * 300), "--config", small)
    assert_sentence(result, "cannot be used (File name too long)", "give another")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_out_where_nothing_may_be_written(cli, unchanged, tmp_path, small):
    (tmp_path / "locked").mkdir(mode=0o500)
    with unchanged(tmp_path):
        result = cli("generate", BALL, "--out", tmp_path / "locked" / "run", "--config", small)
    assert_sentence(result, "locked is read-only", "give one elsewhere")


def test_out_where_nothing_may_be_written_as_anyone(cli, unchanged, tmp_path, small, monkeypatch):
    """The same for root, who is never refused: ask the question, and answer no."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with unchanged(tmp_path):
        result = cli("generate", BALL, "--out", tmp_path / "run", "--config", small)
    assert_sentence(result, f"{tmp_path} is read-only", "give one elsewhere")


@pytest.mark.parametrize("gpus", [1, 2, 16, 64])
def test_plan_fits_a_terminal(cli, monkeypatch, gpus):
    """80 columns: nothing is cut off, and one thing is no things."""
    monkeypatch.setenv("COLUMNS", "80")
    result = cli("plan", "--config", "wan2.1-14b-720p", "--gpus", gpus, "--gpu-memory", 16)
    assert (result.code, result.err) == (1, "")
    assert "…" not in result.out
    assert max(map(len, result.out.splitlines())) <= 80
    assert ("1 GPU, 1 per node" in result.out) == (gpus == 1)
    for word in ("refresh", "moderate", "It does not fit"):
        assert word in result.out


@pytest.mark.parametrize("command", ["generate", "compare", "plan", "doctor"])
def test_help_of_a_command(cli, command):
    result = cli(command, "--help")
    assert (result.code, result.err) == (0, "")
    assert f"jano-dist {command}" in result.out
    assert "`jano-dist" not in result.out  # no docstring of a module


def test_out_in_use(cli, unchanged, tmp_path, small):
    with target.reserve(tmp_path / "run"), unchanged(tmp_path):
        for options in ([], ["--nproc", 2]):
            result = cli("generate", BALL, "--out", tmp_path / "run", "--config", small, *options)
            assert_sentence(result, "run is in use by another run", "wait for it, or give another folder")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("", ["'A'", "it is empty", "give a path", "see `jano-dist compare"]),
        ("/dev/null", ["/dev/null is not a file", "give a video"]),
        ("x" * 300, ["does not exist", "give a video"]),
        ("a\0b", ["does not exist", "give a video"]),
    ],
)
def test_compare_what_is_no_file(cli, path, words):
    assert_sentence(cli("compare", path, path), *words)


def test_config_that_is_a_folder(cli, tmp_path):
    (tmp_path / "mine.yaml").mkdir()
    result = cli("generate", BALL, "--out", tmp_path / "run", "--config", tmp_path / "mine.yaml")
    assert_sentence(result, "mine.yaml is not a file", "give a file or one of")


@pytest.mark.parametrize("memory", ["0", "-5", "nan", "inf", "1e300"])
def test_plan_for_no_gpu(cli, memory):
    result = cli("plan", "--config", "wan-tiny", "--gpus", 2, "--gpu-memory", memory)
    assert_sentence(result, "--gpu-memory must be above 0 and at most a million GiB", "give what nvidia-smi")


@pytest.mark.parametrize("which", ["missing", "no_video", "no_run", "truncated"])
def test_compare_what_is_no_video(cli, unchanged, tmp_path, which):
    path = tmp_path / which
    if which == "no_video":
        path.write_text("words")
    elif which == "no_run":
        path.mkdir()
    elif which == "truncated":
        path.write_bytes(b"\0\0\0 ftypisom")
    with unchanged(tmp_path):
        result = cli("compare", path, path, "--json")
    wrong = {
        "missing": "does not exist",
        "no_run": "is neither the folder of a finished run nor one of images",
    }
    wrong = wrong.get(which, "cannot be read as a video")
    assert_sentence(result, which, wrong)
    assert result.out == ""


@pytest.mark.parametrize("case", ["unknown_key", "unknown_option"])
def test_in_a_process_of_its_own(process, unchanged, tmp_path, small, case):
    options, words = OPTIONS[case]
    with unchanged(tmp_path):
        result = process("generate", BALL, "--out", tmp_path / "run", "--config", small, *options)
    assert_sentence(result, *words)
    assert result.out == ""


def test_broken_model_in_a_process_of_its_own(process, unchanged, tmp_path, small, model_copy):
    """The libraries may not add lines of their own."""
    text("tokenizer/tokenizer.json", "{")(model_copy)
    with unchanged(tmp_path):
        result = process(
            "generate", BALL, "--out", tmp_path / "run", "--config", small, "--model", model_copy.folder
        )
    assert_sentence(result, str(model_copy.folder), "does not load as a diffusers pipeline", "fetch")


# Refused by names and numbers alone.
QUICK = [
    ["generate", "a", "--out", "o", "--set", "a=1"],
    ["generate", "", "--out", "o"],
    ["generate", "a", "--out", "o", "--model", "nothing"],
    ["generate", "a", "--out", "o", "--steps", "1"],
    ["generate", "a", "--out", "o", "--frames", "4"],
    ["generate", "a", "--out", "o", "--frames", "5.5"],
    ["generate", "a", "--out", "o", "--width", "100"],
    ["generate", "a", "--out", "o", "--config", "wan2.1-14b-480p", "--height", "100"],
    ["generate", "a", "--out", "o", "--set", "policy.static_threshold=0.9"],
    ["generate", "a", "--out", "o", "--cfg", "2"],
    ["generate", "a", "--out", "o", "--nproc", "4", "--ulysses", "4"],
    ["generate", "a", "--out", "/dev/null"],
    ["generate", "a", "--out", "/dev/null", "--nproc", "2"],
    ["plan", "--config", "wan-tiny", "--gpus", "2", "--gpu-memory", "0"],
    ["plan", "--config", "wan-tiny", "--gpus", "2", "--gpu-memory", "80", "--active", "1.5"],
    ["plan", "--config", "wan-tiny", "--gpus", "12", "--gpu-memory", "80"],
    ["plan", "--config", "wan-tiny", "--gpus", "2", "--gpu-memory", "80", "--ulysses", "4"],
    ["plan", "--config", "wan-tiny", "--gpus", "2", "--gpu-memory", "80", "--set", "video.frames=4"],
    ["compare", "a", ""],
]


def test_a_typo_does_not_wait_for_torch(command):
    _, environment = command
    code = (
        "import sys; from jano_dist.cli import run; calls = eval(sys.argv[1]);\n"
        "for call in calls: assert run(call) == 2, call; assert 'torch' not in sys.modules, call"
    )
    call = [sys.executable, "-c", code, repr(QUICK)]
    done = subprocess.run(call, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == len(QUICK)
