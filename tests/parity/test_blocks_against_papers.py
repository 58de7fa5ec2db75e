"""Caches inside the blocks against the methods in plain loops, from their papers' words; with guidance."""

import math

import pytest
import torch

from jano_dist.config.policies import POLICIES
from jano_dist.mesh import Mesh
from jano_dist.models.wan import WanTransformer
from jano_dist.policies import make_policy
from jano_dist.reuse import RatioRecorder, Setting
from tests.parity.blocks_reference import (
    LAYERS,
    SHAPE,
    STEPS,
    TEXTS,
    TIMESTEPS,
    TOKENS,
    Forward,
    drawn,
    small_wan,
    walk,
)

PARTS = ("attn1", "attn2", "ffn")


def walked(caches, wan=None):
    """Latents after every step by our adapter with these caches, one per branch, and each step's work."""
    ours = WanTransformer(wan or small_wan())
    branches, rows, work = [ours.branch({"text": text}) for text in TEXTS], torch.arange(TOKENS), []

    def velocity(step, branch, latent):
        timestep = torch.tensor(TIMESTEPS[step], dtype=torch.float64)
        out = ours.forward(latent, timestep, branches[branch], rows, caches[branch])
        work.append(dict(caches[branch].work))
        return ours.unpatchify(out, SHAPE)

    with torch.inference_mode():
        return walk(velocity), work[::2], work[1::2]


def ours(name, **options):
    settings = POLICIES[name].model_validate({"name": name, **options}).model_dump()
    policy = make_policy(settings, steps=STEPS, latent=SHAPE, patch=(1, 2, 2))
    return walked(policy.caches(Setting(Mesh.single(), LAYERS, 2, TIMESTEPS)))


def plain(velocity):
    wan = small_wan()
    with torch.inference_mode():
        return walk(
            lambda step, branch, latent: velocity(
                step, branch, Forward(wan, latent, TIMESTEPS[step], TEXTS[branch])
            )
        )


def stack(forward, x, first=0, parts=None):
    for layer in range(first, LAYERS):
        x = forward.block(layer, x, parts and (lambda *given, layer=layer: parts(layer, *given)))
    return x


def layers_computed(work):
    """By step, how many layers' self-attention was computed of all tokens."""
    return [each["attn1"] // TOKENS for each in work]


def close(one, other):
    assert (one - other).abs().max() <= 1e-5 * other.abs().max()  # diffusers' norms are float32


def test_the_reference_is_diffusers():
    wan, latent = small_wan(), drawn(5, 4, *SHAPE)
    forward = Forward(wan, latent, 300.0, TEXTS[0])
    theirs = wan(latent[None], torch.tensor([300.0]), TEXTS[0], return_dict=False)[0][0]
    close(forward.head(stack(forward, forward.x)), theirs)


@pytest.mark.parametrize("embedding", ["time", "projected"])
def test_tea_cache(embedding):
    """Its sum and its reset; the polynomial is (d^2 + d) / 10 + 0.02."""
    coefficients, threshold, first, last = (0.1, 0.1, 0.02), 0.6, 2, 1
    computed, state = [], {"sum": 0.0, "residuals": {}}

    def velocity(step, branch, forward):
        if branch == 0:
            now = forward.time if embedding == "time" else forward.projected.flatten(1)
            skip = first <= step < STEPS - last
            if skip:
                before = state["before"]
                change = float((now - before).abs().mean() / before.abs().mean())
                state["sum"] += change**2 / 10 + change / 10 + 0.02
                skip = state["sum"] < threshold
            state["before"] = now
            if not skip:
                state["sum"] = 0.0
                computed.append(step)
        if step in computed:
            y = stack(forward, forward.x)
            state["residuals"][branch] = y - forward.x
            return forward.head(y)
        return forward.head(forward.x + state["residuals"][branch])

    wanted = plain(velocity)
    latents, cond, uncond = ours(
        "teacache",
        threshold=threshold,
        coefficients=coefficients,
        embedding=embedding,
        first_steps=first,
        last_steps=last,
    )
    assert 3 < len(computed) < STEPS
    assert layers_computed(cond) == [LAYERS * (step in computed) for step in range(STEPS)]
    assert cond == uncond
    close(latents, wanted)


def test_first_block_cache():
    """One decision for both branches, from the cond branch's first block."""
    threshold, computed, before, rest = 0.6, [], {}, {}

    def velocity(step, branch, forward):
        y = forward.block(0, forward.x)
        if branch == 0:
            residual = y - forward.x
            if not before or (residual - before[0]).abs().mean() > threshold * before[0].abs().mean():
                before[0] = residual
                computed.append(step)
        if step in computed:
            z = stack(forward, y, first=1)
            rest[branch] = z - y
            return forward.head(z)
        return forward.head(y + rest[branch])

    wanted = plain(velocity)
    latents, cond, uncond = ours("fbcache", threshold=threshold)
    assert 1 < len(computed) < STEPS - 1
    assert layers_computed(cond) == [LAYERS if step in computed else 1 for step in range(STEPS)]
    assert cond == uncond
    close(latents, wanted)


def test_mag_cache():
    """Eq. 5 to 7: the error after k skipped steps is the sum of |1 - product of the ratios since|."""
    ratios = [1.0, 1.05, 1.02, 0.99, 0.97, 0.95, 0.96, 0.93, 0.9, 0.8]
    threshold, longest, computed, residuals = 0.13, 3, [], {}

    def velocity(step, branch, forward):
        if branch == 0:
            since = [*range(max(computed, default=0) + 1, step + 1)]
            error = sum(abs(1 - math.prod(ratios[since[0] : last + 1])) for last in since)
            if step < 2 or error > threshold or len(since) > longest:
                computed.append(step)
        if step in computed:
            y = stack(forward, forward.x)
            residuals[branch] = y - forward.x
            return forward.head(y)
        return forward.head(forward.x + residuals[branch])

    wanted = plain(velocity)
    settings = {"threshold": threshold, "max_skips": longest, "retention": 0.2}
    latents, cond, _ = ours("magcache", ratios=ratios, **settings)
    assert layers_computed(cond) == [LAYERS * (step in computed) for step in range(STEPS)]
    assert len(computed) < STEPS - 3
    close(latents, wanted)


def test_magnitude_ratios():
    ratios, norms = {0: [], 1: []}, {}

    def velocity(step, branch, forward):
        y = stack(forward, forward.x)
        now = (y - forward.x)[0].norm(dim=1)
        ratios[branch].append(float((now / norms[branch]).mean()) if step else 1.0)
        norms[branch] = now
        return forward.head(y)

    plain(velocity)
    recorders = [RatioRecorder(Setting(Mesh.single(), LAYERS, 2, TIMESTEPS)) for _ in range(2)]
    walked(recorders)
    for branch, recorder in enumerate(recorders):
        assert recorder.ratios == pytest.approx(ratios[branch], rel=1e-5)


@pytest.mark.parametrize(("interval", "order"), [(3, 0), (3, 1), (3, 2), (4, 1)])
def test_taylor_seer(interval, order):
    """Newton's divided forms, written out for the last computed values of every part."""
    first, known = 3, {}

    def velocity(step, branch, forward):
        full = step < first or (step - first + 1) % interval == 0

        def parts(layer, name, x, compute):
            history = known.setdefault((branch, layer, name), [])
            if full:
                history.append((step, compute(x)))
                return history[-1][1]
            (t0, f0), *older = reversed(history)
            k, result = step - t0, f0
            if order >= 1:
                (t1, f1), *older = older
                slope = (f0 - f1) / (t0 - t1)
                result = result + k * slope
            if order >= 2:
                (t2, f2) = older[0]
                result = result + k**2 / 2 * (slope - (f1 - f2) / (t1 - t2)) / (t0 - t1)
            return result

        return forward.head(stack(forward, forward.x, parts=parts))

    wanted = plain(velocity)
    latents, cond, uncond = ours("taylorseer", interval=interval, order=order, first_steps=first)
    full = [step < first or (step - first + 1) % interval == 0 for step in range(STEPS)]
    assert cond == uncond == [dict.fromkeys(PARTS, TOKENS * LAYERS * each) | {"scores": 0} for each in full]
    close(latents, wanted)


def test_pyramid_attention_broadcast():
    """Each branch has its own outputs."""
    ranges, low, high, kept = {"attn1": 2, "attn2": 3, "ffn": 1}, 150, 850, {}
    counts = dict.fromkeys(PARTS, 0)

    def velocity(step, branch, forward):
        def parts(layer, name, x, compute):
            place = (branch, layer, name)
            if step % ranges[name] == 0 or not low < TIMESTEPS[step] < high:
                kept[place] = compute(x)
                counts[name] += TOKENS
            return kept[place]

        return forward.head(stack(forward, forward.x, parts=parts))

    wanted = plain(velocity)
    latents, cond, uncond = ours("pab", self_range=2, cross_range=3, timesteps=(low, high))
    assert counts["attn2"] < counts["attn1"] < counts["ffn"]
    assert {name: sum(step[name] for step in (*cond, *uncond)) for name in PARTS} == counts
    close(latents, wanted)


def entropy(block, x, text):
    """Of the mean over heads of a token's attention over the text, per token of x [1, N, W]."""
    q, k = block.attn2.norm_q(block.attn2.to_q(x)), block.attn2.norm_k(block.attn2.to_k(text))
    q, k = (each[0].unflatten(1, (2, 12)).transpose(0, 1) for each in (q, k))
    weights = (q @ k.transpose(1, 2) / math.sqrt(12)).softmax(-1).mean(0)
    return [-sum(w * math.log(w + 1e-7) for w in row) for row in weights.tolist()]


@pytest.mark.parametrize("cross_ratio", [0.0, 0.3])
def test_toca(cross_ratio):
    interval, cross_interval, ratio, weight = 3, 6, 0.5, 0.25
    shares = {"ffn": ratio, "attn2": cross_ratio, "attn1": 0.0}
    kept, ages, entropies, picked = {}, {}, {}, set()

    def velocity(step, branch, forward):
        def parts(layer, name, x, compute):
            place, block = (branch, layer, name), forward.wan.blocks[layer]
            if step % (cross_interval if name == "attn2" else interval) == 0:
                rows = list(range(TOKENS))
                kept[place], ages[place] = x.new_zeros(x.shape), [0] * TOKENS
            else:
                ages[place] = [age + 1 for age in ages[place]]
                norm = math.sqrt(sum((1 + e) ** 2 for e in entropies[branch, layer]))
                scores = [
                    (1 + e) / norm + weight * age / interval
                    for e, age in zip(entropies[branch, layer], ages[place], strict=True)
                ]
                order = sorted(range(TOKENS), key=lambda row: -scores[row])
                rows = order[: int(shares[name] * TOKENS)]
                picked.add((place, tuple(sorted(rows))))
            if rows:
                fresh = kept[place].clone()
                # Attention of some queries only; self-attention never is of some.
                fresh[:, rows] = compute(x[:, rows])
                kept[place] = fresh
            for row in rows:
                ages[place][row] = 0
            if name == "attn2" and rows:
                own = entropies.setdefault((branch, layer), [0.0] * TOKENS)
                for row, value in zip(rows, entropy(block, x[:, rows], forward.text), strict=True):
                    own[row] = value
            return kept[place]

        return forward.head(stack(forward, forward.x, parts=parts))

    wanted = plain(velocity)
    latents, cond, _ = ours(
        "toca",
        interval=interval,
        cross_interval=cross_interval,
        ratio=ratio,
        cross_ratio=cross_ratio,
        weight=weight,
    )
    assert len({rows for (_, _, name), rows in picked if name == "ffn"}) > 3, "all choose the same tokens"
    cross = [TOKENS if step % 6 == 0 else int(cross_ratio * TOKENS) for step in range(STEPS)]
    assert [step["attn1"] for step in cond] == [LAYERS * TOKENS * (step % 3 == 0) for step in range(STEPS)]
    assert [step["attn2"] for step in cond] == [step["scores"] for step in cond]
    assert [step["attn2"] for step in cond] == [LAYERS * rows for rows in cross]
    assert [step["ffn"] for step in cond] == [
        LAYERS * (TOKENS if step % 3 == 0 else TOKENS // 2) for step in range(STEPS)
    ]
    close(latents, wanted)
