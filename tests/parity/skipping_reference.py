"""Runs that skip steps or forecast velocities, over diffusers' own transformer, from the words of the rules.

Arrays are [C, T, H, W]; a token is a column of C channels over a patch of 1x2x2 positions.
"""

import math

import numpy as np
import torch

from tests.parity.jano_reference import PATCH, begin


def by_token(array):
    """[C, T, H, W] -> [tokens, values]."""
    c, t, h, w = array.shape
    boxes = array.reshape(c, t, h // PATCH[1], PATCH[1], w // PATCH[2], PATCH[2])
    return boxes.transpose(1, 2, 4, 0, 3, 5).reshape(-1, c * PATCH[1] * PATCH[2])


def by_place(rows, shape):
    """The way back."""
    c, t, h, w = shape
    boxes = rows.reshape(t, h // PATCH[1], w // PATCH[2], c, PATCH[1], PATCH[2])
    return boxes.transpose(3, 0, 1, 4, 2, 5).reshape(shape)


class Walk:
    """Of each token (sigma, values) of all its computations, and whether it follows its line."""

    def __init__(self):
        self.seen, self.follows, self.error = [], None, None

    def take(self, rows, sigma):
        """All tokens were computed."""
        held = np.linalg.norm(rows - self.seen[-1][1], axis=1) if self.seen else np.linalg.norm(rows, axis=1)
        line = np.full(len(rows), np.inf)
        if len(self.seen) > 1:
            line = np.linalg.norm(rows - self.line(sigma), axis=1)
        self.follows = line < held
        self.error = np.minimum(line, held).mean() / np.linalg.norm(rows, axis=1).mean()
        self.seen.append((sigma, rows))

    def line(self, sigma):
        (s0, v0), (s1, v1) = self.seen[-2:]
        return v1 + (v1 - v0) * (sigma - s1) / (s1 - s0)

    def guess(self, sigma, forecast):
        if not forecast or len(self.seen) < 2:
            return self.seen[-1][1]
        return np.where(self.follows[:, None], self.line(sigma), self.seen[-1][1])


class Lines:
    """The same token by token, where a step computes some of them."""

    def __init__(self):
        self.seen, self.follows = {}, {}

    def take(self, fresh, computed, sigma):
        rows = by_token(fresh.double().numpy())
        for token in np.flatnonzero(computed.numpy()):
            own = self.seen.setdefault(token, [])
            if len(own) > 1:
                off = [np.linalg.norm(rows[token] - guess) for guess in (self.line(token, sigma), own[-1][1])]
                self.follows[token] = off[0] < off[1]
            own.append((sigma, rows[token]))

    def line(self, token, sigma):
        (s0, v0), (s1, v1) = self.seen[token][-2:]
        return v1 + (v1 - v0) * (sigma - s1) / (s1 - s0)

    def guess(self, sigma, held):
        rows = by_token(held[0].double().numpy())
        for token, own in self.seen.items():
            if self.follows.get(token) and own[-1][0] != sigma:
                rows[token] = self.line(token, sigma)
        return torch.from_numpy(by_place(rows, tuple(held.shape[1:]))).float()[None]


class Uniform:
    def __init__(self, warmup, cooldown, interval, velocity):
        self.warmup, self.cooldown, self.interval, self.forecast = (
            warmup,
            cooldown,
            interval,
            velocity == "forecast",
        )

    def computes(self, step, steps):
        outside = step < self.warmup or step >= steps - self.cooldown
        return outside or (step - self.warmup) % self.interval == self.interval - 1

    def hear(self, step, error):
        pass


class Forecast:
    forecast = True

    def __init__(self, warmup, cooldown, tau, max_interval):
        self.warmup, self.cooldown, self.tau, self.most, self.done = warmup, cooldown, tau, max_interval, [-1]
        self.wait = 1

    def computes(self, step, steps):
        outside = step < self.warmup or step >= steps - self.cooldown
        return outside or step >= self.done[-1] + self.wait

    def hear(self, step, error):
        n = step - self.done[-1]
        self.wait = max(1, min(math.floor(n * math.sqrt(self.tau / error)), self.most, 2 * n))
        self.done.append(step)


@torch.inference_mode()
def skipping(pipeline, prompt, seed, settings, policy):
    """The latent [C, T, H, W] and of every step whether it was computed."""
    texts, latent, scheduler = begin(pipeline, prompt, seed, settings)
    walk, computed = Walk(), []
    for step, timestep in enumerate(scheduler.timesteps):
        sigma = float(scheduler.sigmas[step])
        computed.append(policy.computes(step, len(scheduler.timesteps)))
        if computed[-1]:
            cond, uncond = (
                pipeline.transformer(latent, timestep[None], text, return_dict=False)[0] for text in texts
            )
            guided = uncond + settings["sampling.guidance"] * (cond - uncond)
            walk.take(by_token(guided[0].double().numpy()), sigma)
            policy.hear(step, walk.error)
        guess = by_place(walk.guess(sigma, policy.forecast), tuple(latent.shape[1:]))
        latent = scheduler.step(torch.from_numpy(guess).float()[None], timestep, latent, return_dict=False)[0]
    return latent[0], computed
