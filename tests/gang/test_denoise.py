"""The loop around a model of two attention layers, on every kind of mesh, against the method in masks."""

import itertools
import math
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from jano_dist import load_config
from jano_dist.denoise import Denoiser
from jano_dist.errors import RunError
from jano_dist.geometry import WanGeometry
from jano_dist.mesh import Mesh, Traffic
from jano_dist.models import Branch
from jano_dist.observe import NullObserver, StepRecord
from jano_dist.policies import Policy
from jano_dist.snapshot import NoSnapshots
from jano_dist.tokens.plan import TokenPlan
from jano_dist.tokens.schedule import StepKind
from tests.gang.harness import gang

LATENT, TOKENS, LAYERS, HEADS, HEAD_DIM = (3, 4, 6), 18, 2, 4, 2
WIDTH = HEADS * HEAD_DIM  # and of a row: 2 channels x 4 positions
DTYPE, ELEMENT = torch.float64, 8  # of the model; latents are float32
GUIDANCE, SHIFT = 3.0, 2.0
# A full step after a refresh too: it leaves the cache as it is.
KINDS = (
    *("full", "full", "refresh", "active", "moderate", "active", "full"),
    *("refresh", "full", "moderate", "active"),
)
LOWEST = {"full": 1, "refresh": 1, "moderate": 2, "active": 3}
MESHES = [{"ulysses": 4}, {"kv": 4}, {"cfg": 2, "ulysses": 2}, {"cfg": 2, "kv": 2}, {"kv": 2, "ulysses": 2}]


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), device="cpu")


# After which step a new map comes.
MAPS = {
    step: torch.randint(1, 4, (TOKENS,), generator=torch.Generator().manual_seed(step)) for step in (1, 6)
}
WEIGHTS = [[drawn(10 * layer + i, WIDTH, WIDTH).to(DTYPE) / 3 for i in range(3)] for layer in range(LAYERS)]
POSITIONS = 1 + drawn(99, TOKENS, 1, HEAD_DIM).to(DTYPE) / 3  # in the place of a rotary table
TEXTS = [drawn(seed, WIDTH).to(DTYPE) / 3 for seed in (1000, 1001)]


def patches(latent):
    """[2, T, H, W] -> [N, 8]."""
    boxes = latent.unfold(1, 1, 1).unfold(2, 2, 2).unfold(3, 2, 2)  # [2, T, h, w, 1, 2, 2]
    return boxes.permute(1, 2, 3, 0, 4, 5, 6).reshape(TOKENS, WIDTH)


def whole(rows):
    """[N, 8] -> [2, T, H, W]."""
    t, h, w = LATENT
    return rows.view(t, h // 2, w // 2, 2, 2, 2).permute(3, 0, 1, 4, 2, 5).reshape(2, t, h, w)


class Euler:
    """A scheduler of straight steps."""

    config = {}  # noqa: RUF012

    def __init__(self, steps, shift, latent):
        self.sigmas = torch.linspace(1, 0, steps + 1, device="cpu") ** shift
        self.timesteps = self.sigmas[:-1]

    def step(self, velocity, timestep, sample, return_dict):
        assert return_dict is False
        index = self.timesteps.tolist().index(float(timestep))
        stepped = sample + (self.sigmas[index + 1] - self.sigmas[index]) * velocity
        return stepped.to(sample.dtype), "something else"


class TwoLayers:
    """What the loop asks of a model. The noise of another rank would be another one."""

    geometry = WanGeometry(2, 2, (4, 8, 8), (1, 2, 2), LAYERS, HEADS, HEAD_DIM, 1, WIDTH, 1)
    device, dtype, overlaps = torch.device("cpu"), DTYPE, True
    scheduler = staticmethod(Euler)
    rank = 0

    def branch(self, conditions, guidance, expert):
        return Branch(conditions)

    def noise(self, latent, seed):
        return drawn(seed + self.rank, *latent, 2).movedim(-1, 0)

    def forward(self, latent, timestep, branch, rows, cache, attend, text_rows):
        x = patches(latent)[rows] * timestep + branch.text[0]
        for weights, layer in zip(WEIGHTS, cache.layers, strict=True):
            kept, (places, _) = layer.inputs(x, (POSITIONS[rows], POSITIONS[rows]))
            q, k, v = (
                (each @ weight).view(-1, HEADS, HEAD_DIM)
                for each, weight in zip((x, kept, kept), weights, strict=True)
            )
            x = x + attend(q, k * places, v, layer).flatten(1)
        return x

    def unpatchify(self, rows, latent):
        assert latent == LATENT
        return whole(rows)


class Follow(Policy):
    """Policy: `KINDS` and `MAPS`. Only the coordinator may ask; it is shown the velocity [C, T, H, W]."""

    def __init__(self, mesh):
        self.mesh, self.seen = mesh, []

    def decide(self, step):
        assert self.mesh.is_coordinator
        return StepKind(KINDS[step])

    def observe(self, step, velocity):
        assert self.mesh.is_coordinator
        self.seen.append(velocity.clone())
        return MAPS[step].to(torch.uint8) if step in MAPS else None


class Counting(Mesh):
    """Says of its traffic which answer this is."""

    def take_traffic(self):
        self.taken += 1
        return Traffic(100 * self.taken, 0.5 * self.taken)


class Heard(NullObserver):
    def __init__(self):
        self.steps = []

    def step(self, record, steps):
        self.steps.append((record, steps))


def settings(kind="kv", dtype="native", device="accelerator"):
    cache = {"cache.kind": kind, "cache.dtype": dtype, "cache.device": device}
    sampling = {"sampling.steps": len(KINDS), "sampling.guidance": GUIDANCE, "sampling.shift": SHIFT}
    return load_config("wan-tiny", policy="full", overrides={**cache, **sampling})


def denoise(mesh, guided=True, **cache):
    """One generation on this rank, with a clock that is a second later at every look."""
    model, ticks = TwoLayers(), itertools.count()
    mesh.taken, model.rank = 0, mesh.rank
    policy, heard = Follow(mesh), Heard()
    denoiser = Denoiser(settings(**cache), model, mesh, LATENT)
    texts = TEXTS[: 1 + guided]
    with (
        torch.inference_mode(),
        mock.patch("jano_dist.denoise.time", SimpleNamespace(perf_counter=lambda: float(next(ticks)))),
    ):
        with torch.device("meta"):  # where anything made on the default device would be
            state = denoiser.begin({"text": torch.stack(texts)}, seed=5)
        first = state.latent.clone(), state.levels.clone(), state.plan.order, [c.nbytes for c in state.caches]
        denoiser.run(state, policy, heard, NoSnapshots(), {})
    bytes_kept = [cache.nbytes for cache in state.caches], state.workspace_bytes
    return SimpleNamespace(
        place=mesh.index("sequence"),
        shape=denoiser.token_shape,
        dtype=state.velocity.rows.dtype,
        first=first,
        latent=state.latent.clone(),
        levels=state.levels.clone(),
        sigmas=state.velocity.sigmas.clone(),
        steps=state.steps,
        heard=heard.steps,
        seen=policy.seen,
        bytes_kept=bytes_kept,
    )


def every_mesh():
    meshes = [Counting(**degrees) for degrees in MESHES]  # once each: to form their groups takes longest
    return [{kind: denoise(mesh, kind=kind) for kind in ("kv", "hidden")} for mesh in meshes]


def plain(guided=True):
    """The method with masks: a layer's keys and values are of the inputs kept of every token.

    Returns the latent and the guided velocity after every step, and the step each token was last computed in.
    """
    latent, levels, kept = drawn(5, *LATENT, 2).movedim(-1, 0), torch.full((TOKENS,), 3), {}
    held, last, scheduler = (
        torch.zeros(TOKENS, WIDTH),
        torch.zeros(TOKENS, dtype=int),
        Euler(len(KINDS), SHIFT, LATENT),
    )
    velocities = []
    for step, kind in enumerate(KINDS):
        computed = levels >= LOWEST[kind]
        branches = []
        for branch, text in enumerate(TEXTS[: 1 + guided]):
            x = patches(latent) * scheduler.timesteps[step] + text
            for layer, weights in enumerate(WEIGHTS):
                known = x
                if kind != "full":
                    known = torch.where(computed[:, None], x, kept.get((branch, layer), x))
                    kept[branch, layer] = known
                q, k, v = (
                    (each @ weight).view(-1, HEADS, HEAD_DIM)
                    for each, weight in zip((x, known, known), weights, strict=True)
                )
                logits = torch.einsum("nhd,mhd->hnm", q, k * POSITIONS) / math.sqrt(HEAD_DIM)
                x = x + torch.einsum("hnm,mhd->nhd", logits.softmax(-1), v).flatten(1)
            branches.append(x)
        fresh = branches[0]
        if guided:
            fresh = branches[1] + GUIDANCE * (branches[0] - branches[1])
        held = torch.where(computed[:, None], fresh, held)
        last[computed] = step
        latent = latent + (scheduler.sigmas[step + 1] - scheduler.sigmas[step]) * whole(held)
        velocities.append(whole(held))
        if step in MAPS:
            levels, kept = MAPS[step], {}
    return latent, velocities, last


def at_least(kind, step):
    """How many tokens a step of this kind computes."""
    maps = [levels for after, levels in MAPS.items() if after < step]
    return int((maps[-1] >= LOWEST[kind]).sum()) if maps else TOKENS


def check(ranks, guided=True):
    """Latents, steps and what was told of them; of all ranks of one mesh."""
    latent, velocities, last = plain(guided)
    sigmas = Euler(len(KINDS), SHIFT, LATENT).sigmas
    sequence = 1 + max(rank.place for rank in ranks)
    for number, rank in enumerate(ranks):
        assert rank.shape == (3, 2, 3)
        assert all(type(size) is int for size in rank.shape)
        assert rank.dtype == DTYPE
        noise, levels, order, nbytes = rank.first
        assert torch.equal(noise, drawn(5, *LATENT, 2).movedim(-1, 0))
        assert levels.dtype == torch.uint8
        assert levels.tolist() == [3] * TOKENS
        assert order.tolist() == list(range(TOKENS))
        assert not any(nbytes)
        assert torch.equal(rank.latent, ranks[0].latent)
        assert (rank.latent - latent).abs().max() <= 1e-5
        assert rank.levels.tolist() == MAPS[6].tolist()
        assert torch.equal(rank.sigmas, sigmas[last])
        assert [heard for heard, _ in rank.heard] == rank.steps
        assert {steps for _, steps in rank.heard} == {len(KINDS)}
        assert len(rank.seen) == (len(KINDS) if number == 0 else 0)
        for seen, velocity in zip(rank.seen, velocities, strict=number == 0):
            assert (seen - velocity).abs().max() <= 1e-5
        for step, (record, kind) in enumerate(zip(rank.steps, KINDS, strict=True)):
            tokens = at_least(kind, step)
            own = len(range(rank.place, tokens, sequence))  # dealt one by one, in the map's order
            # The first answer of the mesh is of what came before the first step.
            assert record == StepRecord(step, kind, tokens, own, 1.0, 0.5 * (step + 2), 100 * (step + 2))
            assert type(record.kind) is str


@pytest.mark.parametrize("kind", ["kv", "hidden"])
@pytest.mark.parametrize("guided", [True, False])
def test_one_process(kind, guided):
    check([denoise(Counting(), guided, kind=kind)], guided)


@pytest.fixture(scope="module")
def together():
    """`together[place][kind]`: of each rank, on the mesh `MESHES[place]`."""
    ranks = gang(4, every_mesh)
    places = range(len(MESHES))
    return [{kind: [rank[place][kind] for rank in ranks] for kind in ("kv", "hidden")} for place in places]


@pytest.mark.parametrize("place", range(len(MESHES)))
@pytest.mark.parametrize("kind", ["kv", "hidden"])
def test_every_mesh(together, place, kind):
    check(together[place][kind])


@pytest.mark.parametrize("dtype", ["native", "fp8"])
@pytest.mark.parametrize("device", ["accelerator", "cpu"])
@pytest.mark.parametrize(("kind", "tensors"), [("kv", 2), ("hidden", 1)])
def test_caches_are_as_the_config_says(kind, tensors, dtype, device):
    """Bytes of both branches' caches and of what they share, by closed formulas."""
    made = denoise(Counting(), kind=kind, dtype=dtype, device=device)
    native = tensors * TOKENS * WIDTH * ELEMENT
    kept = native if dtype == "native" else tensors * TOKENS * HEADS * (HEAD_DIM + 4)
    shared = (native if dtype == "fp8" else 0) + (2 * kept if device == "cpu" else 0)
    ropes = TOKENS * HEAD_DIM * 4 if kind == "hidden" else 0
    assert made.bytes_kept == ([LAYERS * kept] * 2, shared + ropes)


@pytest.mark.parametrize("place", range(len(MESHES)))
def test_a_rank_keeps_its_share(together, place):
    """18 tokens on four ranks: 5, 5, 4, 4."""
    cfg, kv, ulysses = (MESHES[place].get(name, 1) for name in ("cfg", "kv", "ulysses"))
    tokens = [len(range(other, TOKENS, kv * ulysses)) for other in range(kv * ulysses)]
    for rank in range(4):
        own = rank % (kv * ulysses)
        shard = sum(tokens[own // ulysses * ulysses :][:ulysses])
        for kind, elements in (("kv", 2 * shard * WIDTH // ulysses), ("hidden", tokens[own] * WIDTH)):
            kept, _ = together[place][kind][rank].bytes_kept
            assert kept == [LAYERS * elements * ELEMENT] * (2 // cfg)


@pytest.mark.parametrize(("bad", "step", "kind"), [(float("nan"), 0, "full"), (float("inf"), 3, "active")])
def test_latents_that_are_not_finite(bad, step, kind):
    class Broken(Euler):
        def step(self, velocity, timestep, sample, return_dict):
            velocity[..., -1, -1] *= bad if timestep == self.timesteps[step] else 1
            return super().step(velocity, timestep, sample, return_dict)

    model, mesh = TwoLayers(), Mesh()
    model.scheduler = Broken
    denoiser = Denoiser(settings(), model, mesh, LATENT)
    state = denoiser.begin({"text": torch.stack(TEXTS)}, seed=5)
    with pytest.raises(
        RunError, match=rf"^the latents became non-finite in step {step} \({kind}\): use model.dtype"
    ):
        denoiser.run(state, Follow(mesh), NullObserver(), NoSnapshots(), {})
    assert len(state.steps) == step


def with_another_plan_on(ranks):
    """Some ranks order the tokens of a map backwards, as another version might."""
    mesh, honest = Mesh(ulysses=4), TokenPlan.from_levels

    def backwards(levels, text=0):
        plan = honest(levels, text)
        return plan if levels.unique().numel() == 1 else TokenPlan(plan.order.flip(0), plan.counts)

    denoiser = Denoiser(settings(), TwoLayers(), mesh, LATENT)
    with mock.patch.object(TokenPlan, "from_levels", backwards if mesh.rank in ranks else honest):
        state = denoiser.begin({"text": torch.stack(TEXTS)}, seed=5)
        with pytest.raises(RunError) as caught:
            denoiser.run(state, Follow(mesh), NullObserver(), NoSnapshots(), {})
    return str(caught.value)


def test_another_plan():
    for sentence in gang(4, with_another_plan_on, [1, 3]):
        assert sentence.startswith("ranks 1, 3 made another token plan than the coordinator from the same ")
