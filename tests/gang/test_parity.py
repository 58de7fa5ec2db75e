"""The engine on several ranks against the engine in one process, and against diffusers."""

import functools
import itertools
import math
import os
from collections import Counter
from contextlib import ExitStack
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist

from jano_dist import Engine, load_config
from jano_dist.attention import Kernel
from jano_dist.errors import NotFinite, PeerLost, RunError, UserError
from jano_dist.models.folder import model_folder
from jano_dist.observe import NullObserver
from jano_dist.tokens.plan import TokenPlan
from tests.gang.harness import Leave, gang
from tests.gang.maps import CHOOSING, MAP_KINDS, FollowMap
from tests.parity.diffusers_pipeline import wan_tiny_pipeline

PROMPT = "a red ball moves left over a navy striped background"

# wan-tiny, written down a second time.
LAYERS, HEADS, HEAD_DIM, ROW_WIDTH = 6, 6, 32, 64

STEPS = 10
JANO = {
    "policy.block": [1, 2, 2],
    "policy.warmup": 3,
    "policy.cooldown": 1,
    "policy.static_interval": 4,
    "policy.moderate_interval": 2,
}
KINDS = ["full", "full", "full", "refresh", "active", "moderate", "active", "refresh", "active", "full"]

slow = pytest.mark.slow


def splits(quick, thorough=()):
    """`split`: cfg x kv x ulysses."""
    marked = [*quick, *(pytest.param(split, marks=slow) for split in thorough)]
    return pytest.mark.parametrize("split", marked, ids=lambda split: "{}x{}x{}".format(*split))


# On 2, 3, 4 and 6 ranks all that wan-tiny's six heads allow by cfg and Ulysses; and some with kv, also on 5.
every_split = splits(
    [(2, 1, 1), (1, 1, 2), (1, 1, 3), (2, 1, 2), (1, 2, 2)],
    [(1, 1, 6), (2, 1, 3), (1, 2, 1), (2, 2, 1), (1, 4, 1), (1, 5, 1), (2, 3, 1), (1, 2, 3), (1, 3, 2)],
)

# Sizes whose 35 and 45 tokens none of the worlds divides (but 45 by 3), each with both policies.
SIZES = {"image": (1, 80, 112), "clip": (9, 48, 80)}
TOKENS = {"image": 1 * 5 * 7, "clip": 3 * 3 * 5}
CASES = [(policy, size) for policy in ("full", "jano") for size in SIZES]
every_case = pytest.mark.parametrize(("policy", "size"), CASES)

# (active, moderate, static) tokens of the image: maps that a video seldom leads to.
MAPS = {
    "nothing static": (20, 15, 0),
    "nothing moderate": (4, 0, 31),
    "fewer active tokens than ranks": (1, 20, 14),
    "one active token, the rest static": (1, 0, 34),
    "nothing active": (0, 7, 28),
    "all static": (0, 0, 35),
}


def config(policy, size, **overrides):
    settings = dict(zip(("video.frames", "video.height", "video.width"), SIZES[size], strict=True))
    settings |= {"sampling.steps": STEPS, "model.vae_parallel": "single"}
    settings |= JANO if policy == "jano" else {}
    return load_config("wan-tiny", policy=policy, overrides={**settings, **overrides})


def mesh_of(split):
    return dict(zip(("mesh.cfg", "mesh.kv", "mesh.ulysses"), split or (), strict=split is not None))


def generate(split, policy, size, model=None, policies=None, observer=None, **overrides):
    """The engine's model, and what the tests compare of its generation."""
    overrides |= mesh_of(split)
    settings = {} if policies is None else {"policies": policies}
    engine = Engine(config(policy, size, **overrides), model=model, **settings)
    made = engine.generate(PROMPT, seed=1, observer=observer)
    return engine.model, (made.latents.numpy(), made.levels, made.record)


# What one rank does; the same in one process.


def grid(split):
    """Every case of the grid on one mesh."""
    model, results = None, {}
    for case in CASES:
        model, results[case] = generate(split, *case, model=model)
    return results


def maps(split):
    model, results = None, {}
    for name, sizes in MAPS.items():
        model, results[name] = generate(
            split, "full", "image", model, FollowMap(*sizes), **{"sampling.steps": len(MAP_KINDS)}
        )
    model, results["choosing"] = generate(
        split, "full", "image", model, FollowMap(9, 10, 16, CHOOSING), **{"sampling.steps": len(CHOOSING)}
    )
    return results


def unguided():
    model, full = generate(None, "full", "clip", **{"sampling.guidance": 1.0})
    return {"full": full, "jano": generate(None, "jano", "clip", model, **{"sampling.guidance": 1.0})[1]}


def one_after_the_other(split):
    engine = Engine(config("jano", "image", **mesh_of(split)))
    videos = []
    for prompt, seed in ((PROMPT, 1), ("a blue box stays still", 2), (PROMPT, 1)):
        made = engine.generate(prompt, seed=seed)
        videos.append((made.latents.numpy(), made.levels, made.frames))
    return videos


def asked_for_different_videos(split):
    """The coordinator is asked for the video of `alone`, the others for one each."""
    rank = dist.get_rank()
    engine = Engine(config("jano", "clip", **mesh_of(split)))
    prompt, negative = (PROMPT, "") if rank == 0 else ("a blue box", "a red ball")
    made = engine.generate(prompt, seed=1 + rank, negative_prompt=negative)
    return made.latents.numpy(), made.levels, made.record


class Collectives(NullObserver):
    """Counts what torch.distributed is asked for: in each forward (beside its cache) and in each step."""

    NAMES = (
        "all_to_all_single",
        "broadcast",
        "all_gather",
        "all_reduce",
        "all_gather_into_tensor",
        "barrier",
    )

    def __init__(self):
        self.seen, self.forwards, self.steps, self.seconds = Counter(), [], [], []

    def __enter__(self):
        self.patches = ExitStack()
        for name in self.NAMES:
            self.patches.enter_context(mock.patch.object(dist, name, self.counted(name, getattr(dist, name))))
        # A clock that ticks when it is looked at, and once more at every computation of attention.
        clock = itertools.count()
        self.patches.enter_context(
            mock.patch("jano_dist.clock.time", SimpleNamespace(perf_counter=clock.__next__))
        )
        for name in ("attention", "attention_with_lse"):
            self.patches.enter_context(
                mock.patch.object(Kernel, name, self.ticking(clock, getattr(Kernel, name)))
            )
        return self

    def __exit__(self, *error):
        self.patches.close()

    def counted(self, name, collective):
        def call(*args, **kwargs):
            self.seen[name] += 1
            return collective(*args, **kwargs)

        return call

    def ticking(self, clock, compute):
        def call(*args):
            next(clock)
            return compute(*args)

        return call

    def watch(self, forward):
        def call(latent, timestep, branch, rows, cache, attend, text_rows):
            before = self.seen.copy()
            output = forward(latent, timestep, branch, rows, cache, attend, text_rows)
            self.forwards.append((cache.nbytes, dict(self.seen - before)))
            return output

        return call

    def step(self, record, steps):
        self.steps.append(dict(self.seen))
        self.seconds.append(record.comm_seconds)
        self.seen.clear()


def collectives(split):
    """Of each forward and of each step of a generation: see `Collectives`."""
    engine = Engine(config("jano", "image", **mesh_of(split)))
    engine.model.overlaps = False  # of forwards that take turns each would have the other's, too
    with Collectives() as counting:
        engine.model.forward = counting.watch(engine.model.forward)
        engine.generate(PROMPT, seed=1, observer=counting)
    return counting.forwards, counting.steps, counting.seconds


def sentence(error, make):
    with pytest.raises(error) as caught:
        make()
    assert type(caught.value) is error
    return str(caught.value)


def another_plan_on(rank):
    """One rank orders the tokens of a map backwards, as another version might."""
    engine, honest = Engine(config("jano", "image")), TokenPlan.from_levels

    def backwards(levels, text=0):
        plan = honest(levels, text)
        return plan if levels.unique().numel() == 1 else TokenPlan(plan.order.flip(0), plan.counts)

    with ExitStack() as stack:
        if dist.get_rank() == rank:
            stack.enter_context(mock.patch.object(TokenPlan, "from_levels", backwards))
        return sentence(RunError, lambda: engine.generate(PROMPT))


def broken_weights_on(rank):
    engine = Engine(config("full", "image"))
    if dist.get_rank() == rank:
        torch.nn.init.constant_(engine.model._experts[0].module.proj_out.bias, torch.nan)
    return sentence(NotFinite, lambda: engine.generate(PROMPT))


class Quits(NullObserver):
    def step(self, record, steps):
        if record.index == 4:
            raise Leave


def without_a_rank_from_step_5_on(rank):
    engine = Engine(config("jano", "image", **{"runtime.timeout_seconds": 600}))
    if dist.get_rank() == rank:
        engine.generate(PROMPT, observer=Quits())
    raise Leave(sentence(PeerLost, lambda: engine.generate(PROMPT)))  # fail-stop, as the command line does


def another_config_on(ranks, overrides):
    own = overrides if dist.get_rank() in ranks else {}
    return sentence(UserError, lambda: Engine(config("jano", "image", **own)))


def another_kernel_on(rank):
    """As where one machine has a package that the others lack."""
    kernel = Kernel("cudnn" if dist.get_rank() == rank else "flash3", compute=None)
    with mock.patch("jano_dist.engine.kernel_for", return_value=kernel):
        return sentence(UserError, lambda: Engine(config("jano", "image")))


def other_versions_on(rank):
    versions = {"torch": "1.0"} if dist.get_rank() == rank else {"torch": "2.0"}
    with mock.patch("jano_dist.observe.versions", return_value=versions):
        return sentence(UserError, lambda: Engine(config("jano", "image")))


def the_model_below(folders):
    """Each rank finds another folder under the same relative name, as each machine might."""
    os.chdir(folders[dist.get_rank()])
    return sentence(UserError, lambda: Engine(config("full", "image", **{"model.name": "copy"})))


def degrees_that_do_not_fit(overrides):
    return sentence(UserError, lambda: Engine(config("jano", "image", **overrides)))


# What is expected of it.


@pytest.fixture(scope="module")
def alone():
    """In this process, without any group: the grid, and the odd maps."""
    assert not dist.is_initialized()
    return {**grid(None), **maps(None)}


@pytest.fixture(scope="module")
def together():
    """The grid on every rank of a split; run once."""
    done = {}

    def run(split):
        if split not in done:
            done[split] = gang(math.prod(split), grid, split, timeout=600, collective_timeout=300)
        return done[split]

    return run


@pytest.fixture(scope="module")
def diffusers_latents():
    """`diffusers_latents(size, guidance)`: of diffusers' own pipeline, made once."""
    pipeline = wan_tiny_pipeline()

    @functools.cache
    def make(size, guidance):
        frames, height, width = SIZES[size]
        made = pipeline(
            PROMPT,
            negative_prompt="",
            num_frames=frames,
            height=height,
            width=width,
            num_inference_steps=STEPS,
            guidance_scale=guidance,
            generator=torch.Generator().manual_seed(1),
            max_sequence_length=32,
            output_type="latent",
        )
        return made.frames[0].numpy()

    return make


def assert_same_video(ranks, one):
    """Every rank has the same bits; they are the one process's video up to rounding, by the same steps."""
    wanted, levels, record = one
    for latents, own_levels, own_record in ranks:
        assert np.array_equal(latents, ranks[0][0])
        assert np.array_equal(own_levels, levels)
        assert [(s["kind"], s["tokens"]) for s in own_record["steps"]] == [
            (s["kind"], s["tokens"]) for s in record["steps"]
        ]
    assert np.abs(ranks[0][0] - wanted).max() <= 1e-4
    assert np.abs(wanted).max() > 1  # there is something to differ in


def step_bytes(computed, tokens, split, *, branches=2, mapped=False):
    """All ranks' bytes of one step, derived from what has to move.

    In every layer and branch, of every computed row. Ulysses: q, k, v and the output of the heads that its
    rank does not keep. Resident: the query to every other shard, and from there an output and a logarithm
    per head. Then CFG: each partner's output row; and the guided row to the rest of its branch. Two int64
    from the coordinator, and with a new map a byte per token from it and 32 bytes from all to all.
    """
    cfg, kv, ulysses = split
    world = math.prod(split)
    elsewhere = HEADS - HEADS // ulysses  # heads of a row that other ranks attend with
    by_heads = 4 * elsewhere * HEAD_DIM * 4
    resident = (kv - 1) * HEADS * (2 * HEAD_DIM + 1) * 4
    exchanges = branches * LAYERS * computed * (by_heads + resident)
    swap = computed * ROW_WIDTH * 4 * (2 if cfg == 2 else 0)
    gather = computed * ROW_WIDTH * 4 * (kv * ulysses - 1) * cfg
    control = 2 * 8 * (world - 1)
    plan = (tokens + 32 * world) * (world - 1) if mapped else 0
    return exchanges + swap + gather + control + plan


def cache_bytes(tokens, split, branches=2):
    """Keys and values of this rank's heads, branches and shard; of the rank that holds the most."""
    cfg, kv, ulysses = split
    shards = [place % (kv * ulysses) // ulysses for place in range(tokens)]
    most = max(shards.count(shard) for shard in range(kv))
    return 2 * LAYERS * most * HEADS // ulysses * HEAD_DIM * 4 * branches // cfg


@every_case
@every_split
def test_the_video_of_one_process(together, alone, split, policy, size):
    ranks = [rank[policy, size] for rank in together(split)]
    assert_same_video(ranks, alone[policy, size])
    record = ranks[0][2]
    cfg, kv, ulysses = split
    assert record["mesh"] == {"cfg": cfg, "kv": kv, "ulysses": ulysses, "world": cfg * kv * ulysses}
    assert [step["kind"] for step in record["steps"]] == (KINDS if policy == "jano" else ["full"] * STEPS)


@pytest.mark.parametrize("size", SIZES)
@every_split
def test_full_is_diffusers(together, diffusers_latents, split, size):
    for rank in together(split):
        assert np.abs(rank["full", size][0] - diffusers_latents(size, 3.0)).max() <= 1e-4


@every_case
@every_split
def test_work_is_shared_evenly(together, split, policy, size):
    cfg, kv, ulysses = split
    sequence = kv * ulysses
    for step in together(split)[0][policy, size][2]["steps"]:
        computed = step["ranks"]["tokens"]
        assert len(computed) == cfg * sequence
        for branch in range(cfg):
            assert sum(computed[branch * sequence :][:sequence]) == step["tokens"]
        assert max(computed) - min(computed) <= 1


@every_case
@every_split
def test_bytes_of_a_step_follow_the_tokens(together, split, policy, size):
    _, levels, record = together(split)[0][policy, size]
    at_least = {"active": 3, "moderate": 2, "refresh": 1, "full": 1}
    new_map = KINDS.index("refresh") if policy == "jano" else None
    for step in record["steps"][1:]:  # the first also sends what is settled before it
        computed = int((levels >= at_least[step["kind"]]).sum()) if policy == "jano" else TOKENS[size]
        mapped = step["index"] == new_map
        wanted = step_bytes(computed, TOKENS[size], split, mapped=mapped)
        assert step["tokens"] == computed
        assert step["comm_bytes"] == sum(step["ranks"]["comm_bytes"]) == wanted, step["index"]
    if policy == "jano":
        by_kind = {step["kind"]: step for step in record["steps"]}
        active, full = by_kind["active"], by_kind["full"]
        assert 0 < active["tokens"] < full["tokens"]
        share = active["tokens"] / full["tokens"]
        assert active["comm_bytes"] / full["comm_bytes"] == pytest.approx(share, rel=0.02)


@pytest.mark.parametrize("size", SIZES)
@every_split
def test_cache_bytes_per_rank(together, alone, split, size):
    whole = alone["jano", size][2]["memory"]["cache_bytes_per_rank"]
    assert whole == cache_bytes(TOKENS[size], (1, 1, 1))
    for rank in together(split):
        own = rank["jano", size][2]["memory"]["cache_bytes_per_rank"]
        assert own == cache_bytes(TOKENS[size], split)
        assert split[1] > 1 or own * math.prod(split) == whole
        # Where no step is sparse there is nothing to keep, and none of this allocated.
        assert rank["full", size][2]["memory"]["cache_bytes_per_rank"] == 0


@splits([(2, 1, 2), (1, 2, 2)], [(2, 1, 1), (1, 1, 3), (1, 1, 2), (1, 2, 1), (2, 2, 1), (1, 1, 6), (2, 1, 3)])
def test_two_collectives_per_layer_forward_and_dimension(split):
    cfg, kv, ulysses = split
    per_forward = 2 * LAYERS * ((ulysses > 1) + (kv > 1))
    in_forward = {"all_to_all_single": per_forward} if per_forward else {}
    forwards_per_step = 2 // cfg
    for forwards, steps, seconds in gang(math.prod(split), collectives, split):
        kinds = [kind for kind in KINDS for _ in range(forwards_per_step)]
        assert [exchanges for _, exchanges in forwards] == [in_forward] * len(kinds)
        # A full step leaves the cache alone.
        assert [bool(nbytes) for nbytes, _ in forwards] == [kind != "full" for kind in kinds]
        of_a_step = forwards_per_step * per_forward + (cfg > 1) + (kv * ulysses > 1)
        for index, step in enumerate(steps):
            mapped = index == KINDS.index("refresh")
            # Decisions, the map; in the first step whether there is a snapshot to go on from, text (how it is
            # laid out, in two, and itself) and noise. With the map, the digests of the plans.
            assert step["broadcast"] == 1 + mapped + 5 * (index == 0)
            assert step.get("all_gather", 0) == mapped
            assert step["all_to_all_single"] == of_a_step
            assert step.get("all_reduce", 0) == (index == 0)  # that all are there
            assert set(step) <= {"broadcast", "all_gather", "all_to_all_single", "all_reduce"}
        # Of time, what passes in them alone: a tick in each, and one more in waiting for one that was begun
        # earlier, which only those between shards are.
        waits = forwards_per_step * 2 * LAYERS * (kv > 1)
        for step, ticks in zip(steps[1:], seconds[1:], strict=True):
            assert ticks == sum(step.values()) + waits


@splits([(1, 1, 3)], [(2, 2, 1), (1, 1, 2), (2, 1, 2), (1, 4, 1), (2, 1, 3), (1, 1, 6), (1, 2, 3), (1, 5, 1)])
def test_odd_maps(alone, split):
    ranks = gang(math.prod(split), maps, split, timeout=600, collective_timeout=300)
    for name, (active, moderate, static) in MAPS.items():
        assert_same_video([rank[name] for rank in ranks], alone[name])
        tokens = {"full": 35, "refresh": active + moderate + static, "moderate": active + moderate}
        steps = ranks[0][name][2]["steps"]
        assert [step["tokens"] for step in steps] == [tokens.get(kind, active) for kind in MAP_KINDS]
        for step in steps[2:]:
            assert step["comm_bytes"] == step_bytes(step["tokens"], 35, split)
    assert_same_video([rank["choosing"] for rank in ranks], alone["choosing"])
    assert [step["kind"] for step in ranks[0]["choosing"][2]["steps"]] == list(CHOOSING)


def test_without_guidance_two_ranks_share_the_one_branch(diffusers_latents):
    ranks, one = gang(2, unguided), unguided()
    for policy in ("full", "jano"):
        assert_same_video([rank[policy] for rank in ranks], one[policy])
        record = ranks[0][policy][2]
        assert record["mesh"] == {"cfg": 1, "kv": 1, "ulysses": 2, "world": 2}
        for step in record["steps"][1:]:
            mapped = policy == "jano" and step["index"] == KINDS.index("refresh")
            wanted = step_bytes(step["tokens"], 45, (1, 1, 2), branches=1, mapped=mapped)
            assert step["comm_bytes"] == wanted
    assert record["memory"]["cache_bytes_per_rank"] == cache_bytes(45, (1, 1, 2), branches=1)
    assert np.abs(ranks[0]["full"][0] - diffusers_latents("clip", 1.0)).max() <= 1e-4


def test_the_coordinators_wish_counts(alone):
    assert_same_video(gang(2, asked_for_different_videos, (2, 1, 1)), alone["jano", "clip"])


@splits([(2, 1, 2)], [(2, 1, 1), (1, 1, 3), (1, 2, 2)])
def test_a_second_video_is_not_touched_by_the_first(split):
    for rank, (first, other, again) in enumerate(gang(math.prod(split), one_after_the_other, split)):
        for one, same in zip(first, again, strict=True):
            assert np.array_equal(one, same)
        assert not np.array_equal(first[0], other[0])
        assert len(first[2]) == (1 if rank == 0 else 0)  # frames are the coordinator's


class TestFailures:
    """Every rank ends with the same sentence, and nobody waits for a time-out."""

    @pytest.mark.parametrize(("world", "rank"), [(2, 1), (4, 1)])
    def test_another_plan_on_one_rank(self, world, rank):
        for sentence in gang(world, another_plan_on, rank):
            assert sentence.startswith(f"rank {rank} made another token plan than the coordinator")

    def test_what_goes_wrong_on_one_rank_is_seen_by_all(self):
        for sentence in gang(4, broken_weights_on, 3):
            assert sentence.startswith("the latents became non-finite in step 0 (full)")

    @pytest.mark.parametrize(("world", "gone"), [(2, 0), (4, 3)])
    def test_a_rank_that_is_gone_in_the_middle(self, world, gone):
        sentences = gang(world, without_a_rank_from_step_5_on, gone, timeout=60, collective_timeout=600)
        assert sentences.pop(gone) is None
        for sentence in sentences:
            assert sentence.startswith("contact with another rank was lost (")

    @pytest.mark.parametrize(
        ("world", "ranks", "overrides", "named"),
        [
            (2, [1], {"sampling.seed": 5}, "rank 1"),
            (3, [2], {"policy.static_threshold": 0.2}, "rank 2"),
            (4, [1, 3], {"sampling.steps": 11}, "ranks 1, 3"),
        ],
    )
    def test_another_config(self, world, ranks, overrides, named):
        for sentence in gang(world, another_config_on, ranks, overrides):
            assert sentence.startswith(f"another config on {named} than on rank 0: ")

    @pytest.mark.parametrize(
        "overrides", [{"mesh.cfg": 1}, pytest.param({"sampling.guidance": 1.0}, marks=slow)]
    )
    def test_a_config_that_leads_to_another_mesh(self, overrides):
        for sentence in gang(2, another_config_on, [1], overrides):
            assert sentence.startswith("another config on rank 1 than on rank 0: ")

    def test_other_versions(self):
        for sentence in gang(3, other_versions_on, 2):
            assert sentence.startswith("other software versions on rank 2 than on rank 0: ")

    def test_another_kernel(self):
        for sentence in gang(2, another_kernel_on, 1):
            assert sentence.startswith("another attention kernel on rank 1 than on rank 0: ")

    def test_another_model_under_the_same_name(self, model_copy, tmp_path):
        """One tensor of the text encoder; the header, all names and all sizes stay the same."""
        file = model_copy.weights("text_encoder")
        content = bytearray(file.read_bytes())
        content[-200_000:] = bytes(200_000)
        model_copy.write(file, bytes(content))
        (tmp_path / "copy").symlink_to(model_folder("wan-tiny"))
        folders = [tmp_path, model_copy.folder.parent, tmp_path]
        for sentence in gang(3, the_model_below, folders):
            assert sentence.startswith("other model files on rank 1 than on rank 0: ")

    @pytest.mark.parametrize(
        ("world", "overrides", "wish", "first"),
        [
            (4, {"mesh.ulysses": 4}, "--ulysses 4", "--cfg 2 --kv 1 --ulysses 2"),
            (3, {"mesh.cfg": 2}, "--cfg 2", "--cfg 1 --kv 1 --ulysses 3"),
            (2, {"sampling.guidance": 1.0, "mesh.cfg": 2}, "--cfg 2", "--cfg 1 --kv 1 --ulysses 2"),
        ],
    )
    def test_degrees_that_do_not_fit(self, world, overrides, wish, first):
        for sentence in gang(world, degrees_that_do_not_fit, overrides):
            assert sentence.startswith(f"{wish} does not fit {world} ranks with 6 heads")
            assert f": use {first}" in sentence
