"""A generation that goes on from a snapshot, against the same one undisturbed: one process, and meshes."""

import functools

import numpy as np
import pytest
import torch

from jano_dist import Engine, load_config
from jano_dist.errors import UserError
from jano_dist.observe import NullObserver
from jano_dist.snapshot import Snapshot, facts_of, require_same_run
from tests.gang.harness import gang

PROMPT = "a red ball moves left over a navy striped background"
STEPS, SEED = 14, 3
TEXT_TOKENS, TEXT_DIM = 32, 128  # of wan-tiny, written down a second time
JANO = {
    "policy.block": [1, 2, 2],
    "policy.warmup": 3,
    "policy.cooldown": 2,
    "policy.static_interval": 4,
    "policy.moderate_interval": 2,
}
# Before which steps a snapshot may be taken, by DESIGN section 5: refreshes (the first ends the warm-up), the
# cool-down, where no cache is read, and when only decoding is left; with `full` before
# any step, too, and with `forecast`, whose velocities go with it. What `ras` and `hsa` know goes with theirs,
# but not the warm-up velocities of `hsa`, nor any of `astraea`.
EVERYWHERE = list(range(1, STEPS + 1))
BOUNDARIES = {
    "jano": [3, 7, 11, 12, 13, 14],
    "full": EVERYWHERE,
    "forecast": EVERYWHERE,
    "pab": [4, 8, 12, 14],
    "ras": [1, 2, 3, 7, 11, 12, 13, 14],
    "hsa": [1, 3, 7, 11, 12, 13, 14],
    "astraea": [1, 2, 12, 13, 14],
}
TRIED = {
    "jano": [3, 7, 11, 12, 14],
    "full": [1, 8, 14],
    "forecast": [2, 6, 7, 8, 12],
    "ras": [3, 11],
    "hsa": [1, 7],
    "astraea": [2],
    "pab": [4, 12],
}
ON_MESHES = {"jano": [3, 11, 14], "full": [8], "forecast": [7], "ras": [3]}
FORECAST = {"policy.warmup": 3, "policy.cooldown": 1, "policy.tau": 2.0, "policy.max_interval": 4}
CHOOSING = {"policy.warmup": 3, "policy.cooldown": 2}


# Where both attentions are computed anew.
PAB = {"policy.self_range": 2, "policy.cross_range": 4, "policy.timesteps": [0, 1001]}
SETTINGS = {
    "jano": JANO,
    "forecast": FORECAST,
    "ras": {**CHOOSING, "policy.reset_interval": 4},
    "hsa": CHOOSING,
    "astraea": CHOOSING,
    "pab": PAB,
}


class Shelf:
    """Snapshots in memory: gives one, keeps all."""

    def __init__(self, given=None):
        self.given, self.kept = given, {}

    def newest(self, run):
        return self.given

    def due(self, *, last):
        return True

    def keep(self, step, packed):
        self.kept[step] = packed


class Steps(NullObserver):
    def __init__(self):
        self.seen = []

    def step(self, record, steps):
        self.seen.append(record.index)


def config(policy, **overrides):
    small = {"video.frames": 9, "video.height": 48, "video.width": 80, "sampling.steps": STEPS}
    small |= {"model.vae_parallel": "single"} | SETTINGS.get(policy, {})
    return load_config("wan-tiny", policy=policy, overrides={**small, **overrides})


def generate(policy, shelf, model=None, **overrides):
    """The engine's model; then latents, levels, and a step table of what does not depend on time."""
    engine, steps = Engine(config(policy, **overrides), model=model), Steps()
    made = engine.generate(PROMPT, seed=SEED, snapshots=shelf, observer=steps)
    rows = [(step["index"], step["kind"], step["tokens"]) for step in made.record["steps"]]
    return engine.model, (made.latents.numpy(), made.levels, rows, made.record["flops"], steps.seen)


@functools.cache
def undisturbed():
    model, made = None, {}
    for policy in BOUNDARIES:
        shelf = Shelf()
        model, made[policy] = generate(policy, shelf, model)
        made[policy] = (shelf.kept, made[policy])
    return model, made


@pytest.mark.parametrize("policy", list(BOUNDARIES))
def test_one_process(policy):
    model, made = undisturbed()
    kept, (latents, levels, rows, flops, _) = made[policy]
    assert list(kept) == BOUNDARIES[policy]
    for step in TRIED[policy]:
        shelf = Shelf(kept[step])
        _, (again, same_levels, same_rows, same_flops, taken) = generate(policy, shelf, model)
        assert np.array_equal(again, latents)
        assert np.array_equal(same_levels, levels)
        assert (same_rows, same_flops) == (rows, flops)
        assert taken == list(range(step, STEPS))  # nothing is computed twice
        assert list(shelf.kept) == [each for each in BOUNDARIES[policy] if step < each]


def on_a_mesh(mesh, given):
    """Undisturbed; then from its own snapshots, and from those of one process."""
    model, results = None, {}
    for policy in ON_MESHES:
        shelf = Shelf()
        model, (latents, levels, rows, *_) = generate(policy, shelf, model, **mesh)
        # Only the coordinator has any; the others must not need them.
        own = [shelf.kept.get(step) for step in ON_MESHES[policy]]
        moved = [given[policy][step] for step in ON_MESHES[policy]]
        for origin, snapshots in (("own", own), ("moved", moved)):
            for step, snapshot in zip(ON_MESHES[policy], snapshots, strict=True):
                result = generate(policy, Shelf(snapshot), model, **mesh)[1]
                results[policy, origin, step] = result[:3]
        results[policy] = (latents, levels, rows)
    return results


@pytest.mark.parametrize("mesh", [{"mesh.cfg": 2}, {"mesh.kv": 2}], ids=["cfg 2", "kv 2"])
def test_meshes(mesh):
    """On the same mesh to the bit; from one process's snapshot as close as the mesh itself is."""
    given = {policy: kept for policy, (kept, _) in undisturbed()[1].items()}
    for results in gang(2, on_a_mesh, mesh, given):
        for policy in ON_MESHES:
            latents, levels, rows = results[policy]
            alone = undisturbed()[1][policy][1][0]
            for step in ON_MESHES[policy]:
                own, moved = results[policy, "own", step], results[policy, "moved", step]
                assert np.array_equal(own[0], latents), (policy, step)
                assert np.array_equal(own[1], levels)
                assert own[2] == moved[2] == rows
                assert np.abs(moved[0] - alone).max() <= 1e-4
    assert np.abs(alone).max() > 1


def test_what_is_kept_is_the_state_and_no_cache():
    """To the byte: latent, the last two velocity rows and sigmas, whether their line is trusted, map,
    text; the scheduler has latents and tables."""
    (kept, _) = undisturbed()[1]["jano"]
    tensors = Snapshot.unpack(kept[7]).tensors
    tokens, channels, positions = 3 * 3 * 5, 16, 3 * 6 * 10
    sizes = {name: each.nbytes for name, each in tensors.items() if not name.startswith("scheduler.")}
    assert sizes == {
        "condition.text": 2 * TEXT_TOKENS * TEXT_DIM * 4,
        "latent": channels * positions * 4,
        "velocity.rows": tokens * 4 * channels * 4,
        "velocity.sigmas": tokens * 4,
        "velocity.earlier": tokens * 4 * channels * 4,
        "velocity.earlier_sigmas": tokens * 4,
        "velocity.trusted": tokens,
        "levels": tokens,
    }
    # UniPC of order 2: two model outputs and the last sample, whole; and tables of a value per step.
    scheduler = [each for name, each in tensors.items() if name.startswith("scheduler.")]
    assert sum(each.numel() == channels * positions for each in scheduler) == 3
    assert all(
        each.numel() in (channels * positions, STEPS, STEPS + 1, 1000) or each.numel() <= 2
        for each in scheduler
    )


FACTS = {
    "prompt": "a",
    "files": "1",
    "config": {name: {"x": 1} for name in ("model", "video", "sampling", "policy")},
}


class TestForeign:
    def test_the_same(self):
        require_same_run(FACTS, {**FACTS, "config": {**FACTS["config"], "mesh": {"cfg": 2}}, "steps": []})

    @pytest.mark.parametrize(
        ("other", "words"),
        [
            ({"prompt": "b"}, "of the prompt 'b', not of 'a': to go on with it leave that out"),
            ({"files": "2"}, "other model files"),
            *(
                ({"config": {**FACTS["config"], name: {"x": 2}}}, f"has {name}.x 2, not 1")
                for name in FACTS["config"]
            ),
            (
                {"config": {**FACTS["config"], "video": {"x": 1, "y": None, "z": 0}}},
                "has video.z 0, not null",
            ),
        ],
    )
    def test_another(self, other, words):
        with pytest.raises(UserError, match=words):
            require_same_run(FACTS, {**FACTS, **other})


class TestPacked:
    packed = Snapshot(
        5, {"a": torch.arange(6.0)[::2], "b": torch.ones(2, dtype=torch.bfloat16)}, {"x": [1]}
    ).pack()

    def test_round_trip(self):
        found = Snapshot.unpack(self.packed)
        assert (found.step, dict(found.facts)) == (5, {"x": [1]})
        assert found.tensors["a"].tolist() == [0, 2, 4]
        assert found.tensors["b"].dtype == torch.bfloat16
        assert facts_of(self.packed) == {"step": 5, "x": [1]}

    @pytest.mark.parametrize("place", [0, 20, 60, 100, 150, -1])
    def test_any_changed_byte_is_noticed(self, place):
        damaged = bytearray(self.packed)
        damaged[place] ^= 1
        with pytest.raises(ValueError, match="whole"):
            Snapshot.unpack(bytes(damaged))

    @pytest.mark.parametrize("length", [0, 10, 100, -1])
    def test_cut_off(self, length):
        with pytest.raises(ValueError, match="whole"):
            Snapshot.unpack(self.packed[:length])
