"""What each kind of step computes and sends, from shapes alone. Letters as in `account.memory`."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from jano_dist.account.caches import own_rows, shard_rows
from jano_dist.account.memory import branches_on_rank, caches_anything, model_elements, token_count
from jano_dist.attention.distributed import chunk_rows
from jano_dist.config import CHOOSING, Config, JanoPolicyConfig, UniformPolicyConfig
from jano_dist.degrees import Degrees
from jano_dist.errors import UserError
from jano_dist.geometry import Geometry
from jano_dist.models.sizes import ModelSizes
from jano_dist.tokens.budget import kind_of, step_counts
from jano_dist.tokens.schedule import Schedule, StepKind

_LSE = 4  # bytes of a partial output's float32 logarithm


@dataclass(frozen=True)
class Sent:
    """Bytes that one rank sends to others in one step.

    Attributes:
        ulysses: exchanges between rows and heads, all layers and branches of the rank.
        kv: queries and partial outputs of KV-resident attention.
        output: the swap between branches and the gather of the guided rows.
        ring: what ring attention would send in place of `kv`: all keys and values, in every step.
    """

    ulysses: int
    kv: int
    output: int
    ring: int

    @property
    def total(self) -> int:
        """What is sent."""
        return self.ulysses + self.kv + self.output


class Calls(NamedTuple):
    """Collectives that a rank takes part in in one step, by what they are for; see `Sent`."""

    ulysses: int
    kv: int
    output: int


@dataclass(frozen=True)
class StepWork:
    """One kind of step.

    Attributes:
        kind: full, refresh, moderate, active, chosen or skip. steps: how many of a generation are of it.
        tokens: computed, of each branch; of chosen ones, which may differ, the mean.
        flops: matrix-product FLOPs of all branches; a full step's are what one GPU would do.
        rank_flops: those of the rank that does most. rank_attention: of them those of attention kernels.
        rank_rows: tokens that it computes, of each branch.
        forwards: of the transformer that a rank runs, one per branch.
        sent: by the rank with the most tokens. calls: the collectives in which it does.
    """

    kind: str
    steps: int
    tokens: int
    flops: int
    rank_flops: int
    rank_attention: int
    rank_rows: int
    forwards: int
    sent: Sent
    calls: Calls


def steps_of(
    sizes: ModelSizes,
    config: Config,
    degrees: Degrees,
    *,
    active: float,
    moderate: float,
    device: str = "cuda",
) -> list[StepWork]:
    """Every kind of step that the config's policy takes.

    Args:
        active, moderate: shares of the tokens at these levels, 0..1; the rest is static.
        device: `cuda` or `cpu`, that it is planned for.

    Raises:
        UserError: a schedule that does not fit the number of steps.
    """
    tokens = token_count(sizes.geometry, config)
    computed = {
        StepKind.FULL: tokens,
        StepKind.REFRESH: tokens,
        StepKind.MODERATE: round(tokens * (active + moderate)),
        StepKind.ACTIVE: round(tokens * active),
        StepKind.SKIP: 0,
    }
    counts = _kinds(config)
    if config.policy.name in CHOOSING:
        counts, computed[StepKind.CHOSEN] = _chosen(config, tokens)
    return [
        step_work(sizes, config, degrees, kind, rows, counts[kind], device=device)
        for kind, rows in computed.items()
        if counts[kind]
    ]


def step_work(
    sizes: ModelSizes,
    config: Config,
    degrees: Degrees,
    kind: StepKind,
    rows: int,
    steps: int = 1,
    *,
    device: str = "cuda",
) -> StepWork:
    """A step of a kind that computes `rows` tokens on a `cuda` or `cpu` device."""
    if kind is StepKind.SKIP:
        return StepWork(kind.value, steps, 0, 0, 0, 0, 0, 0, Sent(0, 0, 0, 0), Calls(0, 0, 0))
    geometry, tokens = sizes.geometry, token_count(sizes.geometry, config)
    text = geometry.text_tokens(config.model.max_sequence_length)
    own, with_kv = (
        _own_video(geometry, config, each, degrees) for each in (rows, kv_rows(config, rows, tokens))
    )
    branches = geometry.branches(config.sampling.guidance)
    forwards = branches_on_rank(geometry, config, degrees)
    text_rows = own_rows(geometry.joint_tokens(config.model.max_sequence_length), degrees)
    rank_forward = geometry.forward_flops(own, tokens, text, kv_rows=with_kv, text_rows=text_rows)
    return StepWork(
        kind=kind.value,
        steps=steps,
        tokens=rows,
        flops=branches * branch_flops(geometry, config, rows, tokens),
        rank_flops=forwards * rank_forward,
        rank_attention=forwards * geometry.attention_flops(own, tokens, text, text_rows=text_rows),
        rank_rows=own,
        forwards=forwards,
        sent=sent_bytes(sizes, config, degrees, rows),
        calls=collectives(sizes, config, degrees, rows, device),
    )


def _own_video(geometry: Geometry, config: Config, rows: int, degrees: Degrees, rank: int = 0) -> int:
    """How many of the first `rows` tokens of the video a rank has; a joint model's text is dealt before."""
    joint = geometry.joint_tokens(config.model.max_sequence_length)
    return own_rows(joint + rows, degrees, rank) - own_rows(joint, degrees, rank)


def kv_rows(config: Config, rows: int, tokens: int) -> int:
    """Tokens of which a step that computes `rows` makes keys and values: all where the cache keeps what
    they are made from."""
    return tokens if config.cache.kind == "hidden" else rows


def branch_flops(
    geometry: Geometry, config: Config, rows: int, tokens: int, blocks: Mapping[str, int] | None = None
) -> int:
    """FLOPs of one branch's step that computes `rows` of its `tokens`; what one GPU would do.

    Args:
        blocks: what of the blocks was computed, where a cache inside them was used (`StepRecord.blocks`).
    """
    text = geometry.text_tokens(config.model.max_sequence_length)
    if blocks is not None:
        return geometry.reused_flops(blocks, tokens, text)
    return geometry.forward_flops(rows, tokens, text, kv_rows=kv_rows(config, rows, tokens))


def sent_bytes(sizes: ModelSizes, config: Config, degrees: Degrees, rows: int, *, rank: int = 0) -> Sent:
    """What a rank sends in a step that computes `rows` tokens; see docs/architecture.md.

    Ulysses, per layer: 3 n_r W e (u-1)/u in, with `hidden` keys and values of all N_r rows; and
    (n_s - n_r) (W/u) e out. KV-resident: n_s (W/u) e (kv-1) of queries, and (n - n_s) ((W/u) e + 4 h) of
    partial outputs with their logarithms. Once per step: n_r P e to the partner in the other branch, and to
    the other S - 1 ranks. The coordinator's decision, 16 bytes to each rank, is left out.
    """
    geometry, element = sizes.geometry, model_elements(sizes, config)[0]
    cfg, kv, ulysses = degrees
    joint = geometry.joint_tokens(config.model.max_sequence_length)
    tokens, every = joint + token_count(geometry, config), joint + rows
    own, shard = own_rows(every, degrees, rank), shard_rows(every, degrees, rank)
    with_kv = own_rows(kv_rows(config, every, tokens), degrees, rank)
    row = geometry.width // ulysses * element  # of the heads of one rank
    branches, partial = branches_on_rank(geometry, config, degrees), row + geometry.heads // ulysses * _LSE
    exchange = resident = ring = 0
    # Second attentions leave out the text, which is dealt before the rest.
    for layers, less in ((geometry.layers, 0), (geometry.second_layers, joint)):
        own_less, shard_less = own_rows(less, degrees, rank), shard_rows(less, degrees, rank)
        n_r, n_s, n = own - own_less, shard - shard_less, every - less
        forwards = layers * branches
        exchange += forwards * row * ((n_r + 2 * (with_kv - own_less)) * (ulysses - 1) + n_s - n_r)
        resident += forwards * (n_s * row * (kv - 1) + (n - n_s) * partial)
        ring += forwards * 2 * (shard_rows(tokens, degrees, rank) - shard_less) * row * (kv - 1)
    video = _own_video(geometry, config, rows, degrees, rank)
    output = video * geometry.row_width * element * (cfg - 1 + kv * ulysses - 1)
    return Sent(exchange, resident, output, ring)


def _chosen(config: Config, tokens: int) -> tuple[Counter[StepKind], int]:
    """How many steps of each kind a policy takes that chooses tokens, and how many it chooses in the mean."""
    policy, steps = config.policy.model_dump(), config.sampling.steps
    try:
        counts = step_counts(policy, steps=steps, tokens=tokens)
    except ValueError as error:
        raise UserError(str(error)) from error
    kinds = Counter(kind_of(count, tokens) for count in counts)
    kinds[StepKind.FULL] = steps - len(counts)
    chosen = [count for count in counts if kind_of(count, tokens) is StepKind.CHOSEN]
    return kinds, round(sum(chosen) / max(len(chosen), 1))


def collectives(sizes: ModelSizes, config: Config, degrees: Degrees, rows: int, device: str) -> Calls:
    """How many collectives carry what `sent_bytes` counts; see docs/architecture.md.

    Ulysses: one in and one out per layer, one more where keys and values are of more rows than queries.
    KV-resident: two for every chunk of queries, of which a `cuda` device has fewer than a `cpu`. Once per
    step the swap between branches and the gather.
    """
    cfg, kv, ulysses = degrees
    geometry, branches = sizes.geometry, branches_on_rank(sizes.geometry, config, degrees)
    tokens = token_count(sizes.geometry, config)
    apart = kv_rows(config, rows, tokens) != rows
    joint, at_a_time = geometry.joint_tokens(config.model.max_sequence_length), chunk_rows(device)
    first, second = (max(1, -(-each // at_a_time)) for each in (joint + rows, rows))
    chunks = geometry.layers * first + geometry.second_layers * second
    return Calls(
        ulysses=geometry.attentions * branches * (3 if apart else 2) if ulysses > 1 else 0,
        kv=branches * 2 * chunks if kv > 1 else 0,
        output=(cfg > 1) + (kv * ulysses > 1),
    )


def _kinds(config: Config) -> Counter[StepKind]:
    """How many steps of each kind any other policy takes."""
    policy, steps = config.policy, config.sampling.steps
    if isinstance(policy, UniformPolicyConfig):
        middle = max(steps - policy.warmup - policy.cooldown, 0)
        skipped = middle - middle // policy.interval
        return Counter({StepKind.FULL: steps - skipped, StepKind.SKIP: skipped})
    if not isinstance(policy, JanoPolicyConfig):  # a forecast decides as it goes: at most so many
        return Counter({StepKind.FULL: steps})
    try:
        schedule = Schedule(
            steps, policy.warmup, policy.cooldown, policy.static_interval, policy.moderate_interval
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    kinds = Counter(schedule.kind(step) for step in range(steps))
    assert caches_anything(config) or set(kinds) <= {StepKind.FULL, StepKind.SKIP}
    return kinds
