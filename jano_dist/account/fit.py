"""Does it fit, and if not: the cheapest change that makes it fit."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal

import torch

from jano_dist.account.memory import Memory, caches_anything, memory_of, nccl_bytes
from jano_dist.config import CHOOSING, Config, FullPolicyConfig
from jano_dist.degrees import Degrees, choose_degrees, explain_degrees, traffic_cost, valid_degrees
from jano_dist.errors import UserError
from jano_dist.models.sizes import ModelSizes, read_sizes
from jano_dist.observe import host_memory

GIB = 2**30

# What is left alone: fragments between allocations, small buffers of libraries, and our estimates' error.
HEADROOM = 0.05

_MOST_RANKS = 64  # further than this nobody is sent

# Config keys that save memory, in the order of what they cost in time or quality.
_SAVINGS = (
    ("model.text_encoder", "reload"),
    ("cache.dtype", "fp8"),
    ("cache.kind", "hidden"),
    ("cache.device", "cpu"),
    ("model.weights", "fsdp"),
    ("model.weights", "group_offload"),
    ("model.vae_tiling", True),
)
_CACHE_KEYS = {"cache.dtype", "cache.kind", "cache.device"}


@dataclass(frozen=True)
class Room:
    """What a rank may use, in bytes.

    Attributes:
        accelerator: free on the device, before headroom.
        host: free in host memory for this rank; None where that is not known. Where the device is the
            host (`shared`) it is the same memory.
        taken: by NCCL already, and so no longer in `accelerator`.
    """

    accelerator: int
    host: int | None = None
    shared: bool = False
    taken: int = 0

    @property
    def usable(self) -> int:
        """Bytes on the accelerator less headroom."""
        return int(self.accelerator * (1 - HEADROOM))

    def needed(self, memory: Memory) -> int:
        """What of `memory` has to fit into `usable`."""
        return memory.peak - self.taken + (memory.host_bytes if self.shared else 0)

    def holds(self, memory: Memory) -> bool:
        """Whether it fits, on the accelerator and in host memory."""
        host = self.shared or self.host is None or memory.host_bytes <= self.host * (1 - HEADROOM)
        return self.needed(memory) <= self.usable and host


def mesh_for(
    sizes: ModelSizes, config: Config, *, world: int, local_world: int, asked: bool = True
) -> Degrees:
    """The mesh that the engine would choose; `asked`: with the degrees that the config fixes."""
    return choose_degrees(
        config.mesh if asked else type(config.mesh)(),
        world=world,
        local_world=local_world,
        hidden=config.cache.kind == "hidden",
        **_branching(sizes, config),
    )


def mesh_choice(sizes: ModelSizes, config: Config, degrees: Degrees, *, local_world: int) -> str:
    """One line on why `mesh_for` answered `degrees`."""
    return explain_degrees(
        degrees,
        config.mesh,
        local_world=local_world,
        hidden=config.cache.kind == "hidden",
        **_branching(sizes, config),
    )


def _branching(sizes: ModelSizes, config: Config) -> dict[str, Any]:
    """What decides which meshes are possible: heads to divide, and whether there are two branches."""
    return {"heads": sizes.geometry.heads, "guided": sizes.geometry.branches(config.sampling.guidance) == 2}


def cheapest(
    sizes: ModelSizes, config: Config, room: Room, *, world: int, local_world: int
) -> tuple[str, Memory] | None:
    """The options of the first setting that fits, cheapest first, and what it needs; None: nothing does.

    First another mesh; then one change, two, ...; then more ranks, a power of two as many; then no cache.
    """
    for degrees in _meshes(sizes, config, world, local_world):
        memory = memory_of(sizes, config, degrees, gpu=not room.shared)
        if room.holds(memory):
            return " ".join(f"--{dim} {degree}" for dim, degree in degrees._asdict().items()), memory
    for changes in _changes(config, world):
        changed = _with(config, changes)
        degrees = mesh_for(sizes, changed, world=world, local_world=local_world)
        memory = memory_of(sizes, changed, degrees, gpu=not room.shared)
        if room.holds(memory):
            return " ".join(f"--set {key}={_yaml(value)}" for key, value in changes), memory
    ranks = 2 * world
    while ranks <= _MOST_RANKS:
        degrees = mesh_for(sizes, config, world=ranks, local_world=min(ranks, local_world), asked=False)
        memory = memory_of(sizes, config, degrees, gpu=not room.shared)
        if room.holds(memory):
            return f"{ranks} ranks", memory
        ranks *= 2
    if caches_anything(config):
        full = config.model_copy(update={"policy": FullPolicyConfig()})
        degrees = mesh_for(sizes, full, world=world, local_world=local_world)
        memory = memory_of(sizes, full, degrees, gpu=not room.shared)
        if room.holds(memory):
            return "--policy full", memory
    return None


def _meshes(sizes: ModelSizes, config: Config, world: int, local_world: int) -> list[Degrees]:
    """Every mesh of as many ranks, those that send least first."""
    hidden = config.cache.kind == "hidden"
    return sorted(
        valid_degrees(world=world, **_branching(sizes, config)),
        key=lambda degrees: traffic_cost(degrees, local_world, hidden=hidden),
    )


def complaint(
    sizes: ModelSizes, config: Config, degrees: Degrees, room: Room, *, local_world: int
) -> str | None:
    """One sentence on why it does not fit and what would; None when it fits."""
    memory = memory_of(sizes, config, degrees, gpu=not room.shared)
    if room.holds(memory):
        return None
    world = degrees.cfg * degrees.kv * degrees.ulysses
    found = cheapest(sizes, config, room, world=world, local_world=local_world)
    remedy = "use a smaller video or model, or a larger device"
    if found:
        option, cheaper = found
        verb = "start" if option.endswith("ranks") else "use"
        in_host = f" and {gib(cheaper.host_bytes)} of host memory" if cheaper.host and not room.shared else ""
        remedy = f"{verb} {option} ({gib(room.needed(cheaper))}{in_host} per rank)"
    return f"{_shortage(memory, room)}: {remedy}"


def check_fit(
    config: Config, degrees: Degrees, device: torch.device, *, local_world: int = 1, formed: bool = False
) -> Literal["keep", "reload"]:
    """Refuse what cannot fit, before anything is loaded. Each rank checks its own device.

    Args:
        degrees: of the mesh. device: this rank's.
        local_world: ranks on this machine, which share its host memory.
        formed: whether the mesh has been formed, and what is free is less what NCCL took for it.

    Returns:
        What becomes of the text encoder between prompts: as the config says, or where that is `auto`, `keep`
        if it fits beside all else.

    Raises:
        UserError: it does not fit; the sentence names the cheapest setting that does.
    """
    sizes, room = read_sizes(config.model.name), room_on(device, local_world)
    if room and formed and not room.shared:
        room = replace(room, taken=nccl_bytes(degrees))
    problem = complaint(sizes, config, degrees, room, local_world=local_world) if room else None
    if problem:
        raise UserError(problem)
    if config.model.text_encoder != "auto":
        return config.model.text_encoder
    kept = _with(config, (("model.text_encoder", "keep"),))
    fits = room is None or room.holds(memory_of(sizes, kept, degrees, gpu=not room.shared))
    return "keep" if fits else "reload"


def room_on(device: torch.device, local_world: int) -> Room | None:
    """What is free for one rank now; None where this machine does not say."""
    free = host_memory()["free_bytes"]
    host = None if free is None else free // local_world
    if device.type == "cuda":
        return Room(torch.cuda.mem_get_info(device)[0], host)
    return None if host is None else Room(host, host, shared=True)


def gib(size: float) -> str:
    """Bytes in GiB, as nvidia-smi counts them."""
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"


def _shortage(memory: Memory, room: Room) -> str:
    """What is needed, its largest parts, and what there is."""
    if room.needed(memory) <= room.usable:
        assert room.host is not None
        return (
            f"a rank needs about {gib(memory.host_bytes)} of host memory but {gib(room.host)} are free "
            f"for it ({HEADROOM:.0%} of which are kept as headroom)"
        )
    phase = max(memory.phases, key=lambda name: memory.phases[name])
    parts = Counter(memory.encode if phase == "encode" else memory.resident)
    if room.shared:
        parts.update(memory.host)
    if phase == "decode":
        parts.subtract({name: memory.resident[name] for name in ("cache", "working buffers")})
    if phase != "encode":
        parts["activations" if phase == "denoise" else "decoding"] = sum(getattr(memory, phase).values())
    parts["NCCL"] -= room.taken
    largest = [name for name, size in parts.most_common(3) if size]
    named = ", ".join(f"{name} {gib(parts[name])}" for name in largest)
    return (
        f"a rank needs about {gib(room.needed(memory))} to {phase} ({named}) but {gib(room.accelerator)} are "
        f"free for it ({HEADROOM:.0%} of which are kept as headroom)"
    )


def _changes(config: Config, world: int) -> Iterator[tuple[tuple[str, object], ...]]:
    """Sets of changes that make sense, one change at a time first, cheapest first."""
    useful = [
        (key, value)
        for key, value in _SAVINGS
        if _get(config, key) != value
        and (key not in _CACHE_KEYS or (caches_anything(config) and config.policy.name not in CHOOSING))
        and (value != "fsdp" or world > 1)
    ]
    for count in range(1, len(useful) + 1):
        for changes in combinations(useful, count):
            if len(dict(changes)) == count:  # not two values of one key
                yield changes


def _get(config: Config, key: str) -> object:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def _with(config: Config, changes: tuple[tuple[str, object], ...]) -> Config:
    for key, value in changes:
        section, name = key.split(".")
        changed = getattr(config, section).model_copy(update={name: value})
        config = config.model_copy(update={section: changed})
    return config


def _yaml(value: object) -> str:
    return str(value).lower()
