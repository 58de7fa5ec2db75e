"""What `jano-dist bench scaling` measures: cases for each number of ranks. No torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jano_dist.config import Config, JanoPolicyConfig, MeshConfig, change_config
from jano_dist.degrees import Degrees, valid_degrees
from jano_dist.errors import UserError

Peer = Literal["diffusers", "xdit"]
PEERS: tuple[Peer, ...] = ("diffusers", "xdit")
PROMPT = "a red ball moves left over a navy striped background"


@dataclass(frozen=True)
class Case:
    """One side of the comparison at one number of ranks.

    Attributes:
        side: a policy's name, or a peer's.
        mesh: its degrees; None: the engine chooses, and a peer has its own.
    """

    side: str
    mesh: Degrees | None = None

    @property
    def is_peer(self) -> bool:
        """Whether it is another engine's."""
        return self.side in PEERS

    def part(self, world: int, turn: int) -> str:
        """The name of its figures in one round."""
        return f"ranks-{world:04}-round-{turn:03}-{self.side}-{mesh_name(self.mesh)}"


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        configs: of each policy, by name.
        meshes: to measure on, besides what is chosen for numbers of ranks that none of them has;
            None: every possible one.
        active, moderate: shares of a map from outside; None: the policy makes its own.
        peers: engines beside ours.
    """

    configs: dict[str, Config]
    meshes: tuple[Degrees, ...] | None
    active: float | None
    moderate: float
    peers: tuple[str, ...]

    def cases(self, world: int, *, heads: int, guided: bool) -> list[Case]:
        """Those of so many ranks, in the order in which they take turns."""
        possible = valid_degrees(world=world, heads=heads, guided=guided)
        if self.meshes is None:
            wanted: Sequence[Degrees | None] = possible
        else:
            wanted = [mesh for mesh in self.meshes if mesh in possible] or [None]
        ours = [Case(policy, mesh) for mesh in wanted for policy in self.configs]
        return [*ours, *(Case(peer) for peer in self.peers)]

    def config(self, case: Case) -> Config:
        """The config of one of our cases."""
        config = self.configs[case.side]
        if case.mesh is None:
            return config
        return config.model_copy(update={"mesh": MeshConfig(**case.mesh._asdict())})

    def as_json(self) -> dict[str, Any]:
        """What makes a folder of figures this question's; more ranks, meshes, peers and rounds may come."""
        where = {"mesh", "runtime", "snapshot"}
        shared = next(iter(self.configs.values())).model_dump(
            mode="json", exclude={*where, "policy", "preset"}
        )
        policies = {name: config.policy.model_dump(mode="json") for name, config in self.configs.items()}
        return {"config": shared, "policies": policies, "active": self.active, "moderate": self.moderate}


def mesh_name(mesh: Degrees | None) -> str:
    """`2x1x4` (cfg x kv x ulysses), or `auto`."""
    return "auto" if mesh is None else "x".join(map(str, mesh))


def parse_meshes(words: Sequence[str]) -> tuple[Degrees, ...] | None:
    """`auto`, `all`, or meshes such as `2x1x1` -> `Question.meshes`.

    Raises:
        UserError: one is none of these.
    """
    if "all" in words:
        return None
    return tuple(_mesh(word) for word in words if word != "auto")


def _mesh(word: str) -> Degrees:
    parts = word.split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"--meshes {word!r} is no mesh: write auto, all, or cfg x kv x ulysses such as 2x1x4")
    return Degrees(*map(int, parts))


def check_shares(active: float | None, moderate: float) -> None:
    """Refuse shares that are none.

    Raises:
        UserError: they are below 0, or more than all.
    """
    if active is not None and not (active >= 0 and moderate >= 0 and active + moderate <= 1):
        raise UserError(
            f"--active {active:g} and --moderate {moderate:g} are no shares of the tokens: "
            "give two numbers from 0 to 1 that sum to 1 at most"
        )


def short(config: Config) -> Config:
    """A run of few steps in which every kind of step is met: first uses cost more."""
    policy = config.policy
    if not isinstance(policy, JanoPolicyConfig):
        steps = max(2, getattr(policy, "warmup", 0) + getattr(policy, "cooldown", 0) + 1)
        return change_config(config.model_dump(mode="json"), {"sampling.steps": steps}, "of the first run")
    steps = 3 + policy.moderate_interval
    changes = {"sampling.steps": steps, "policy.warmup": 2, "policy.cooldown": 0}
    return change_config(config.model_dump(mode="json"), changes, "of the first run")


def turns(worlds: Sequence[int], rounds: int) -> Iterator[tuple[int, int]]:
    """(round, ranks): all numbers of ranks in every round, so that a machine that changes does so for all."""
    for turn in range(1, rounds + 1):
        for world in worlds:
            yield turn, world
