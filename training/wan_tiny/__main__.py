"""Retrain wan-tiny from nothing: python -m training.wan_tiny (about two hours on two CPU cores)."""

import argparse
from pathlib import Path

from training.wan_tiny import dit, latents, publish, vae
from training.wan_tiny.optim import launch


def build(work: Path, out: Path, workers: int, scale: float):
    """The whole recipe; `scale` stretches or shrinks every training time."""
    first, final, pool, text = work / "vae.pt", work / "vae_decoder.pt", work / "latents", work / "dit.pt"
    minute = 60 * scale

    print("1/5 VAE on frames, then on clips", flush=True)
    launch(vae.train, workers, 29571, out=first, seconds=28 * minute)

    print("2/5 encode the training clips; from here on the encoder does not change", flush=True)
    shards = max(1, round(42 * scale / workers))
    launch(latents.write_shards, workers, 29572, vae_file=first, folder=pool, shards=shards)
    latents.measure(pool)

    print("3/5 decoder only, at full size", flush=True)
    launch(vae.train, workers, 29571, out=final, seconds=5 * minute, decoder_only=True, start=first, lr=0.4)

    print("4/5 transformer and text encoder", flush=True)
    launch(dit.train, workers, 29573, latents=pool, out=text, seconds=65 * minute)

    print("5/5 publish", flush=True)
    publish.publish(publish.assemble(final, pool / "stats.pt", text, publish.SHIFT), out)
    print(f"wrote {out}; judge it with: python -m training.wan_tiny.judge --model {out}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("wan-tiny-work"), help="checkpoints and latents")
    parser.add_argument("--out", type=Path, default=publish.ASSET, help="the model folder to replace")
    parser.add_argument("--workers", type=int, default=2, help="training processes, one per core")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="0.01 tries the recipe out in a minute or two"
    )
    args = parser.parse_args()
    build(args.work, args.out, args.workers, args.scale)


if __name__ == "__main__":
    main()
