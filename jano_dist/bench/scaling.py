"""`jano-dist bench scaling` in a rank: load once, then every case that is missing, in turns.

Only denoising is measured: nothing is decoded, and text and weights are read before.
"""

import gc
import os
import socket
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jano_dist.bench.parts import PartsFolder
from jano_dist.bench.scaling_cases import PROMPT, Case, Question, mesh_name, short
from jano_dist.bench.stand_ins import Rearranged, Undecoded
from jano_dist.config import Config
from jano_dist.engine import Engine
from jano_dist.errors import PeerLost, RunError
from jano_dist.models.peers import Peer, load_peer, why_not
from jano_dist.observe import NullObserver
from jano_dist.policies import Policy, make_policy
from jano_dist.runtime import release
from jano_dist.tokens.complexity import ACTIVE, MODERATE, STATIC

_SEED = 0


class Rank:
    """One rank's part of the measurement; on every rank the same cases in the same order.

    Args:
        question: what is asked. folder: where the coordinator looks what is missing, and keeps figures.
        say: told a line for every finished case, on the coordinator.
    """

    def __init__(self, question: Question, folder: PartsFolder, say: Callable[[str], object]) -> None:
        self._question, self._folder, self._say = question, folder, say
        self._engines: dict[Case, Engine] = {}
        first = next(iter(question.configs.values()))
        engine = Engine(first.model_copy(update={"mesh": type(first.mesh)()}))
        self._model: Any = Undecoded(engine.model)
        self._everyone, self._latent = engine.mesh, engine.latent_shape
        self._crowded = self._too_many_ranks()
        geometry = engine.model.geometry
        guided = geometry.branches(first.sampling.guidance) == 2
        self._cases = question.cases(self._everyone.world, heads=geometry.heads, guided=guided)
        self._prompts = [PROMPT, first.sampling.negative_prompt] if guided else [PROMPT]
        self._full: Tensor | None = None  # what `full` made, which a peer should make, too

    def take_turns(self, rounds: int) -> None:
        """Every case of every round that is not there yet; peers come after ours."""
        world = self._everyone.world
        for turn in range(1, rounds + 1):
            for case in self._cases:
                part = case.part(world, turn)
                if self._everyone.decide(int(self._folder.has(part)))[0]:
                    continue
                figures = self._peer(case) if case.is_peer else self._ours(case)
                if self._everyone.is_coordinator:
                    whole = {
                        "side": case.side,
                        "peer": case.is_peer,
                        "world": world,
                        "round": turn,
                        **figures,
                    }
                    self._folder.keep(part, whole)
                    self._say(f"round {turn}, {_told(whole)}")
                self._everyone.await_everyone()

    def _ours(self, case: Case) -> dict[str, Any]:
        made = self._engine(case).generate(PROMPT, seed=_SEED, observer=NullObserver())
        record = made.record
        if case.side == "full":
            self._full = made.latents
        return {
            "mesh": record["mesh"],
            "device": record["device"],
            "crowded": self._crowded,
            "levels": record["levels"],
            "work": record["flops"]["done"] / record["flops"]["full"],
            "seconds": record["seconds"],
            "memory": record["memory"],
            "energy_joules": record["telemetry"]["energy_joules"],
            "steps": record["steps"],
        }

    def _engine(self, case: Case) -> Engine:
        """Made once and warmed up."""
        if case not in self._engines:
            config = self._question.config(case)
            warm = Engine(short(config), model=self._model, policies=self._policies)
            warm.generate(PROMPT, seed=_SEED, observer=NullObserver())
            warm.mesh.time_collectives()  # on GPUs too: what they take is asked for here
            engine = Engine(config, model=self._model, mesh=warm.mesh, policies=self._policies)
            engine.prepare(self._prompts)
            self._engines[case] = engine
        return self._engines[case]

    def _policies(self, settings: Mapping[str, Any], **facts: Any) -> Policy:
        inner = make_policy(settings, **facts)
        active, moderate = self._question.active, self._question.moderate
        if active is None:
            return inner
        tokens = int(np.prod([s // p for s, p in zip(facts["latent"], facts["patch"], strict=True)]))
        levels = spread_map(tokens, active=active, moderate=moderate)
        return Rearranged(inner, lambda made: levels.to(made))

    def _peer(self, case: Case) -> dict[str, Any]:
        mesh, config = self._everyone, next(iter(self._question.configs.values()))
        tokens = int(np.prod([s // p for s, p in zip(self._latent, self._model.geometry.patch, strict=True)]))
        facts = {"world": mesh.world, "weights": config.model.weights, "device": self._model.device}
        reason = why_not(case.side, self._model.geometry, tokens, **facts)
        peer = None if reason else self._load(case, config)
        if isinstance(peer, str) or peer is None:
            return {"mesh": None, "crowded": self._crowded, "not_run": reason or peer}
        try:
            figures = self._their_run(peer, config)
        except PeerLost:
            raise
        except Exception as problem:
            sentence = f"{case.side} failed ({problem}): leave it out with --peers none"
            raise RunError(" ".join(sentence.split())) from problem
        del peer
        gc.collect()
        release(self._model.device)
        return figures

    def _load(self, case: Case, config: Config) -> Peer | str:
        """The peer, or why it cannot be loaded on one of the ranks."""
        mesh, sentence, peer = self._everyone, b"", None
        try:
            peer = load_peer(case.side, config.model.name, self._model, world=mesh.world, rank=mesh.rank)
        except Exception as problem:
            sentence = " ".join(f"it did not start ({type(problem).__name__}: {problem})".split()).encode()
        reasons = [each.decode() for each in mesh.collect_bytes(sentence) if each]
        return peer if peer is not None and not reasons else reasons[0]

    def _their_run(self, peer: Peer, config: Config) -> dict[str, Any]:
        sampling, mesh = config.sampling, self._everyone
        run = partial(peer.run, self._prompts, self._latent, guidance=sampling.guidance, shift=sampling.shift)
        with torch.inference_mode():
            run(steps=2, seed=_SEED)
            mesh.await_everyone()
            own, latent = run(steps=sampling.steps, seed=_SEED)
        seconds = mesh.collect(torch.tensor(own, dtype=torch.float64)).amax(0).tolist()
        off = None if self._full is None else float((latent.float() - self._full).abs().max())
        return {
            "mesh": {"cfg": 1, "kv": 1, "ulysses": mesh.world, "world": mesh.world},
            "crowded": self._crowded,
            "max_difference": off,
            "steps": [{"index": n, "kind": "full", "seconds": each} for n, each in enumerate(seconds)],
        }

    def _too_many_ranks(self) -> bool:
        """Whether ranks that compute on CPUs have to share cores."""
        if self._model.device.type != "cpu":
            return False
        host = zlib.crc32(socket.gethostname().encode())
        rows = self._everyone.collect(torch.tensor([host, os.cpu_count() or 1])).tolist()
        return any(sum(other[0] == host for other in rows) > cores for host, cores in rows)


def spread_map(tokens: int, *, active: float, moderate: float) -> Tensor:
    """A complexity map of given shares, uint8 [N]: what a step costs depends on the shares alone."""
    levels = torch.full((tokens,), STATIC, dtype=torch.uint8)
    order = torch.randperm(tokens, generator=torch.Generator().manual_seed(0))
    first, second = round(active * tokens), round((active + moderate) * tokens)
    levels[order[:first]], levels[order[first:second]] = ACTIVE, MODERATE
    return levels


def _told(figures: Mapping[str, Any]) -> str:
    ranks = f"{figures['world']} rank{'s' if figures['world'] > 1 else ''}"
    if "not_run" in figures:
        return f"{ranks}, {figures['side']}: not run: {figures['not_run']}"
    seconds = sum(step["seconds"] for step in figures["steps"])
    mesh = mesh_name(tuple(figures["mesh"][dim] for dim in ("cfg", "kv", "ulysses")))  # type: ignore[arg-type]
    return f"{ranks} ({mesh}), {figures['side']}: {seconds:.2f} s"
