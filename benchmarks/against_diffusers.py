"""Two ranks, Ulysses 2, every token on every step: our `full` policy beside diffusers' context parallelism.

Both make the same video from the same seed with the same scheduler, in turns inside one pair of ranks.
What is compared is the median time of a denoising step, both branches and the scheduler included.
"""

import argparse
import itertools
import time
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig, WanPipeline

from benchmarks.common import PROMPTS, Undecoded, on_ranks, save
from jano_dist import Config, Engine, load_config
from tests.parity.diffusers_pipeline import wan_tiny_pipeline


def diffusers_pipeline() -> WanPipeline:
    """diffusers' own pipeline with its transformer spread over the two ranks."""
    torch.accelerator.device_count = lambda: 1  # diffusers asks for accelerators, and a CPU has none
    pipeline = wan_tiny_pipeline()
    pipeline.transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
    return pipeline


def their_steps(pipeline: WanPipeline, config: Config) -> tuple[list[float], torch.Tensor]:
    """Seconds of each step but the first, and the latents."""
    ends: list[float] = []

    def mark(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        ends.append(time.perf_counter())
        return tensors

    latents = pipeline(
        PROMPTS[0],
        num_frames=config.video.frames,
        height=config.video.height,
        width=config.video.width,
        num_inference_steps=config.sampling.steps,
        guidance_scale=config.sampling.guidance,
        generator=torch.Generator().manual_seed(0),
        max_sequence_length=config.model.max_sequence_length,
        output_type="latent",
        callback_on_step_end=mark,
    ).frames[0]
    return [after - before for before, after in itertools.pairwise(ends)], latents


def measure(overrides: dict[str, Any], rounds: int) -> dict[str, Any]:
    config = load_config("wan-tiny", policy="full", overrides={**overrides, "mesh.ulysses": 2})
    loaded, pipeline = Engine(config), diffusers_pipeline()
    engine = Engine(config, model=Undecoded(loaded.model), mesh=loaded.mesh)
    ours: list[float] = []
    theirs: list[float] = []
    difference, communication = 0.0, []
    engine.mesh.time_collectives()
    for turn in range(rounds + 1):
        dist.barrier()
        made = engine.generate(PROMPTS[0], seed=0)
        dist.barrier()
        seconds, latents = their_steps(pipeline, config)
        if turn:  # the first turn warms up
            steps = made.record["steps"][1:]
            ours += [step["seconds"] for step in steps]
            communication += [step["comm_seconds"] for step in steps]
            theirs += seconds
        difference = max(difference, float((made.latents - latents).abs().max()))
    return {
        "tokens": made.record["steps"][0]["tokens"],
        "ours_seconds": median(ours),
        "theirs_seconds": median(theirs),
        "ratio": median(ours) / median(theirs),
        "our_communication_seconds": median(communication),
        "max_difference": difference,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=33)
    parser.add_argument("--size", type=int, default=256, help="height and width in pixels")
    parser.add_argument("--steps", type=int, default=11)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    overrides = {
        "video.frames": args.frames,
        "video.height": args.size,
        "video.width": args.size,
        "sampling.steps": args.steps,
    }
    limits = {"timeout": 2000, "collective_timeout": 600}
    ranks, threads = on_ranks(2, measure, overrides, args.rounds, **limits)
    figures = {"steps": args.steps, "rounds": args.rounds, **ranks[0]}
    print(figures)
    save(f"against-diffusers-{figures['tokens']}-tokens", figures, threads)


if __name__ == "__main__":
    main()
