"""Train the Wan transformer and its text encoder together, by flow matching on frozen-VAE latents."""

import argparse
import random
import time
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel

from training.wan_tiny.latents import LatentPool
from training.wan_tiny.optim import Clock, HybridOptimizer, average, launch, save_atomically
from training.wan_tiny.text import TEXT_DIM, build_text_encoder, build_tokenizer, embed

CONFIG = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 6,
    "attention_head_dim": 32,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": TEXT_DIM,
    "ffn_dim": 768,
    "num_layers": 6,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
}
# Near the two ends of the network Adam; the matrices between them get Muon.
ADAM_NAMES = ("shared", "patch_embedding", "proj_out", "time_embedder", "relative_attention_bias")
# Of the training timesteps: an object's place and path are decided at the highest noise levels.
SHIFT = 5.0
# (until this fraction of the time, latent frames, batch per process, share of clips with two objects).
# The first latent frame of a clip is a picture: at a fifth of the price it teaches colours, shapes and
# backgrounds before anything has to move. Which of two objects does what is learned last, so it gets more
# room in the end.
PLAN = ((0.15, 1, 48, 0.3), (0.60, 5, 16, 0.3), (1.0, 5, 16, 0.6))
CAPTION_DROPOUT = 0.1


class TextToLatents(torch.nn.Module):
    """Everything phase two trains, so that one optimiser and one checkpoint hold both networks."""

    def __init__(self):
        super().__init__()
        self.tokenizer = build_tokenizer()
        self.text_encoder = build_text_encoder()
        self.transformer = WanTransformer3DModel(**CONFIG)
        with torch.no_grad():  # start by predicting nothing
            self.transformer.proj_out.weight.zero_()
            self.transformer.proj_out.bias.zero_()

    def forward(self, noisy: torch.Tensor, sigma: torch.Tensor, captions: list[str]) -> torch.Tensor:
        text = embed(self.tokenizer, self.text_encoder, captions)
        return self.transformer(noisy, 1000 * sigma, text, return_dict=False)[0]


def flow_loss(
    model: TextToLatents, latents: torch.Tensor, captions: list[str], rng: random.Random
) -> torch.Tensor:
    """x_t = (1 - sigma) x + sigma noise; the network predicts noise - x (the convention Wan samples with)."""
    # Stratified over the batch: less noise in the gradient than independent draws.
    u = (torch.arange(len(captions)) + torch.rand(len(captions))) / len(captions)
    sigma = SHIFT * u / (1 + (SHIFT - 1) * u)
    noise = torch.randn_like(latents)
    mix = sigma.view(-1, 1, 1, 1, 1)
    captions = ["" if rng.random() < CAPTION_DROPOUT else caption for caption in captions]
    with torch.autocast("cpu", torch.bfloat16):
        velocity = model((1 - mix) * latents + mix * noise, sigma, captions)
    return ((velocity.float() - (noise - latents)) ** 2).mean()


def _checkpoint(optimizer: HybridOptimizer, fraction: float) -> dict:
    return {
        "ema": optimizer.ema_state(),
        "optimizer": {k: getattr(optimizer, k) for k in ("master", "momentum", "second", "steps")},
        "fraction": fraction,
    }


def _resume(optimizer: HybridOptimizer, path: Path) -> float:
    saved = torch.load(path)
    optimizer.load(saved["ema"])
    for key, value in saved["optimizer"].items():
        setattr(optimizer, key, value)
    with torch.no_grad():
        for live, master in zip(optimizer.live, optimizer.master, strict=True):
            live.copy_(master)
    return saved["fraction"]


def train(rank: int, latents: Path, out: Path, seconds: float, resume: bool = False, lr: float = 1.0):
    """Train for that many seconds with a learning rate that falls to zero; save every minute."""
    torch.manual_seed(200)
    model = TextToLatents()
    optimizer = HybridOptimizer(model.named_parameters(), 0.015 * lr, 1.5e-3 * lr, 0.998, ADAM_NAMES)
    done = _resume(optimizer, out) if resume else 0.0
    model.transformer.compile_repeated_blocks(dynamic=False)  # a seventh faster, after a minute of compiling
    pool = LatentPool(latents)
    rng = random.Random(2000 + rank + int(time.time()))
    torch.manual_seed(rank + int(time.time()))
    clock, fraction, saved, losses = Clock(seconds), done, time.time(), []
    while fraction < 1:
        frames, batch, pairs = next(kind for until, *kind in PLAN if fraction < until)
        clips, captions = pool.batch(rng, batch, pairs)
        loss = flow_loss(model, clips[:, :, :frames], captions, rng)
        loss.backward()
        losses.append(float(loss.detach()))
        gradient, fraction = average(optimizer.flat_gradient(), done + (1 - done) * clock.fraction())
        warm = min(1.0, optimizer.steps / 100)
        optimizer.step(gradient, warm * min(1.0, max(0.0, 1 - fraction) / 0.8))
        if rank == 0 and (time.time() - saved > 60 or fraction >= 1):
            saved = time.time()
            save_atomically(_checkpoint(optimizer, fraction), out)
            mean = sum(losses) / len(losses)
            print(
                f"{fraction:.3f} step {optimizer.steps} loss {mean:.4f} clips {len(pool.captions)}",
                flush=True,
            )
            losses.clear()
            pool.refresh()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latents", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--lr", type=float, default=1.0)
    args = parser.parse_args()
    launch(
        train,
        args.workers,
        29573,
        latents=args.latents,
        out=args.out,
        seconds=args.minutes * 60,
        resume=args.resume,
        lr=args.lr,
    )


if __name__ == "__main__":
    main()
