"""Encode captioned clips once, with the frozen encoder, into shards of latents for the DiT to train on."""

import argparse
import random
from pathlib import Path

import torch

from training.wan_tiny import data
from training.wan_tiny.optim import launch, save_atomically
from training.wan_tiny.vae import build_vae, to_bfloat16


@torch.no_grad()
def write_shards(rank: int, vae_file: Path, folder: Path, shards: int, first: int = 0, clips: int = 96):
    """Write shards first+1000*rank ... of (latents, captions); another process may already read them."""
    vae = build_vae()
    vae.load_state_dict(torch.load(vae_file))
    to_bfloat16(vae).eval()
    for index in range(first + 1000 * rank, first + 1000 * rank + shards):
        rng = random.Random(50_000 + index)
        latents, captions = [], []
        for _ in range(clips):
            scene = data.sample_scene(rng)
            clip = data.render(scene)[0][None].bfloat16()
            latents.append(vae.encode(clip).latent_dist.mean)
            captions.append(scene.caption())
        save_atomically(
            {"latents": torch.cat(latents), "captions": captions}, folder / f"shard{index:05d}.pt"
        )
        print(f"shard {index}", flush=True)


def measure(folder: Path) -> dict[str, list[float]]:
    """Mean and spread of each latent channel; the pipeline config keeps them (WanPipeline undoes them)."""
    shards = [torch.load(path)["latents"].float() for path in sorted(folder.glob("shard*.pt"))]
    latents = torch.cat(shards)
    stats = {
        "latents_mean": latents.mean((0, 2, 3, 4)).tolist(),
        "latents_std": latents.std((0, 2, 3, 4)).tolist(),
    }
    save_atomically(stats, folder / "stats.pt")
    return stats


class LatentPool:
    """All normalised latents written so far; refresh() picks up shards that appeared since."""

    def __init__(self, folder: Path):
        self.folder, self.seen = folder, set()
        stats = torch.load(folder / "stats.pt")
        self.mean = torch.tensor(stats["latents_mean"]).view(1, -1, 1, 1, 1)
        self.std = torch.tensor(stats["latents_std"]).view(1, -1, 1, 1, 1)
        self.latents, self.captions = [], []
        self.refresh()

    def refresh(self):
        for path in sorted(set(self.folder.glob("shard*.pt")) - self.seen):
            shard = torch.load(path)
            self.latents += list(((shard["latents"].float() - self.mean) / self.std).bfloat16())
            self.captions += shard["captions"]
            self.seen.add(path)
        numbers = range(len(self.captions))
        self.rows = {
            two: [i for i in numbers if (" and " in self.captions[i]) == two] for two in (False, True)
        }

    def batch(self, rng: random.Random, size: int, pairs: float) -> tuple[torch.Tensor, list[str]]:
        """Random clips; `pairs` is the share of clips with two objects."""
        rows = [rng.choice(self.rows[rng.random() < pairs]) for _ in range(size)]
        return torch.stack([self.latents[row] for row in rows]).float(), [self.captions[row] for row in rows]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shards", type=int, default=24, help="per process")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    launch(
        write_shards,
        args.workers,
        29572,
        vae_file=args.vae,
        folder=args.out,
        shards=args.shards,
        first=args.first,
    )
    if not (args.out / "stats.pt").exists():
        print(measure(args.out))


if __name__ == "__main__":
    main()
