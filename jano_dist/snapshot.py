"""What a generation needs to go on in another process, on the same mesh or another: packed, checked, kept.

    OUT.jano-dist-unfinished/step-000012.snapshot

A snapshot is taken before a step that reads no cache, so no cache is in it: about 100 MB for Wan-14B at 720p.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from jano_dist.errors import UserError
from jano_dist.target import write_whole

if TYPE_CHECKING:  # the command line looks at facts, for which it need not wait for torch
    from torch import Tensor

_FORMAT = b"jano_dist snapshot 1 "
_KEPT = 2  # one may be damaged when the machine goes down
# What makes a video; how the ranks share the work may change.
_SAME = ("model", "video", "sampling", "policy")


@dataclass(frozen=True)
class Snapshot:
    """A generation before step `step`.

    Attributes:
        step: the next one, from 0.
        tensors: by name, on a CPU once unpacked.
        facts: JSON values.
    """

    step: int
    tensors: Mapping[str, "Tensor"]
    facts: Mapping[str, Any]

    def pack(self) -> bytes:
        """Bytes with a checksum: a line with format and SHA-256 of the rest, a line of JSON, safetensors."""
        from safetensors.torch import save

        facts = json.dumps({"step": self.step, **self.facts}, allow_nan=False).encode() + b"\n"
        # Clones, because tensors that share memory are refused.
        tensors = save({name: each.cpu().contiguous().clone() for name, each in self.tensors.items()})
        digest = hashlib.sha256(facts)
        digest.update(tensors)
        return b"".join([_FORMAT, digest.hexdigest().encode(), b"\n", facts, tensors])

    @classmethod
    def unpack(cls, packed: bytes) -> "Snapshot":
        """What `pack` made.

        Raises:
            ValueError: it is not whole.
        """
        from safetensors.torch import load

        facts, tensors = _parts(packed)
        return cls(facts.pop("step"), load(tensors), facts)


def facts_of(packed: bytes) -> dict[str, Any]:
    """The facts of a packed snapshot, `step` among them.

    Raises:
        ValueError: it is not whole.
    """
    return _parts(packed)[0]


def _parts(packed: bytes) -> tuple[dict[str, Any], bytes]:
    """Facts, and packed tensors."""
    content = memoryview(packed)  # without copies: it may be large
    head = packed.find(b"\n") + 1
    body = content[head:]
    if content[:head] != _FORMAT + hashlib.sha256(body).hexdigest().encode() + b"\n":
        raise ValueError("not a whole snapshot")
    end = packed.index(b"\n", head)
    return json.loads(bytes(content[head:end])), bytes(content[end + 1 :])


def require_same_run(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Refuse to go on with a snapshot of another video.

    Args:
        wanted, found: the facts `prompt`, `files` (a digest of the model's), `image` (the picture's; empty
            where its file is not here) and `config` of run and snapshot.

    Raises:
        UserError: what differs.
    """
    other = difference(wanted, found)
    if other:
        raise UserError(
            f"the unfinished run {other}: to go on with it leave that out, else start anew without --resume"
        )


def difference(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """In what the video of a snapshot is another one, for a sentence; empty where it is the same."""
    if wanted["prompt"] != found["prompt"]:
        return f"is of the prompt {found['prompt']!r}, not of {wanted['prompt']!r}"
    for section in _SAME:
        ours, theirs = wanted["config"][section], found["config"][section]
        for key in sorted(ours.keys() | theirs.keys()):
            if ours.get(key) != theirs.get(key):
                values = json.dumps(theirs.get(key)), json.dumps(ours.get(key))
                return f"has {section}.{key} {values[0]}, not {values[1]}"
    if wanted["files"] != found["files"]:
        return "was begun with other model files"
    ours, theirs = wanted.get("image"), found.get("image")
    return "was begun with another image" if ours and theirs and ours != theirs else ""


class Snapshots(Protocol):
    """Where the coordinator finds and keeps snapshots; other ranks never ask."""

    def newest(self, run: Mapping[str, Any]) -> bytes | None:
        """The packed snapshot to go on from; None to begin at the beginning.

        Args:
            run: the facts `prompt`, `files`, `image` and `config` of the run that asks.

        Raises:
            UserError: it is of another run.
        """

    def due(self, *, last: bool) -> bool:
        """Whether the last one kept is old enough for another. `last`: only decoding is left."""

    def keep(self, step: int, packed: bytes) -> None:
        """Keep a packed snapshot taken before step `step`."""


class NoSnapshots:
    """Begins at the beginning and keeps nothing."""

    def newest(self, run: Mapping[str, Any]) -> bytes | None:
        return None

    def due(self, *, last: bool) -> bool:
        return False

    def keep(self, step: int, packed: bytes) -> None:
        return


class SnapshotFolder:
    """Snapshots as files, each complete under its name or not there; the newest two stay.

    Args:
        folder: made when the first one is kept; what an earlier run left there goes then.
        seconds: at least so long from one to the next; the first is due at once.
        required: whether it is an error that what is there is of another run, or that nothing is.
        note: told in a sentence what the user should know but does not stop the run.
        found: told the step that the run goes on from.
    """

    def __init__(
        self,
        folder: Path,
        seconds: float,
        *,
        required: bool,
        note: Callable[[str], object],
        found: Callable[[int], object] = lambda step: None,
    ) -> None:
        self._folder, self._seconds, self._required, self._note = folder, seconds, required, note
        self._found, self._due_at = found, float("-inf")
        self._began = False

    def newest(self, run: Mapping[str, Any]) -> bytes | None:
        packed = newest_whole(self._folder)
        if packed is None:
            return None
        facts = facts_of(packed)
        other = difference(run, facts)
        if other:
            if self._required:
                require_same_run(run, facts)
            self._note(f"the run in {self._folder} {other}: this one begins, and replaces it")
            return None
        self._began = True
        self._found(facts["step"])
        return packed

    def due(self, *, last: bool) -> bool:
        return last or time.monotonic() >= self._due_at

    def keep(self, step: int, packed: bytes) -> None:
        try:
            self._begin()
            write_whole(self._folder / f"step-{step:06}.snapshot", packed)
            for old in snapshot_files(self._folder)[_KEPT:]:
                old.unlink()
        except OSError as error:
            self._note(
                f"no snapshot could be written to {self._folder} ({error.strerror or error}): "
                "the run goes on, but could not be resumed from here"
            )
        self._due_at = time.monotonic() + self._seconds

    def _begin(self) -> None:
        if not self._began:  # a run that starts anew has nothing to do with an earlier one
            clear(self._folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._began = True


def snapshot_files(folder: Path) -> list[Path]:
    """The snapshots in a folder, newest first."""
    return sorted(folder.glob("step-*.snapshot"), reverse=True)


def newest_whole(folder: Path) -> bytes | None:
    """The newest packed snapshot that is whole; None where there is none."""
    for path in snapshot_files(folder):
        try:
            packed = path.read_bytes()
            facts_of(packed)
            return packed
        except (OSError, ValueError):  # the one before it may be whole
            continue
    return None


def clear(folder: Path) -> None:
    """Remove the snapshots, and the folder when nothing else is in it."""
    for path in (*snapshot_files(folder), *folder.glob("*.unfinished")):
        path.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        shutil.rmtree(folder, ignore_errors=True)
