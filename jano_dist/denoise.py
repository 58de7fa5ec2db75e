"""The loop: for each timestep decide, compute those rows, step, observe."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jano_dist import observe
from jano_dist.attention.kernels import TORCH, Kernel
from jano_dist.cache import Cache, CacheSizes, Keeping, NoCache, make_caches
from jano_dist.config import Config
from jano_dist.errors import NotFinite, RunError, name_ranks
from jano_dist.forwards import Forwards
from jano_dist.mesh import Mesh
from jano_dist.models import Branch, Conditions, DiffusionModel, split_conditions, with_first_frame
from jano_dist.observe import Observer, StepRecord, merge_ranks, step_table
from jano_dist.policies import BlockPolicy, Policy
from jano_dist.reuse import BlockCache, Setting
from jano_dist.runtime import release
from jano_dist.sampling.flow import Path
from jano_dist.sampling.scheduler_state import restore_scheduler, scheduler_state
from jano_dist.sampling.velocity import VelocityRows
from jano_dist.snapshot import Snapshot, Snapshots
from jano_dist.tokens.complexity import ACTIVE
from jano_dist.tokens.grid import Shape3
from jano_dist.tokens.plan import Deal, TokenPlan
from jano_dist.tokens.schedule import StepKind

_KINDS = list(StepKind)
# Before the names of their tensors in a snapshot.
_CONDITION, _SCHEDULER, _VELOCITY = "condition.", "scheduler.", "velocity."


@dataclass
class State:
    """Everything a step needs to go on. One per generation; a step replaces or writes every field."""

    latent: Tensor  # float32 [C, T, H, W]
    conditions: Conditions  # of all branches
    branches: list[Branch]  # this rank's: cond, then uncond, or under CFG parallelism one of them
    caches: list[Cache]  # one per branch; null until a map is known
    plan: TokenPlan
    velocity: VelocityRows
    levels: Tensor  # uint8 [N], natural order
    scheduler: Any
    times: list[float]  # the scheduler's timesteps, 1000..0: on the device each look would wait for it
    path: Path  # the scheduler's
    workspace_bytes: int = 0  # of the buffers that caches share
    next_step: int = 0
    expert: int = 0  # whose branches these are
    mapped: bool = False  # whether the levels are a policy's
    steps: list[StepRecord] = field(default_factory=list)  # taken by this process
    earlier: list[dict[str, Any]] = field(default_factory=list)  # merged records of those before a snapshot


class Denoiser:
    """From noise to a latent, on all ranks of a mesh. Holds nothing of a generation: that is in `State`.

    Args:
        config: sampling and cache settings.
        model: computes rows. mesh: the ranks that share the work.
        latent: (T, H, W) positions.
        kernel: of self-attention.
    """

    def __init__(
        self, config: Config, model: DiffusionModel, mesh: Mesh, latent: Shape3, kernel: Kernel = TORCH
    ) -> None:
        self._forwards = Forwards(model, mesh, kernel, config.cache)
        self._config, self._model, self._mesh, self._latent = config, model, mesh, latent
        t, h, w = (size // edge for size, edge in zip(latent, model.geometry.patch, strict=True))
        self.token_shape: Shape3 = (t, h, w)
        self._joint = model.geometry.joint_tokens(config.model.max_sequence_length)

    def begin(self, conditions: Conditions, seed: int, *, forecasts: bool = False) -> State:
        """The state before the first step; the noise is the coordinator's.

        Args:
            conditions: of all branches, the same on every rank.
            forecasts: see `Policy`.
        """
        model, mesh, sampling = self._model, self._mesh, self._config.sampling
        plan = TokenPlan.natural(int(np.prod(self.token_shape)), model.device, self._joint)
        if model.geometry.experts > 1:
            model.use(0)
        scheduler = model.scheduler(sampling.steps, sampling.shift, self._latent)
        return State(
            latent=with_first_frame(mesh.broadcast(model.noise(self._latent, seed).contiguous()), conditions),
            conditions=conditions,
            branches=self._branches(conditions, 0),
            caches=self._idle(conditions),
            plan=plan,
            velocity=self._no_velocity(plan, forecasts=forecasts),
            levels=torch.full((plan.tokens,), ACTIVE, dtype=torch.uint8, device=model.device),
            scheduler=scheduler,
            times=scheduler.timesteps.tolist(),
            path=Path.of(scheduler),
        )

    def _branches(self, conditions: Conditions, expert: int) -> list[Branch]:
        """This rank's branches for one of the experts."""
        model, mesh = self._model, self._mesh
        half = split_conditions(conditions, mesh.size("cfg"))[mesh.index("cfg")]
        guidance = self._guidance(expert)
        return [model.branch(each, guidance, expert) for each in split_conditions(half, len(half["text"]))]

    def _idle(self, conditions: Conditions) -> list[Cache]:
        """Caches that keep nothing, one per branch of this rank."""
        branches = len(conditions["text"]) // self._mesh.size("cfg")
        return [NoCache(self._model.geometry.attentions) for _ in range(branches)]

    def _no_velocity(self, plan: TokenPlan, *, forecasts: bool) -> VelocityRows:
        model = self._model
        return VelocityRows(
            plan.tokens, model.geometry.row_width, model.dtype, model.device, forecasts=forecasts
        )

    def _guidance(self, expert: int) -> float:
        sampling = self._config.sampling
        second = sampling.guidance_2 if expert else None
        return sampling.guidance if second is None else second

    def _enter(self, state: State, expert: int) -> None:
        """Another expert's steps begin: keys, values and velocities of the last one are of no use to it.

        The map's order of tokens stays until there is another map.
        """
        state.caches, state.branches = self._idle(state.conditions), []
        self._model.use(expert)
        state.expert, state.branches = expert, self._branches(state.conditions, expert)
        state.velocity = self._no_velocity(state.plan, forecasts=state.velocity.forecasts)
        if state.mapped:
            self._start_caches(state)

    def resume(self, snapshot: Snapshot, policy: Policy) -> State:
        """The state that a snapshot holds, on all ranks of this mesh; its caches are empty.

        `policy`, of this run, takes up what it knew.
        """
        tensors, device = snapshot.tensors, self._model.device
        conditions = _named(tensors, _CONDITION, device)
        state = self.begin(conditions, seed=0, forecasts=policy.forecasts)
        state.latent = tensors["latent"].to(device)
        expert = self._expert(state, snapshot.step)
        if expert != state.expert:
            self._enter(state, expert)
        if expert == self._expert(state, snapshot.step - 1):  # else it begins with nothing
            state.velocity.restore({name: each.to(device) for name, each in tensors.items()}, _VELOCITY)
        policy.recall(snapshot.facts["policy"])
        state.next_step, state.earlier = snapshot.step, list(snapshot.facts["steps"])
        own = {name: each for name, each in tensors.items() if name.startswith(_SCHEDULER)}
        restore_scheduler(state.scheduler, snapshot.facts["scheduler"], own, device)
        if "levels" in tensors:
            self._replan(state, tensors["levels"].to(device))
        return state

    def _expert(self, state: State, index: int) -> int:
        """Whose step that is; before the first and after the last one, that of the nearest."""
        return self._model.geometry.expert(state.times[min(max(index, 0), len(state.times) - 1)])

    def run(
        self,
        state: State,
        policy: Policy,
        observer: Observer,
        snapshots: Snapshots,
        facts: Mapping[str, Any],
    ) -> None:
        """Take every step from `state.next_step` on. Writes to `state`.

        Args:
            snapshots: where the coordinator keeps them. facts: what they hold besides the state.

        Raises:
            NotFinite: the latents became so. RunError: ranks made different plans.
        """
        self._mesh.take_traffic()  # what was sent until here is no part of the first step
        timesteps = state.scheduler.timesteps
        levels: Tensor | None = None
        first = state.next_step
        if isinstance(policy, BlockPolicy):
            layers, branches = self._model.geometry.layers, len(state.branches)
            state.caches = [*policy.caches(Setting(self._mesh, layers, branches, state.times, first))]
        for index in range(first, len(timesteps)):
            started = time.perf_counter()
            if self._expert(state, index) != state.expert:
                self._enter(state, self._expert(state, index))
            kind, mapped, kept = self._decision(
                policy, index, levels, index > first and snapshots.due(last=False)
            )
            if mapped:
                self._replan(state, levels)
            if kept:
                self._keep(state, policy, index, snapshots, facts)
            chosen = kind is StepKind.CHOSEN
            deal = self._chosen(state.plan, policy, index) if chosen else self._deal(state.plan, kind)
            predicted = self._predicted(state, index, timesteps[index], kind, deal)
            velocity = state.path.straight_velocity(predicted, state.latent[None], index)
            stepped = state.scheduler.step(
                predicted, timesteps[index], state.latent[None], return_dict=False
            )[0]
            state.latent = with_first_frame(stepped[0], state.conditions)
            if not bool(state.latent.isfinite().all()):
                raise NotFinite(
                    f"the latents became non-finite in step {index} ({kind}): "
                    "use model.dtype float32 or bfloat16, lower guidance, or check the weights"
                )
            levels = self._observe(state, policy, velocity[0], kind)
            state.steps.append(self._step_record(state, index, kind, deal, started))
            state.next_step = index + 1
            observer.step(state.steps[-1], len(timesteps))
        if state.steps and self._mesh.decide(int(snapshots.due(last=True)))[0]:  # decoding may fail, too
            self._keep(state, policy, len(timesteps), snapshots, facts)

    def step_rows(self, state: State) -> list[dict[str, Any]]:
        """The records of all steps so far, those before a snapshot too, merged over the ranks."""
        own = self._mesh.collect(step_table(state.steps))
        return [*state.earlier, *merge_ranks(state.steps, own)]

    def _decision(
        self, policy: Policy, index: int, levels: Tensor | None, due: bool
    ) -> tuple[StepKind, bool, bool]:
        """What this step computes, whether a new map comes first, and whether a snapshot is taken before it:
        the coordinator's word, everywhere."""
        mine = (0, 0)
        if self._mesh.is_coordinator:
            keep = due and policy.starts_afresh(index)
            mine = _KINDS.index(policy.decide(index)), (levels is not None) + 2 * keep
        kind, flags = self._mesh.decide(*mine)
        return _KINDS[kind], bool(flags & 1), bool(flags & 2)

    def _keep(
        self, state: State, policy: Policy, index: int, snapshots: Snapshots, facts: Mapping[str, Any]
    ) -> None:
        """Take a snapshot; what ranks know of the steps is gathered for it."""
        steps = self.step_rows(state)
        if not self._mesh.is_coordinator:
            return
        settings, tensors = scheduler_state(state.scheduler, _SCHEDULER)
        kept = {
            **{_CONDITION + name: each for name, each in state.conditions.items()},
            "latent": state.latent,
            **state.velocity.kept(_VELOCITY),
            **tensors,
            **({"levels": state.levels} if state.mapped else {}),
        }
        own = {"steps": steps, "scheduler": settings, "policy": policy.memory()}
        snapshots.keep(index, Snapshot(index, kept, {**facts, **own}).pack())

    def _observe(self, state: State, policy: Policy, velocity: Tensor, kind: StepKind) -> Tensor | None:
        """Show the coordinator's policy what came out; its new map, if it made one."""
        if not self._mesh.is_coordinator:
            return None
        if kind is not StepKind.SKIP and state.velocity.error is not None:
            policy.learn(state.next_step, float(state.velocity.error))
        return policy.observe(state.next_step, velocity)

    def _chosen(self, plan: TokenPlan, policy: Policy, index: int) -> Deal:
        """The coordinator's choice of tokens for one step."""
        mesh = self._mesh
        chosen = policy.choose(index) if mesh.is_coordinator else torch.empty(plan.tokens, dtype=torch.bool)
        sent = mesh.broadcast(chosen.to(self._model.device, torch.uint8))
        return plan.deal_chosen(sent.bool(), mesh.size("sequence"), mesh.size("kv"))

    def _deal(self, plan: TokenPlan, kind: StepKind) -> Deal:
        return plan.deal(kind, self._mesh.size("sequence"), self._mesh.size("kv"))

    def _predicted(self, state: State, index: int, timestep: Tensor, kind: StepKind, deal: Deal) -> Tensor:
        """The guided prediction [1, C, T, H, W]: fresh in the deal's rows, elsewhere held or forecast."""
        sigma = float(state.path.sigmas[index])
        if kind is not StepKind.SKIP:
            rows = self._compute(state, timestep, kind, deal)
            state.velocity.update(deal.rows, rows, sigma)
        return self._model.unpatchify(state.velocity.at(sigma), self._latent)[None]

    def _compute(self, state: State, timestep: Tensor, kind: StepKind, deal: Deal) -> Tensor:
        """Guided velocity rows [n, P] of the tokens in a deal, on every rank."""
        idle: list[Cache] = [NoCache(self._model.geometry.attentions)] * len(state.branches)
        caches = idle if kind is StepKind.FULL else state.caches
        branches = list(zip(state.branches, caches, strict=True))
        every, guidance = self._deal(state.plan, StepKind.REFRESH), self._guidance(state.expert)
        return self._forwards.rows(state.latent, timestep, branches, deal, every, guidance)

    def _replan(self, state: State, levels: Tensor | None) -> None:
        """A new map, of the coordinator: order the tokens by it and start empty caches in that order."""
        mesh = self._mesh
        state.levels = mesh.broadcast(torch.empty_like(state.levels) if levels is None else levels)
        state.plan, state.mapped = TokenPlan.from_levels(state.levels, self._joint), True
        others = mesh.differing(state.plan.digest())
        if others:
            raise RunError(
                f"{name_ranks(others)} made another token plan than the coordinator from the same "
                "complexity map: run the same version of jano_dist and torch on every rank"
            )
        self._start_caches(state)

    def _start_caches(self, state: State) -> None:
        """Empty caches in the plan's order."""
        model, settings = self._model, self._config.cache
        if not model.geometry.regions:  # nobody would read them
            return
        release(model.device)
        state.caches, state.workspace_bytes = make_caches(
            settings.kind,
            Keeping(settings.dtype, settings.device),
            self._cache_sizes(state.plan),
            len(state.branches),
            model.dtype,
            model.device,
        )

    def _cache_sizes(self, plan: TokenPlan) -> CacheSizes:
        geometry, mesh = self._model.geometry, self._mesh
        every, ulysses = self._deal(plan, StepKind.REFRESH), mesh.size("ulysses")
        shard = mesh.index("kv") * ulysses

        def sizes(layers: int, counts: tuple[int, ...]) -> CacheSizes:
            return CacheSizes(
                layers=layers,
                tokens=counts[mesh.index("sequence")],
                shard_tokens=sum(counts[shard : shard + ulysses]),
                heads=geometry.heads,
                shard_heads=geometry.heads // ulysses,
                head_dim=geometry.head_dim,
            )

        second = sizes(geometry.second_layers, every.counts) if geometry.second_layers else None
        return replace(sizes(geometry.layers, every.sequence_counts), second=second)

    def _step_record(
        self, state: State, index: int, kind: StepKind, deal: Deal, started: float
    ) -> StepRecord:
        traffic = self._mesh.take_traffic()
        observe.synchronize(self._model.device)
        tokens, own_tokens = sum(deal.counts), deal.counts[self._mesh.index("sequence")]
        cache = state.caches[0]
        return StepRecord(
            index=index,
            kind=kind.value,
            tokens=tokens,
            own_tokens=own_tokens,
            seconds=time.perf_counter() - started,
            comm_seconds=traffic.seconds,
            comm_bytes=traffic.nbytes,
            blocks=cache.work_of(tokens, own_tokens) if isinstance(cache, BlockCache) else None,
            began=started,
        )


def _named(tensors: Mapping[str, Tensor], prefix: str, device: torch.device) -> dict[str, Tensor]:
    """A snapshot's tensors whose names begin so, without the prefix."""
    own = {name: each for name, each in tensors.items() if name.startswith(prefix)}
    return {name.removeprefix(prefix): each.to(device) for name, each in own.items()}
