"""Procedural video clips and their captions.

A scene is one or two plainly coloured objects that move in a straight line (or stay) over a static,
softly textured background. Everything is drawn from a seeded random generator, so no data set is needed.

Objects and backgrounds use different colour words on purpose: with a shared word ("red" for both) a small
text encoder mixes up which of the two was meant.
"""

import math
import random
import zlib
from dataclasses import dataclass, replace

import torch

SIZE = 128
FRAMES = 17

OBJECT_COLOURS = {
    "red": (230, 30, 35),
    "green": (40, 215, 60),
    "blue": (50, 90, 255),
    "yellow": (250, 225, 40),
    "magenta": (240, 50, 220),
    "cyan": (40, 225, 235),
    "white": (250, 250, 250),
}
BACKGROUND_COLOURS = {
    "navy": (30, 38, 95),
    "maroon": (95, 30, 38),
    "olive": (90, 98, 40),
    "teal": (20, 88, 92),
    "gray": (105, 105, 110),
    "beige": (190, 172, 140),
}
SHAPES = ("ball", "box", "triangle", "diamond")
PATTERNS = ("plain", "striped", "checked", "dotted")
MOTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}
FUNCTION_WORDS = ("a", "and", "over", "moves", "stays", "background")
VOCABULARY = (*FUNCTION_WORDS, *OBJECT_COLOURS, *SHAPES, *MOTIONS, *BACKGROUND_COLOURS, *PATTERNS)


@dataclass(frozen=True)
class Thing:
    """One object: the words that describe it, and where it is (pixels, of a SIZE x SIZE picture)."""

    colour: str
    shape: str
    motion: str
    rgb: tuple[float, float, float]
    radius: float
    start: tuple[float, float]
    step: tuple[float, float]  # pixels per frame

    def phrase(self) -> str:
        verb = "stays" if self.motion == "still" else "moves"
        return f"a {self.colour} {self.shape} {verb} {self.motion}"

    def at(self, frame: float) -> tuple[float, float]:
        return self.start[0] + frame * self.step[0], self.start[1] + frame * self.step[1]


@dataclass(frozen=True)
class Scene:
    things: tuple[Thing, ...]
    background: str
    pattern: str
    rgb: tuple[float, float, float]
    angle: float
    period: float
    phase: float
    contrast: float

    def caption(self) -> str:
        phrases = " and ".join(thing.phrase() for thing in self.things)
        return f"{phrases} over a {self.background} {self.pattern} background"


def held_out(thing: Thing, background: str) -> bool:
    """True for the one in eight (colour, shape, motion, background) combinations never trained on."""
    key = f"{thing.colour} {thing.shape} {thing.motion} {background}"
    return zlib.crc32(key.encode()) % 8 == 0


def _place(rng: random.Random, motion: str, radius: float, frames: int):
    """A start and a step that keep the object inside the picture for the whole clip."""
    low, high = radius + 3, SIZE - radius - 3
    travel = rng.uniform(42, min(66, high - low))
    direction = MOTIONS[motion]
    start = []
    for axis in direction:
        near = low + (travel if axis < 0 else 0)
        far = high - (travel if axis > 0 else 0)
        start.append(rng.uniform(near, far))
    steps = max(frames - 1, 1)
    return tuple(start), tuple(axis * travel / steps for axis in direction)


def _sample_thing(rng: random.Random, frames: int, radii: tuple[float, float]) -> Thing:
    colour, shape, motion = (rng.choice(tuple(words)) for words in (OBJECT_COLOURS, SHAPES, MOTIONS))
    radius = rng.uniform(*radii)
    start, step = _place(rng, motion, radius, frames)
    return Thing(colour, shape, motion, OBJECT_COLOURS[colour], radius, start, step)


def _apart(first: Thing, second: Thing, frames: int) -> bool:
    """Two objects never touch (their order in depth is not in the caption) and differ in colour."""
    gap = first.radius + second.radius + 4
    clear = all(math.dist(first.at(f), second.at(f)) > gap for f in range(frames))
    return clear and first.colour != second.colour


def sample_scene(
    rng: random.Random, frames: int = FRAMES, held: bool = False, count: int | None = None
) -> Scene:
    """Draw a scene; held=True draws only combinations that training never sees, False only the others."""
    count = count or (1 if rng.random() < 0.7 else 2)
    while True:
        background = rng.choice(tuple(BACKGROUND_COLOURS))
        things = tuple(_sample_thing(rng, frames, (13, 19) if count == 1 else (12, 16)) for _ in range(count))
        if any(held_out(thing, background) != held for thing in things):
            continue
        if count == 2 and not _apart(*things, frames):
            continue
        return Scene(
            things=things,
            background=background,
            pattern=rng.choice(PATTERNS),
            rgb=BACKGROUND_COLOURS[background],
            angle=rng.choice((0, 45, 90, 135)) * math.pi / 180,
            period=rng.uniform(26, 40),
            phase=rng.random(),
            contrast=22,
        )


def recolour(scene: Scene, rng: random.Random) -> Scene:
    """The scene in random colours: the VAE must hold any colour, not only those that have a word."""

    def colour():
        return tuple(rng.uniform(0, 255) for _ in range(3))

    things = tuple(replace(thing, rgb=colour()) for thing in scene.things)
    return replace(scene, things=things, rgb=colour(), contrast=rng.uniform(5, 40))


def _background(scene: Scene, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The texture in -1..1; smooth, because the VAE keeps only one number for about forty."""
    across = x * math.cos(scene.angle) + y * math.sin(scene.angle)
    along = y * math.cos(scene.angle) - x * math.sin(scene.angle)
    u = 2 * math.pi * (across / scene.period + scene.phase)
    v = 2 * math.pi * (along / scene.period + scene.phase)
    if scene.pattern == "striped":
        return torch.tanh(2 * torch.sin(u))
    if scene.pattern == "checked":
        return torch.tanh(3 * torch.sin(u) * torch.sin(v))
    if scene.pattern == "dotted":
        return 2 * torch.sigmoid(3 * (torch.cos(u) + torch.cos(v) - 1)) - 1
    middle = (math.cos(scene.angle) + math.sin(scene.angle)) * SIZE / 2
    return (across - middle) * 1.2 / SIZE


def coverage(thing: Thing, dx: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
    """How much of each pixel the object covers (0..1): a signed distance, clipped over one pixel."""
    r = thing.radius
    if thing.shape == "ball":
        distance = (dx * dx + dy * dy).sqrt() - r
    elif thing.shape == "box":
        distance = torch.maximum(dx.abs(), dy.abs()) - 0.86 * r
    elif thing.shape == "diamond":
        distance = (dx.abs() + dy.abs() - 1.15 * r) * math.sqrt(0.5)
    else:  # a triangle, point up: a flat bottom and two slanted sides
        distance = torch.maximum(dy - 0.75 * r, (2 * dx.abs() - dy - 1.05 * r) / math.sqrt(5))
    return (0.5 - distance).clamp(0, 1)


def render(scene: Scene, frames: int = FRAMES, first: float = 0, window: tuple[int, int, int] = (0, 0, SIZE)):
    """Draw the scene -> (clip 3 x frames x size x size in -1..1, object mask 1 x frames x size x size).

    window = (left, top, size) draws a square crop only; first is the number of the first frame.
    """
    left, top, size = window
    y, x = torch.meshgrid(torch.arange(size) + top + 0.5, torch.arange(size) + left + 0.5, indexing="ij")
    texture = _background(scene, x, y)
    clip = torch.tensor(scene.rgb, dtype=torch.float32).view(3, 1, 1, 1) + scene.contrast * texture
    clip = clip.expand(3, frames, size, size)
    mask = torch.zeros(1, frames, size, size)
    times = torch.arange(frames) + first
    for thing in scene.things:
        dx = x - (thing.start[0] + times * thing.step[0]).view(-1, 1, 1)
        dy = y - (thing.start[1] + times * thing.step[1]).view(-1, 1, 1)
        cover = coverage(thing, dx, dy).expand(frames, size, size)
        rgb = torch.tensor(thing.rgb, dtype=torch.float32).view(3, 1, 1, 1)
        clip = torch.lerp(clip, rgb.expand_as(clip), cover)
        mask = torch.maximum(mask, cover)
    return (clip / 127.5 - 1).clamp(-1, 1), mask
