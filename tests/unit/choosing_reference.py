"""RAS, HSA and Astraea, written a second time from the words of their definitions, token by token.

Velocities are [C, T, H, W] arrays; a token is a patch of 1x2x2 positions. A rule is asked for each step which
tokens it computes (`computes`, a bool per token), and hears the velocity after it (`hear`).
"""

import math

import numpy as np


def boxes(velocity):
    """The values [C, 4] of each token, frame by frame, row by row."""
    c, frames, height, width = velocity.shape
    return [
        velocity[:, t, y : y + 2, x : x + 2].reshape(c, 4)
        for t in range(frames)
        for y in range(0, height, 2)
        for x in range(0, width, 2)
    ]


def at_least(share, tokens):
    """The smallest number of tokens that is this share of them, or more."""
    return next(count for count in range(tokens + 1) if count >= share * tokens - 1e-6)


def take(scores, count):
    """The tokens with the highest scores, one after the other; the first of equal ones first."""
    taken = [False] * len(scores)
    for _ in range(count):
        left = [place for place, each in enumerate(taken) if not each]
        taken[max(left, key=lambda place: (scores[place], -place))] = True
    return taken


class Rule:
    def __init__(self, tokens, steps, warmup, cooldown):
        self.tokens, self.steps, self.warmup, self.cooldown = tokens, steps, warmup, cooldown

    def computes(self, step):
        """Which tokens, and whether the step belongs to warm-up or cool-down."""
        if step < self.warmup or step >= self.steps - self.cooldown:
            return [True] * self.tokens, True
        return self.between(step - self.warmup), False

    def kind(self, step, mask, outside):
        if outside:
            return "full"
        return "refresh" if all(mask) else "chosen" if any(mask) else "skip"


class Ras(Rule):
    def __init__(
        self, tokens, steps, *, warmup, cooldown, ratio, reset_interval, starvation, active, drops=None
    ):
        super().__init__(tokens, steps, warmup, cooldown)
        self.ratio, self.interval, self.k, self.active = ratio, reset_interval, starvation, active
        self.drops, self.std = drops or [0] * tokens, None

    def between(self, offset):
        dropped = math.floor((1 - self.ratio) * self.tokens + 1e-6)
        if offset % self.interval == 0 or dropped == 0:
            return [True] * self.tokens
        if self.active == "low":  # the smallest of std / e^(k D)
            scores = [
                -std / math.exp(self.k * drops) for std, drops in zip(self.std, self.drops, strict=True)
            ]
        else:
            scores = [std * math.exp(self.k * drops) for std, drops in zip(self.std, self.drops, strict=True)]
        taken = take(scores, self.tokens - dropped)
        self.drops = [drops + (not own) for drops, own in zip(self.drops, taken, strict=True)]
        return taken

    def hear(self, step, velocity):
        self.std = []
        for box in boxes(velocity):
            channels = len(box)
            squares = ((box - box.sum(0) / channels) ** 2).sum(0) / (channels - 1)
            self.std.append(np.sqrt(squares).sum() / 4)


class Hsa(Rule):
    def __init__(self, tokens, steps, *, warmup, cooldown, shares, divisors):
        super().__init__(tokens, steps, warmup, cooldown)
        self.shares, self.divisors, self.seen = shares, divisors, {}

    def between(self, offset):
        before, last = boxes(self.seen[self.warmup - 2]), boxes(self.seen[self.warmup - 1])
        change = [abs(b - a).sum() / abs(a).sum() for a, b in zip(before, last, strict=True)]
        due, start = [False] * self.tokens, 0
        ranks = sorted(range(self.tokens), key=lambda token: (-change[token], token))
        for group, every in enumerate(self.divisors):
            last_group = group == len(self.divisors) - 1
            end = self.tokens if last_group else at_least(sum(self.shares[: group + 1]), self.tokens)
            for token in ranks[start:end]:
                due[token] = offset % every == 0
            start = end
        return due

    def hear(self, step, velocity):
        self.seen[step] = velocity.copy()


class Astraea(Rule):
    def __init__(self, tokens, steps, *, warmup, cooldown, budgets, penalty):
        super().__init__(tokens, steps, warmup, cooldown)
        self.budgets, self.weight = budgets, penalty
        self.outputs = [[] for _ in range(tokens)]  # of each token, all that were computed
        self.missed = [0] * tokens
        self.latest = [True] * tokens

    def computes(self, step):
        self.latest, outside = super().computes(step)
        return self.latest, outside

    def between(self, offset):
        if offset == 0:
            return [True] * self.tokens
        count = at_least(self.budgets[(offset - 1) % len(self.budgets)], self.tokens)
        change = [np.sqrt(((own[-1] - own[-2]) ** 2).sum()) for own in self.outputs]
        mean = sum(change) / self.tokens
        both = zip(change, self.missed, strict=True)
        return take([each / mean + self.weight * math.exp(missed) for each, missed in both], count)

    def hear(self, step, velocity):
        for token, box in enumerate(boxes(velocity)):
            if self.latest[token]:
                self.outputs[token].append(box.copy())
                self.missed[token] = 0
            else:
                self.missed[token] += 1


RULES = {"ras": Ras, "hsa": Hsa, "astraea": Astraea}
