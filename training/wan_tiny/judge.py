"""Judge a model folder: generate held-out captions and measure from the frames whether they came true.

No network looks at the frames: the palettes of data.py are far apart, so nearest-colour labels find the
objects, their centres give the motion, and the mean of the rest gives the background.
"""

import argparse
import json
import math
import platform
import random
import time
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import UniPCMultistepScheduler, WanPipeline

from training.wan_tiny import data
from training.wan_tiny.publish import ASSET
from training.wan_tiny.text import MAX_LENGTH
from training.wan_tiny.vae import held_out_psnr

SMALLEST_OBJECT = 100  # pixels
STILL_BELOW, MOVES_ABOVE = 8, 16  # pixels over the clip
ATTRIBUTES = ("object_colour", "motion", "background")


@dataclass
class Settings:
    steps: int = 20
    guidance: float = 3.0
    shift: float = 3.0
    seed: int = 1000


def held_out_scenes(count: int, objects: int | None, seed: int = 11) -> list[data.Scene]:
    """Every object in a combination that training never saw; objects=None: three scenes in ten have two."""
    rng = random.Random(seed)
    scenes = {}
    while len(scenes) < count:
        number = objects or (2 if len(scenes) % 10 in (2, 5, 8) else 1)
        scene = data.sample_scene(rng, held=True, count=number)
        scenes.setdefault(scene.caption(), scene)
    return list(scenes.values())


@torch.no_grad()
def generate(
    pipe: WanPipeline, captions: list[str], settings: Settings, first: int = 0
) -> list[torch.Tensor]:
    """Clips of (frames, height, width, 3) in 0..255; caption number i always gets seed + i."""
    generators = [torch.Generator().manual_seed(settings.seed + first + i) for i in range(len(captions))]
    video = pipe(
        prompt=captions,
        negative_prompt="",
        height=data.SIZE,
        width=data.SIZE,
        num_frames=data.FRAMES,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance,
        generator=generators,
        max_sequence_length=MAX_LENGTH,
        output_type="pt",
    ).frames
    return [clip.permute(0, 2, 3, 1).float() * 255 for clip in video]


def label_pixels(frames: torch.Tensor) -> torch.Tensor:
    """For each pixel the number of the nearest object colour, or -1 where a background colour is nearer."""
    palette = torch.tensor([*data.OBJECT_COLOURS.values(), *data.BACKGROUND_COLOURS.values()]).float()
    distance = torch.cdist(frames.reshape(-1, 3), palette).view(*frames.shape[:3], -1)
    nearest = distance.argmin(-1)
    return torch.where(nearest < len(data.OBJECT_COLOURS), nearest, -1)


def _centre(mask: torch.Tensor) -> tuple[float, float]:
    y, x = mask.nonzero(as_tuple=True)
    return (float(x.float().mean()), float(y.float().mean())) if len(x) else (math.nan, math.nan)


def motion_of(mask: torch.Tensor) -> str:
    """The word for how a (frames, height, width) mask moves between the first and the last frames."""
    early, late = _centre(mask[:2].any(0)), _centre(mask[-2:].any(0))
    move = [b - a for a, b in zip(early, late, strict=True)]
    if any(math.isnan(m) for m in move):
        return "lost"
    if max(abs(m) for m in move) < STILL_BELOW:
        return "still"
    x, y = move
    if max(abs(x), abs(y)) < MOVES_ABOVE or min(abs(x), abs(y)) > 0.5 * max(abs(x), abs(y)):
        return "unclear"
    if abs(x) > abs(y):
        return "right" if x > 0 else "left"
    return "down" if y > 0 else "up"


def shape_of(mask: torch.Tensor) -> str:
    """The shape that overlaps a (height, width) mask best when drawn with the same area and centre."""
    area, (cx, cy) = float(mask.sum()), _centre(mask)
    radius = {
        "ball": math.sqrt(area / math.pi),
        "box": math.sqrt(area) / 1.72,
        "triangle": math.sqrt(area / 1.62),
        "diamond": math.sqrt(area / 2) / 1.15,
    }
    y, x = torch.meshgrid(*(torch.arange(n) for n in mask.shape), indexing="ij")
    overlap = {}
    for shape, r in radius.items():
        lift = 0.15 * r if shape == "triangle" else 0.0  # the centre of its area lies below its origin
        thing = data.Thing("", shape, "", (0, 0, 0), r, (0, 0), (0, 0))
        drawn = data.coverage(thing, x - cx, y - cy + lift) > 0.5
        overlap[shape] = float((drawn & mask).sum() / (drawn | mask).sum())
    return max(overlap, key=overlap.get)


def measure(frames: torch.Tensor, count: int) -> dict:
    """What a clip shows: its `count` largest objects {colour: (motion, shape)}, background and flicker."""
    labels = label_pixels(frames)
    areas = {name: float((labels == i).sum()) / len(frames) for i, name in enumerate(data.OBJECT_COLOURS)}
    found = [name for name in areas if areas[name] >= SMALLEST_OBJECT]
    found = sorted(found, key=areas.get, reverse=True)[:count]
    objects = {}
    for name in found:
        mask = labels == list(data.OBJECT_COLOURS).index(name)
        middle = mask[len(mask) // 2]
        objects[name] = (motion_of(mask), shape_of(middle) if middle.any() else "lost")
    ground = labels == -1
    mean = frames[ground].mean(0)
    names, colours = zip(*data.BACKGROUND_COLOURS.items(), strict=True)
    background = names[int(torch.cdist(mean[None], torch.tensor(colours).float()).argmin())]
    always = ground.all(0)
    flicker = float(frames[:, always].diff(dim=0).abs().mean()) if always.any() else math.nan
    return {"objects": objects, "background": background, "flicker": flicker}


def mark(scene: data.Scene, seen: dict) -> dict:
    """Right or wrong per attribute; with two objects both must be right."""
    objects = seen["objects"]
    got = [objects.get(thing.colour, ("lost", "lost")) for thing in scene.things]
    if len(scene.things) == 1 and objects:  # motion and shape count even if the colour is wrong
        got = list(objects.values())
    return {
        "object_colour": set(objects) == {thing.colour for thing in scene.things},
        "motion": all(motion == thing.motion for (motion, _), thing in zip(got, scene.things, strict=True)),
        "background": seen["background"] == scene.background,
        "shape": all(shape == thing.shape for (_, shape), thing in zip(got, scene.things, strict=True)),
    }


def summarise(rows: list[dict]) -> dict:
    """Percentages; all_three is colour, motion and background right in the same clip (shape is an extra)."""
    parts = {"all": rows} | {f"{n}_object": [r for r in rows if r["objects"] == n] for n in (1, 2)}
    summary = {}
    for part, chosen in parts.items():
        share = {
            a: 100 * sum(r["right"][a] for r in chosen) / max(len(chosen), 1) for a in (*ATTRIBUTES, "shape")
        }
        three = sum(all(r["right"][a] for a in ATTRIBUTES) for r in chosen)
        summary[part] = {"clips": len(chosen), **share, "all_three": 100 * three / max(len(chosen), 1)}
    summary["background_flicker"] = sum(r["seen"]["flicker"] for r in rows) / len(rows)
    return summary


def judge(
    pipe: WanPipeline, settings: Settings, count: int = 40, objects: int | None = None, batch: int = 4
) -> list[dict]:
    pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config, flow_shift=settings.shift)
    pipe.set_progress_bar_config(disable=True)
    scenes, rows = held_out_scenes(count, objects), []
    for first in range(0, count, batch):
        part = scenes[first : first + batch]
        clips = generate(pipe, [scene.caption() for scene in part], settings, first)
        for i, (scene, clip) in enumerate(zip(part, clips, strict=True)):
            seen = measure(clip, len(scene.things))
            right = mark(scene, seen)
            number = len(scene.things)
            row = {"caption": scene.caption(), "seed": settings.seed + first + i, "objects": number}
            rows.append(row | {"seen": seen, "right": right})
    return rows


def report(args, settings: Settings, rows: list[dict], psnr: list[float], seconds: float) -> dict:
    return {
        "what": "wan-tiny judged on held-out captions; right or wrong is measured from the frames",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
        },
        "settings": vars(settings) | {"dtype": args.dtype, "negative_prompt": "", "captions": args.count},
        "summary": summarise(rows),
        "vae_psnr_db": {
            "mean": sum(psnr) / max(len(psnr), 1),
            "min": min(psnr, default=0),
            "clips": len(psnr),
        },
        "seconds": seconds,
        "rows": rows,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ASSET)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--objects", type=int, choices=(1, 2), help="default: one or two, seven to three")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=0, help="0: as many as torch likes")
    parser.add_argument("--psnr-clips", type=int, default=20)
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--guidance", type=float, default=Settings.guidance)
    parser.add_argument("--shift", type=float, help="default: the one in the folder")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    pipe = WanPipeline.from_pretrained(args.model, dtype=getattr(torch, args.dtype))
    shift = args.shift or pipe.scheduler.config.flow_shift
    settings = Settings(args.steps, args.guidance, shift)
    start = time.time()
    rows = judge(pipe, settings, args.count, args.objects)
    result = report(args, settings, rows, held_out_psnr(pipe.vae, args.psnr_clips), time.time() - start)
    print(json.dumps({k: result[k] for k in ("settings", "summary", "vae_psnr_db", "seconds")}, indent=1))
    for row in rows:
        wrong = [name for name, right in row["right"].items() if not right]
        if wrong:
            print(f"wrong {wrong}: {row['caption']} -> {row['seen']}")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
