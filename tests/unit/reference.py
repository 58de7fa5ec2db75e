"""The tokens room written down a second time: plain loops, slow and obvious.

It follows the words of the method, not the code under test, and shares nothing with it.
Everything is numpy in float64 and Python integers.
"""

import math
from collections import Counter

import numpy as np

STATIC, MODERATE, ACTIVE = 1, 2, 3


def boxes(latent, block):
    """Block index -> the three ranges of latent positions it covers, cut off at the border."""
    found = {}
    for a in range(math.ceil(latent[0] / block[0])):
        for b in range(math.ceil(latent[1] / block[1])):
            for c in range(math.ceil(latent[2] / block[2])):
                found[a, b, c] = tuple(
                    range(index * edge, min((index + 1) * edge, size))
                    for index, edge, size in zip((a, b, c), block, latent, strict=True)
                )
    return found


def empty_blocks(latent, block):
    return np.zeros([math.ceil(size / edge) for size, edge in zip(latent, block, strict=True)])


def expand_blocks(values, latent, block):
    expanded = np.zeros(latent)
    for t in range(latent[0]):
        for h in range(latent[1]):
            for w in range(latent[2]):
                expanded[t, h, w] = values[t // block[0], h // block[1], w // block[2]]
    return expanded


def distances(vectors):
    """The matrix of L2 distances between all pairs of channel vectors."""
    matrix = np.zeros((len(vectors), len(vectors)))
    for a, left in enumerate(vectors):
        for b, right in enumerate(vectors):
            matrix[a, b] = math.sqrt(sum((x - y) ** 2 for x, y in zip(left, right, strict=True)))
    return matrix


def dynamics(matrix_per_step):
    """Mean absolute change of the matrix over half the history; every entry counts."""
    lag = len(matrix_per_step) // 2
    changes = [
        np.abs(matrix_per_step[i + lag] - matrix_per_step[i]).mean()
        for i in range(len(matrix_per_step) - lag)
    ]
    return sum(changes) / len(changes)


def min_max(values):
    if values.max() == 0:
        return np.zeros_like(values)
    if values.max() == values.min():
        return np.ones_like(values)
    return (values - values.min()) / (values.max() - values.min())


def block_scores(velocities, block, temporal_weight=0.7):
    velocities = np.asarray(velocities, dtype=np.float64)
    latent = velocities.shape[2:]
    raw = empty_blocks(latent, block)
    for index, (ts, hs, ws) in boxes(latent, block).items():
        temporal = [
            dynamics([distances([step[:, t, h, w].tolist() for t in ts]) for step in velocities])
            for h in hs
            for w in ws
        ]
        spatial = [
            dynamics([distances([step[:, t, h, w].tolist() for h in hs for w in ws]) for step in velocities])
            for t in ts
        ]
        weight = temporal_weight if len(ts) > 1 else 0.0
        raw[index] = weight * np.mean(temporal) + (1 - weight) * np.mean(spatial)
    return min_max(raw)


def last_change(velocities, block):
    velocities = np.asarray(velocities, dtype=np.float64)
    latent = velocities.shape[2:]
    raw = empty_blocks(latent, block)
    for index, (ts, hs, ws) in boxes(latent, block).items():
        norms = [
            math.sqrt(sum((velocities[-1, :, t, h, w] - velocities[-2, :, t, h, w]) ** 2))
            for t in ts
            for h in hs
            for w in ws
        ]
        raw[index] = sum(norms) / len(norms)
    return min_max(raw)


def smooth_spread(velocities, block):
    velocities = np.asarray(velocities, dtype=np.float64)
    latent = velocities.shape[2:]
    raw = empty_blocks(latent, block)
    for index, (ts, hs, ws) in boxes(latent, block).items():
        positions = [(t, h, w) for t in ts for h in hs for w in ws]
        changes = [math.dist(velocities[-1, :, t, h, w], velocities[-2, :, t, h, w]) for t, h, w in positions]
        spreads = [np.std(velocities[-1, :, t, h, w]) for t, h, w in positions]
        raw[index] = np.mean(changes) * math.sqrt(np.mean(spreads))
    return min_max(smoothed(raw))


def smoothed(scores):
    """A third each: the block, its neighbours in time, those in space; beyond the border it is its own."""
    found = np.zeros(scores.shape)
    for index in np.ndindex(scores.shape):
        near = []
        for axis, step in [(0, -1), (0, 1), (1, -1), (1, 1), (2, -1), (2, 1)]:
            there = list(index)
            there[axis] += step
            exists = 0 <= there[axis] < scores.shape[axis]
            near.append(scores[tuple(there) if exists else index])
        found[index] = (scores[index] + sum(near[:2]) / 2 + sum(near[2:]) / 4) / 3
    return found


def connected(cells):
    """The 8-connected components of a set of cells."""
    cells, components = set(cells), []
    while cells:
        component, frontier = set(), [cells.pop()]
        while frontier:
            h, w = frontier.pop()
            component.add((h, w))
            for neighbour in [(h + dh, w + dw) for dh in (-1, 0, 1) for dw in (-1, 0, 1)]:
                if neighbour in cells:
                    cells.remove(neighbour)
                    frontier.append(neighbour)
        components.append(component)
    return components


def surroundings(component):
    around = {(h + dh, w + dw) for h, w in component for dh, dw in ((-1, 0), (1, 0), (0, -1), (0, 1))}
    return around - component


def enhance_slice(scores, strength, distance):
    height, width = scores.shape
    raised = scores.copy()
    mean = scores.mean()
    std = scores.std(ddof=1) if scores.size > 1 else 0.0
    contour = [(h, w) for h in range(height) for w in range(width) if scores[h, w] > mean + 0.3 * std]
    if not contour:
        return raised

    def away(cell):
        return min(math.hypot(cell[0] - h, cell[1] - w) for h, w in contour)

    boost = strength * sum(scores[cell] for cell in contour) / len(contour)
    inner = [(h, w) for h in range(1, height - 1) for w in range(1, width - 1) if scores[h, w] < mean]
    for component in connected(inner):
        around = surroundings(component)
        near = [cell for cell in around if away(cell) <= 2]
        if len(component) < 2 or len(near) / len(around) < 0.3:
            continue
        for cell in component:
            if away(cell) <= distance:
                raised[cell] += boost * math.exp(-away(cell) / (distance / 2))
    return raised


def enhance(scores, strength=0.8, distance=1):
    scores = np.asarray(scores, dtype=np.float64)
    return np.stack([enhance_slice(layer, strength, distance) for layer in scores])


def level(score, static_threshold, moderate_threshold):
    if static_threshold > 0 and score <= static_threshold:
        return STATIC
    if moderate_threshold > 0 and score <= moderate_threshold:
        return MODERATE
    return ACTIVE


def token_levels(scores, latent, patch, block, static_threshold, moderate_threshold):
    positions = expand_blocks(np.asarray(scores, dtype=np.float64), latent, block)
    tokens = []
    for t in range(0, latent[0], patch[0]):
        for h in range(0, latent[1], patch[1]):
            for w in range(0, latent[2], patch[2]):
                votes = Counter(
                    level(positions[t + dt, h + dh, w + dw], static_threshold, moderate_threshold)
                    for dt in range(patch[0])
                    for dh in range(patch[1])
                    for dw in range(patch[2])
                )
                tokens.append(max(votes, key=lambda one, votes=votes: (votes[one], one)))
    return tokens


def schedule(steps, warmup, cooldown, static_interval, moderate_interval):
    kinds = []
    for step in range(1, steps + 1):  # one-based, as in the paper
        offset = step - warmup - 1
        if step <= warmup or step > steps - cooldown:
            kinds.append("full")
        elif offset % static_interval == 0:
            kinds.append("refresh")
        elif offset % moderate_interval == 0:
            kinds.append("moderate")
        else:
            kinds.append("active")
    return kinds


def plan_order(levels):
    return [row for wanted in (ACTIVE, MODERATE, STATIC) for row, one in enumerate(levels) if one == wanted]
