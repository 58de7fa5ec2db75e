"""Put the trained parts together into one folder that diffusers.WanPipeline.from_pretrained loads."""

import argparse
import os
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline

from training.wan_tiny import vae as vae_training
from training.wan_tiny.dit import TextToLatents

ASSET = Path(__file__).resolve().parents[2] / "jano_dist" / "assets" / "wan-tiny"
SHIFT = 3.0


@torch.no_grad()
def assemble(vae_file: Path, stats_file: Path, dit_file: Path, shift: float) -> WanPipeline:
    """A float32 pipeline from the averaged weights of the two training phases."""
    vae = AutoencoderKLWan(**vae_training.CONFIG, **torch.load(stats_file))
    vae.load_state_dict(torch.load(vae_file))
    model = TextToLatents()
    averaged = torch.load(dit_file)["ema"]
    for name, parameter in model.named_parameters():
        parameter.copy_(averaged[name])
    scheduler = UniPCMultistepScheduler(
        num_train_timesteps=1000, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )
    return WanPipeline(
        tokenizer=model.tokenizer,
        text_encoder=model.text_encoder.eval(),
        vae=vae.eval(),
        scheduler=scheduler,
        transformer=model.transformer.eval(),
    )


def publish(pipe: WanPipeline, folder: Path):
    """Write beside, then swap in one rename each way, so that a reader finds a whole model."""
    fresh = folder.with_name(folder.name + ".new")
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    pipe.save_pretrained(fresh, safe_serialization=True)
    card = folder / "README.md"
    if card.exists():
        shutil.copy(card, fresh / card.name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        os.rename(folder, old)
    os.rename(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--stats", type=Path, required=True)
    parser.add_argument("--dit", type=Path, required=True)
    parser.add_argument("--shift", type=float, default=SHIFT)
    parser.add_argument("--out", type=Path, default=ASSET)
    args = parser.parse_args()
    publish(assemble(args.vae, args.stats, args.dit, args.shift), args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
