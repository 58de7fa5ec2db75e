"""A LoRA fused while a model is read, against diffusers' own pipeline with the same LoRA loaded."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from jano_dist import Engine, load_config
from tests.gang.harness import gang
from tests.lora import write_lora
from tests.parity.diffusers_pipeline import wan_tiny_pipeline
from tests.parity.image_pipelines import TEXT_TOKENS, flux_pipeline, saved, sd3_pipeline

PROMPT = "a red ball moves left"
FRAMES, HEIGHT, WIDTH, STEPS = 5, 64, 48, 6
SMALL = {"video.frames": FRAMES, "video.height": HEIGHT, "video.width": WIDTH, "sampling.steps": STEPS}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two LoRAs; the first one's alpha is twice its rank."""
    folder, transformer = tmp_path_factory.mktemp("loras"), wan_tiny_pipeline().transformer
    return [write_lora(folder, transformer, seed=seed) for seed in (1, 2)]


def theirs(loras, *, fused=False):
    """Latents of a new pipeline of diffusers."""
    pipeline = wan_tiny_pipeline()
    names = [f"lora{number}" for number in range(len(loras))]
    for name, (file, _) in zip(names, loras, strict=True):
        pipeline.load_lora_weights(str(file), adapter_name=name)
    if loras:
        pipeline.set_adapters(names, [scale for _, scale in loras])
    if fused:
        pipeline.fuse_lora(adapter_names=names)
    return pipeline(
        PROMPT, num_frames=FRAMES, height=HEIGHT, width=WIDTH, num_inference_steps=STEPS, guidance_scale=3.0,
        generator=torch.Generator("cpu").manual_seed(3), output_type="latent", max_sequence_length=32,
    ).frames[0]  # fmt: skip


def settings(loras, **more):
    named = [f"{file}:{scale}" for file, scale in loras]
    return {**SMALL, "sampling.guidance": 3.0, "model.lora": named, **more}


def ours(loras, **more):
    config = load_config("wan-tiny", policy="full", overrides=settings(loras, **more))
    return Engine(config).generate(PROMPT, seed=3).latents


def distance(a, b):
    return float((a - b).abs().max())


@pytest.mark.parametrize("scales", [(1.0, None), (0.5, None), (1.0, -0.5)])
def test_latents_are_those_of_diffusers(files, scales):
    """Where it is not fused, one product more is rounded in every layer; these LoRAs are strong."""
    loras = [(file, scale) for file, scale in zip(files, scales, strict=True) if scale is not None]
    found, apart = ours(loras), theirs(loras)
    assert distance(found, theirs(loras, fused=True)) <= 1e-5
    assert distance(found, apart) <= 5e-5
    assert distance(theirs([]), apart) > 0.1


def test_of_nothing(files):
    assert distance(ours([(files[0], 0)]), ours([])) == 0


def test_the_names_of_another_trainer(files, tmp_path):
    """Weights named as in Wan's own code, as most LoRAs that one can fetch."""
    wan = {"attn1": "self_attn", "attn2": "cross_attn", "ffn.net.0.proj": "ffn.0"}
    wan |= {f"to_{name}": name for name in "qkv"} | {"to_out.0": "o"}
    renamed = {}
    for key, weight in load_file(files[0]).items():
        for theirs_, ours_ in wan.items():
            key = key.replace(theirs_, ours_)
        renamed[key.replace("transformer.", "diffusion_model.", 1)] = weight
    save_file(renamed, tmp_path / "other.safetensors")
    # It has no alpha, so it counts as if that was the rank: half.
    assert distance(ours([(tmp_path / "other.safetensors", 2)]), ours([(files[0], 1)])) <= 1e-5


def _on_ranks(loras, weights):
    return ours(loras, **{"model.weights": weights})


@pytest.mark.parametrize("weights", ["replicated", "fsdp"])
def test_on_two_ranks(files, weights):
    """The second rank never reads it: it is sent with the weights."""
    loras = [(files[0], 1.0)]
    alone = ours(loras)
    for latents in gang(2, _on_ranks, loras, weights):
        assert distance(latents, alone) <= 1e-4


@pytest.mark.parametrize("make", [flux_pipeline, sd3_pipeline])
def test_of_image_models(make, tmp_path):
    pipeline = saved(make(), tmp_path / "model")
    file = write_lora(tmp_path, pipeline.transformer, seed=4, pipeline=type(pipeline))

    def reference():
        made = pipeline(
            PROMPT, height=32, width=24, num_inference_steps=STEPS, guidance_scale=3.5, output_type="latent",
            generator=torch.Generator().manual_seed(3), max_sequence_length=TEXT_TOKENS,
        ).images[0]  # fmt: skip
        packed = make is flux_pipeline
        return pipeline._unpack_latents(made[None], 32, 24, pipeline.vae_scale_factor)[0] if packed else made

    size = {"video.frames": 1, "video.height": 32, "video.width": 24, "sampling.guidance": 3.5}
    model = {"model.name": str(tmp_path / "model"), "model.max_sequence_length": TEXT_TOKENS}
    found = ours([(file, 0.5)], **size, **model)[:, 0]
    without = reference()
    pipeline.load_lora_weights(str(file))
    pipeline.fuse_lora(lora_scale=0.5)
    assert distance(found, reference()) <= 1e-5
    assert distance(found, without) > 1e-2
