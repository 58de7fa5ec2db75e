"""Latte: diffusers' own pipeline from the same seed; its map; what it refuses; its sizes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from jano_dist import Engine, UserError, load_config
from jano_dist.geometry import KNOWN, quick_geometry
from jano_dist.models.sizes import read_sizes
from jano_dist.policies import make_policy
from jano_dist.sampling.flow import Path as SamplingPath
from tests.latte_tiny import FRAMES, latte_pipeline, save_latte, transformer

SMALL = {
    "video.frames": FRAMES, "video.height": 64, "video.width": 64, "sampling.steps": 8, "model.dtype": "auto",
    "runtime.device": "cpu", "sampling.guidance": 7.5,
}  # fmt: skip
MAP = {
    "policy.warmup": 4, "policy.cooldown": 1, "policy.block": [2, 4, 4], "policy.enhance": {"strength": 0},
    "policy.static_threshold": 0.3, "policy.moderate_threshold": 0.6,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_latte(tmp_path_factory.mktemp("latte"))


@pytest.fixture(scope="module")
def pipeline(folder):
    return latte_pipeline(folder)


@pytest.fixture(scope="module")
def model(folder):
    return Engine(settings(folder, "full")).model


def settings(folder, policy, **changes):
    overrides = {**SMALL, "model.name": str(folder), **(MAP if policy == "jano" else {}), **changes}
    return load_config("latte-512", policy=policy, overrides=overrides)


def theirs(pipeline, prompt, seed, *, height=64, width=64, negative="", guidance=7.5, output="latent"):
    made = pipeline(
        prompt,
        negative_prompt=negative,
        video_length=FRAMES,
        height=height,
        width=width,
        num_inference_steps=8,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(seed),
        output_type=output,
    ).frames[0]
    return made


@pytest.mark.parametrize("size", [(64, 64), (48, 96)])
@pytest.mark.parametrize(
    ("prompt", "seed", "negative"),
    [
        ("a red ball", 7, ""),
        ("Two balls, far apart, moving slowly.", 0, "bad"),
        ("ball", 123, "a long one, blurred"),
    ],
)
def test_latents(pipeline, model, folder, prompt, seed, negative, size):
    height, width = size
    config = settings(folder, "full", **{"video.height": height, "video.width": width})
    ours = Engine(config, model=model).generate(prompt, seed=seed, negative_prompt=negative).latents
    wanted = theirs(pipeline, prompt, seed, height=height, width=width, negative=negative)
    assert (ours - wanted).abs().max() <= 1e-5
    assert wanted.abs().max() > 1


def test_without_guidance(pipeline, model, folder):
    ours = Engine(settings(folder, "full", **{"sampling.guidance": 1.0}), model=model).generate(
        "a ball", seed=1
    )
    assert (ours.latents - theirs(pipeline, "a ball", 1, guidance=1.0)).abs().max() <= 1e-5


def test_frames(pipeline, model, folder):
    ours = Engine(settings(folder, "full"), model=model).generate("a red ball", seed=3).frames
    wanted = theirs(pipeline, "a red ball", 3, output="np")
    assert ours.shape == (FRAMES, 64, 64, 3)
    assert np.abs(ours / 255 - wanted).max() <= 0.5 / 255 + 1e-5


def test_its_map_and_the_same_video(pipeline, model, folder):
    """With static_interval 1 every step is full, and the map is there all the same."""
    made = Engine(settings(folder, "jano"), model=model).generate("a red ball", seed=7)
    assert (made.latents - theirs(pipeline, "a red ball", 7)).abs().max() <= 1e-5
    assert made.levels.shape == (FRAMES, 4, 4)
    assert len(np.unique(made.levels)) == 3
    assert made.record["memory"]["cache_bytes_per_rank"] == 0
    assert made.record["flops"]["done"] == made.record["flops"]["full"]


def test_policies_hear_flow_velocities(pipeline, model, folder):
    """eps - x0 from what diffusers' own pipeline predicted and where it was, not the noise itself."""
    heard, latents = [], []

    class Listening:
        def __init__(self, policy):
            self.policy = policy

        def __getattr__(self, name):
            return getattr(self.policy, name)

        def observe(self, step, velocity):
            heard.append(velocity.clone())
            return self.policy.observe(step, velocity)

    def listening(*args, **kwargs):
        return Listening(make_policy(*args, **kwargs))

    Engine(settings(folder, "full"), model=model, policies=listening).generate("a red ball", seed=7)

    def note(pipe, step, timestep, tensors):
        latents.append(tensors["latents"].clone())
        return tensors

    pipeline(
        "a red ball", negative_prompt="", video_length=FRAMES, height=64, width=64, num_inference_steps=8,
        guidance_scale=7.5, generator=torch.Generator().manual_seed(7), output_type="latent",
        callback_on_step_end=note,
    )  # fmt: skip
    path = SamplingPath.of(pipeline.scheduler)
    alpha, sigma = path.alphas, path.sigmas
    for step in range(1, 7):  # data and noise from two latents of DDIM, which lie on one line between them
        before, after = latents[step - 1].double(), latents[step].double()
        scale = alpha[step] * sigma[step + 1] - alpha[step + 1] * sigma[step]
        data = (sigma[step + 1] * before - sigma[step] * after) / scale
        eps = (alpha[step] * after - alpha[step + 1] * before) / scale
        wanted = (eps - data)[0]
        assert (heard[step] - wanted).norm() <= 1e-4 * wanted.norm()


@pytest.mark.parametrize(
    ("policy", "changes"), [("forecast", {"policy.tau": 100.0}), ("uniform", {"policy.interval": 2})]
)
def test_steps_may_be_skipped_whole(model, folder, policy, changes):
    changes |= {"policy.warmup": 3, "policy.cooldown": 1}
    made = Engine(settings(folder, policy, **changes), model=model)
    record = made.generate("a red ball", seed=7).record
    assert {step["kind"] for step in record["steps"]} <= {"full", "skip"}
    assert record["flops"]["done"] < record["flops"]["full"]


@pytest.mark.parametrize("policy", ["ras", "astraea", "teacache", "toca"])
def test_policies_that_compute_some_tokens_are_refused(model, folder, policy):
    with pytest.raises(UserError, match=f"which policy {policy} does not: take full, forecast or uniform"):
        Engine(settings(folder, policy, **{"sampling.steps": 12}), model=model)


def test_what_does_not_fit_is_refused(model, folder):
    with pytest.raises(UserError, match="which policy jano does not"):
        Engine(settings(folder, "jano", **{"policy.static_interval": 2}), model=model)
    with pytest.raises(UserError, match=f"videos of {FRAMES} frames, not 5: use --frames {FRAMES}"):
        Engine(settings(folder, "full", **{"video.frames": 5}), model=model)
    with pytest.raises(UserError, match="is for flow-matching models"):
        Engine(settings(folder, "full", **{"sampling.shift": 3.0}), model=model).generate("a ball")


@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 24)])
@pytest.mark.parametrize("activation", ["gelu-approximate", "geglu"])
def test_flops_are_those_torch_counts(folder, height, width, activation):
    sizes = replace(quick_geometry(str(folder)), ffn_inputs=1 + (activation == "geglu"))
    made, text = transformer(activation_fn=activation), 7
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.inference_mode():
        made(torch.randn(1, 4, FRAMES, height, width), torch.tensor([5]), torch.randn(1, text, 16))
    tokens = FRAMES * height * width // 4
    assert sizes.forward_flops(tokens, tokens, text) == counter.get_total_flops()


def test_true_sizes():
    """Latte-1 as diffusers has it: 28 spatial and 28 temporal layers.

    The 0.67 B of the paper (table 1: Latte-XL/2, 673.68 M) are the class-conditional model: 28 layers in all,
    each with its own modulation; that count is written out here.
    """
    sizes = read_sizes("maxin-cn/Latte-1", local=True)
    assert sizes.transformer.plain + sizes.transformer.float32 == 1_057_246_880
    assert sizes.geometry == quick_geometry("maxin-cn/Latte-1")
    assert sizes.geometry.latent_shape(16, 512, 512) == (16, 64, 64)
    d = KNOWN["maxin-cn/Latte-1"]["transformer"]["num_attention_heads"] * 72
    layer = 4 * d * d + 4 * d + 8 * d * d + 5 * d  # attention, FFN
    spatial, cross = layer + 6 * d, 4 * d * d + 4 * d
    ends = {
        "patches": 16 * d + d, "time": 257 * d + d * d + d, "modulation": 6 * d * d + 6 * d,
        "text": 4097 * d + d * d + d, "output": 2 * d + 32 * d + 32,
    }  # fmt: skip
    assert 28 * (2 * spatial + cross) + sum(ends.values()) == 1_057_246_880
    classes = 28 * (layer + 6 * d * d + 6 * d) + ends["patches"] + ends["time"] + 102 * d
    classes += 2 * d * d + 2 * d + 32 * d + 32  # the modulated output
    assert classes == pytest.approx(673.68e6, rel=1e-3)


def test_the_command_line(cli, folder, tmp_path):
    options = [
        f"--set={key}={value}" for key, value in {**SMALL, "policy.warmup": 4, "policy.cooldown": 1}.items()
    ]
    made = cli(
        "generate",
        "a red ball",
        "--config",
        "latte-512",
        "--model",
        folder,
        *options,
        "--out",
        tmp_path / "run",
    )
    assert made.code == 0, made.err
    assert {"video.mp4", "complexity.png", "run.json"} <= {file.name for file in (tmp_path / "run").iterdir()}
    refused = cli(
        "generate", "a red ball", "--config", "latte-512", "--model", folder, *options, "--policy", "ras",
        "--out", tmp_path / "other",
    )  # fmt: skip
    assert refused.code == 2
    assert "computes all tokens of a step or none" in refused.err.replace("\n", " ")
    assert not (tmp_path / "other").exists()


def test_a_scheduler_that_draws_noise_is_refused(tmp_path, folder):
    for part in folder.iterdir():
        if part.name != "model_index.json":
            (tmp_path / part.name).symlink_to(part)
    index = (folder / "model_index.json").read_text()
    (tmp_path / "model_index.json").write_text(index.replace("DDIMScheduler", "DDPMScheduler"))
    with pytest.raises(UserError, match="has a DDPMScheduler: put one of DDIMScheduler, UniPC"):
        Engine(settings(tmp_path, "full"))
