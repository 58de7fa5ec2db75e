"""Numbers behind the parity claims: the engine against diffusers, and sparse steps against full ones."""

import argparse
from typing import Any

import torch
from diffusers import WanTransformer3DModel

from benchmarks.common import PROMPTS, save
from jano_dist import Engine, load_config
from jano_dist.cache import KVCache
from jano_dist.models.wan import WanTransformer
from jano_dist.tokens.plan import TokenPlan
from jano_dist.tokens.schedule import StepKind
from tests.parity.diffusers_pipeline import wan_tiny_pipeline

SIZES = ((17, 128, 128), (9, 96, 160))


def full_against_diffusers(steps: int) -> list[dict[str, Any]]:
    """max |latent difference| to `WanPipeline`, three prompts at two sizes."""
    pipeline = wan_tiny_pipeline()
    model: Any = None
    rows = []
    for frames, height, width in SIZES:
        size = {"video.frames": frames, "video.height": height, "video.width": width}
        config = load_config("wan-tiny", policy="full", overrides={**size, "sampling.steps": steps})
        engine = Engine(config, model=model)
        model = engine.model
        shift = {} if config.sampling.shift is None else {"flow_shift": config.sampling.shift}
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **shift)
        for seed, prompt in enumerate(PROMPTS[:3]):
            theirs = pipeline(
                prompt,
                num_frames=frames,
                height=height,
                width=width,
                num_inference_steps=steps,
                guidance_scale=config.sampling.guidance,
                generator=torch.Generator().manual_seed(seed),
                max_sequence_length=config.model.max_sequence_length,
                output_type="latent",
            ).frames[0]
            difference = float((engine.generate(prompt, seed=seed).latents - theirs).abs().max())
            rows.append({"size": [frames, height, width], "prompt": prompt, "max_difference": difference})
            print(rows[-1])
    return rows


def jano_against_full(steps: int) -> dict[str, float]:
    """Settings under which Jano must not differ from `full`: nothing static, or nothing but warm-up."""
    settings = {
        "thresholds 0": {"policy.static_threshold": 0.0, "policy.moderate_threshold": 0.0},
        "warm-up = steps": {"policy.warmup": steps},
    }
    full = Engine(load_config("wan-tiny", policy="full", overrides={"sampling.steps": steps}))
    reference = full.generate(PROMPTS[0], seed=0).latents
    differences = {}
    for name, changes in settings.items():
        config = load_config("wan-tiny", policy="jano", overrides={"sampling.steps": steps, **changes})
        latents = Engine(config, model=full.model).generate(PROMPTS[0], seed=0).latents
        differences[name] = float((latents - reference).abs().max())
    print(differences)
    return differences


@torch.inference_mode()
def partial_step(transformer: Any, latent: torch.Tensor, text: torch.Tensor) -> dict[str, float]:
    """Active rows on an unchanged input against diffusers' plain forward of the same module."""
    timestep, config = torch.tensor(600.0), transformer.config
    plain = transformer(latent[None], timestep[None], text, return_dict=False)[0][0]
    ours = WanTransformer(transformer)
    _, t, h, w = latent.shape
    tokens = t * h * w // 4
    levels = torch.randint(1, 4, (tokens,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plan, branch = TokenPlan.from_levels(levels), ours.branch({"text": text})
    sizes = (config.num_layers, tokens, config.num_attention_heads, config.attention_head_dim)
    cache = KVCache(*sizes, torch.float32, torch.device("cpu"))
    refreshed = torch.zeros(tokens, config.out_channels * 4)
    rows = plan.rows(StepKind.REFRESH)
    refreshed[rows] = ours.forward(latent, timestep, branch, rows, cache)
    partial, active = refreshed.clone(), plan.rows(StepKind.ACTIVE)
    partial[active] = ours.forward(latent, timestep, branch, active, cache)
    return {
        "tokens": tokens,
        "active": active.numel(),
        "active_rows_to_refresh": float((partial - refreshed).abs().max()),
        "all_rows_to_plain_forward": float((ours.unpatchify(partial, (t, h, w)) - plain).abs().max()),
        "largest_value": float(plain.abs().max()),
    }


def wan_14b() -> dict[str, Any]:
    """The 14B's names and count on `meta`, and one block at true width with random weights."""
    with torch.device("meta"):
        whole = WanTransformer3DModel()
    names = dict(whole.named_parameters())
    torch.manual_seed(0)
    block = partial_step(
        WanTransformer3DModel(num_layers=1).eval(), torch.randn(16, 2, 32, 32), torch.randn(1, 64, 4096)
    )
    return {"parameters": sum(p.numel() for p in names.values()), "tensors": len(names), "one_block": block}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tiny = wan_tiny_pipeline().transformer
    text = torch.randn(1, 32, tiny.config.text_dim, generator=torch.Generator().manual_seed(1))
    latent = torch.randn(16, 5, 16, 16, generator=torch.Generator().manual_seed(2))
    figures = {
        "full_against_diffusers": full_against_diffusers(args.steps),
        "jano_against_full": jano_against_full(args.steps),
        "partial_step_wan_tiny": partial_step(tiny, latent, text),
        "wan_14b": wan_14b(),
    }
    print(figures["partial_step_wan_tiny"], figures["wan_14b"])
    save("parity", {"steps": args.steps, **figures})


if __name__ == "__main__":
    main()
