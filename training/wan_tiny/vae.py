"""Train the tiny Wan VAE (3 x 17 x 128 x 128 -> 16 x 5 x 16 x 16 and back) on procedural clips.

Single frames come first (cheap, and they teach colours and edges), then clips of mixed length: trained on
5-frame clips only, the colours of longer clips drift. Most of it runs on 64 x 64 crops.
"""

import argparse
import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from training.wan_tiny import data
from training.wan_tiny.optim import Clock, HybridOptimizer, average, launch, save_atomically

CONFIG = {"base_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 1, "z_dim": 16}

# (until this fraction of the time, [(weight, batch, frames, crop size), ...])
FULL_PLAN = (
    (0.25, [(1, 12, 1, 64)]),
    (0.70, [(1, 8, 1, 64), (2, 3, 5, 64), (2, 2, 9, 64), (2, 1, 17, 64)]),
    (1.00, [(1, 2, 1, 128), (1, 1, 5, 128), (2, 1, 17, 64), (1, 1, 17, 128)]),
)
DECODER_PLAN = ((1.00, [(1, 2, 1, 128), (1, 1, 5, 128), (2, 1, 17, 64), (2, 1, 17, 128)]),)


@torch.no_grad()
def build_vae() -> AutoencoderKLWan:
    """A fresh VAE whose layers start out looking at the current frame only, so frames teach clips."""
    vae = AutoencoderKLWan(**CONFIG)
    for name, module in vae.named_modules():
        if isinstance(module, torch.nn.Conv3d) and module.weight.shape[2] == 3:
            module.weight[:, :, :2] = 0
            module.weight[:, :, 2] *= math.sqrt(3)
        if name.endswith("time_conv"):
            module.weight.zero_()
            module.bias.zero_()
            eye = torch.eye(module.in_channels)
            module.weight[:, :, 2, 0, 0] = eye.repeat(module.out_channels // module.in_channels, 1)
    # The spread of the posterior starts at exp(-2) = 0.14 for every input.
    half = CONFIG["z_dim"]
    vae.quant_conv.weight[half:] = 0
    vae.quant_conv.bias[half:] = -4
    return vae


def to_bfloat16(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """bfloat16, with channels last: the layout the CPU convolutions like best."""
    vae.to(torch.bfloat16)
    for p in vae.parameters():
        if p.dim() == 5:
            p.data = p.data.to(memory_format=torch.channels_last_3d)
        elif p.dim() == 4:
            p.data = p.data.to(memory_format=torch.channels_last)
    return vae


def decode(vae: AutoencoderKLWan, z: torch.Tensor) -> torch.Tensor:
    """vae.decode without its final clamp, behind which no gradient would flow."""
    vae.clear_cache()
    z = vae.post_quant_conv(z)
    chunks = []
    for i in range(z.shape[2]):
        vae._conv_idx = [0]
        chunk = z[:, :, i : i + 1]
        chunks.append(
            vae.decoder(chunk, feat_cache=vae._feat_map, feat_idx=vae._conv_idx, first_chunk=i == 0)
        )
    vae.clear_cache()
    return torch.cat(chunks, 2)


def sample_batch(rng: random.Random, batch: int, frames: int, size: int):
    """Random crops, most of them around an object, half of them in random colours -> clips, masks."""
    clips, masks = [], []
    for _ in range(batch):
        scene = data.sample_scene(rng)
        if rng.random() < 0.5:
            scene = data.recolour(scene, rng)
        first = rng.randint(0, data.FRAMES - frames)
        centre = [rng.uniform(0, data.SIZE) for _ in range(2)]
        if rng.random() < 0.8:
            centre = rng.choice(scene.things).at(first + frames / 2)
        left, top = (
            round(min(max(c - size / 2 + rng.uniform(-16, 16), 0), data.SIZE - size)) for c in centre
        )
        clip, mask = data.render(scene, frames, first, (left, top, size))
        clips.append(clip)
        masks.append(mask)
    return torch.stack(clips), torch.stack(masks)


def loss_terms(vae: AutoencoderKLWan, clip: torch.Tensor, mask: torch.Tensor):
    """-> (loss, mean squared error). Objects and their edges weigh more than the large background."""
    posterior: DiagonalGaussianDistribution = vae.encode(clip.bfloat16()).latent_dist
    z = posterior.mean + posterior.std * torch.randn_like(posterior.mean)
    out = decode(vae, z).float()
    weight = 1 + 2 * F.max_pool3d(mask, (1, 5, 5), 1, (0, 2, 2))
    error = out - clip
    loss = (weight * (error.abs() + 2 * error * error)).mean()
    if clip.shape[2] > 1:  # the background must not flicker
        loss = loss + 0.5 * error.diff(dim=2).abs().mean()
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    kl = 0.5 * (mean * mean + logvar.exp() - 1 - logvar).mean()
    return loss + 1e-4 * kl, float((error.detach() ** 2).mean())


def psnr(mse: float) -> float:
    """Decibel for pixels in -1..1."""
    return 10 * math.log10(4 / max(mse, 1e-12))


@torch.no_grad()
def held_out_psnr(vae: AutoencoderKLWan, clips: int, seed: int = 7) -> list[float]:
    """PSNR (through the posterior mean) of whole held-out clips."""
    rng = random.Random(seed)
    scores = []
    for _ in range(clips):
        clip = data.render(data.sample_scene(rng, held=True))[0][None]
        out = vae.decode(vae.encode(clip.to(vae.dtype)).latent_dist.mean).sample.float()
        scores.append(psnr(float(((out - clip) ** 2).mean())))
    return scores


def _pick(plan, fraction: float, rng: random.Random):
    kinds = next((kinds for until, kinds in plan if fraction < until), plan[-1][1])
    return rng.choices(kinds, [kind[0] for kind in kinds])[0][1:]


def train(
    rank: int, out: Path, seconds: float, decoder_only: bool = False, start: Path | None = None, lr=1.0
):
    """Train for that many seconds; the moving average of the weights is saved to `out` every minute."""
    torch.manual_seed(100)
    vae = build_vae()
    if start:
        vae.load_state_dict(torch.load(start))
    if decoder_only:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    fixed = {name: p.detach().clone() for name, p in vae.named_parameters() if not p.requires_grad}
    # Made from the float32 weights; moved to bfloat16 only then.
    optimizer = HybridOptimizer(
        vae.named_parameters(), 0.02 * lr, 3e-3 * lr, 0.995, ("conv_out", "time_conv")
    )
    to_bfloat16(vae)
    plan = DECODER_PLAN if decoder_only else FULL_PLAN
    rng = random.Random(1000 + rank + int(time.time()))  # a restart must not repeat the same scenes
    torch.manual_seed(rank + int(time.time()))
    clock, fraction, saved, history = Clock(seconds), 0.0, time.time(), {}
    while fraction < 1:
        kind = _pick(plan, fraction, rng)
        loss, mse = loss_terms(vae, *sample_batch(rng, *kind))
        loss.backward()
        gradient, fraction = average(optimizer.flat_gradient(), clock.fraction())
        warm = min(1.0, optimizer.steps / 50)
        floor = 0.02 if decoder_only else 0.15
        optimizer.step(gradient, warm * max(floor, 1 - fraction))
        history.setdefault(kind, []).append(mse)
        if rank == 0 and (time.time() - saved > 60 or fraction >= 1):
            saved = time.time()
            save_atomically({**fixed, **optimizer.ema_state()}, out)
            figures = {k: round(psnr(sum(v) / len(v)), 2) for k, v in history.items()}
            print(
                f"{fraction:.3f} step {optimizer.steps} loss {float(loss.detach()):.4f} psnr {figures}",
                flush=True,
            )
            history.clear()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=35)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--decoder-only", action="store_true")
    parser.add_argument("--lr", type=float, default=1.0)
    args = parser.parse_args()
    launch(
        train,
        args.workers,
        out=args.out,
        seconds=args.minutes * 60,
        decoder_only=args.decoder_only,
        start=args.start,
        lr=args.lr,
    )


if __name__ == "__main__":
    main()
