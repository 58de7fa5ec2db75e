"""The folder that a run is written to: looked at and held before anything is computed, replaced as a whole.

    OUT.jano-dist-new   the new run, until it is complete
    OUT.jano-dist-old   the earlier run, while the new one takes its place
    OUT.jano-dist-unfinished   snapshots of a run that goes on or has failed

Light at import: what is wrong with a folder should be said at once.
"""

import errno
import hashlib
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jano_dist.errors import UserError

VIDEO, IMAGE, LATENTS = "video.mp4", "image.png", "latents.safetensors"
FILES = (VIDEO, IMAGE, "complexity.png", "timeline.png", LATENTS, "trace.json", "run.json")
_PAUSE = 0.05  # seconds


def check_target(out: Path) -> None:
    """Make sure, before anything is computed, that a run may be written to `out`.

    Raises:
        UserError: it exists and is no run folder, or it cannot be made, written to or replaced.
    """
    with _naming(out):
        _check_kind(out)
        _check_place(out)


@contextmanager
def reserve(out: Path, *, patience: float = 0) -> Iterator[None]:
    """Check `out` and hold it for one run. It is given back when the process ends, however it ends.

    Completes first what a process that was killed while it replaced `out` had begun.

    Args:
        patience: seconds to wait for another run that holds it.

    Raises:
        UserError: another run on this machine holds it; or see `check_target`.
    """
    with hold(out, patience=patience):
        with _naming(out):
            settle(out)
        check_target(out)
        yield


@contextmanager
def making(out: Path) -> Iterator[Path]:
    """A folder beside `out` for a new run; taken away at the end unless `replace` has put it in place."""
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    settle(out)
    new = _beside(out, "new")
    new.mkdir()
    try:
        yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)


def replace(out: Path) -> None:
    """Put the complete folder that `making` gave in the place of `out`.

    Whenever this is ended, `out` is the whole earlier run or the whole new one; or for a moment, between the
    two renames, it is missing, and the next `settle` puts the earlier one back.
    """
    out = out.resolve()
    new, old = _beside(out, "new"), _beside(out, "old")
    with _deaf():
        try:
            if out.exists():
                shutil.copymode(out, new)
                out.rename(old)
            new.rename(out)
        finally:
            settle(out)


def settle(out: Path) -> None:
    """Finish or undo a replacement of `out`: other files that a user keeps in a run folder stay there."""
    out = out.resolve()
    old = _beside(out, "old")
    shutil.rmtree(_beside(out, "new"), ignore_errors=True)
    if not old.is_dir():
        return
    if not out.exists():
        old.rename(out)
        return
    for path in old.iterdir():
        if path.name not in FILES:
            path.rename(out / path.name)
    for name in FILES:
        (old / name).unlink(missing_ok=True)
    old.rmdir()


@contextmanager
def _deaf() -> Iterator[None]:
    """Ctrl-C and SIGTERM come too late: what takes a moment is finished. (Only a main thread hears them.)"""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def write_whole(path: Path, content: str | bytes) -> None:
    """Replace a file: under its name it is the old one or the new one, also when the machine goes down."""
    half = path.with_name(f"{path.name}.unfinished")
    with half.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    half.replace(path)


def unfinished(out: Path) -> Path:
    """The folder beside `out` for what a run needs to go on when it fails."""
    return _beside(out.resolve(), "unfinished")


def _beside(out: Path, what: str) -> Path:
    return out.with_name(f"{out.name}.jano-dist-{what}")


def _check_kind(out: Path) -> None:
    # Also where it leads, which is what is replaced: `new/../file` is not there as it is written.
    if any(os.path.lexists(path) and not path.is_dir() for path in (out, out.resolve())):
        raise UserError(
            f"--out {out} is not a folder: give a new folder, or the folder of an earlier run to replace it"
        )
    whole = out.resolve()
    if whole.is_dir() and any(whole.iterdir()) and not is_run(whole):
        raise UserError(
            f"--out {out} exists and is not a run folder (no run.json of ours): give a new folder, "
            "or the folder of an earlier run to replace it"
        )


def _check_place(out: Path) -> None:
    # The nearest folder that exists: what is made is made in it, first the temporary one.
    whole = out.resolve()
    parent = next((folder for folder in whole.parents if os.path.lexists(folder)), whole)
    if not parent.is_dir():
        raise UserError(
            f"--out {out} cannot be made because {parent} is not a folder: give a folder elsewhere"
        )
    for folder in (whole, parent):
        if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(
                f"--out {out} cannot be written because {folder} is read-only: give one elsewhere"
            )
    if whole.is_dir() and (Path.cwd().is_relative_to(whole) or os.path.ismount(whole)):
        reason = "is a mount point" if os.path.ismount(whole) else "is the folder you are in"
        raise UserError(
            f"--out {out} {reason}, and a run folder is replaced as a whole: give a folder in it, "
            f"such as --out {out / 'run'}"
        )


def result_name(frames: int) -> str:
    """What a run's result is called: one frame is an image."""
    return IMAGE if frames == 1 else VIDEO


def result_of(folder: Path) -> Path:
    """The image of a run folder, or else the video, whether it is there or not."""
    return folder / IMAGE if os.path.isfile(folder / IMAGE) else folder / VIDEO


def is_run(folder: Path) -> bool:
    """Whether the folder holds a run of ours; other tools write a run.json, too."""
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        return "jano_dist" in record["versions"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False


@contextmanager
def hold(out: Path, *, patience: float = 0) -> Iterator[None]:
    """Hold the name `out` in the kernel, which one process can have and which goes with it: no lock file is
    left over.

    It is known on this machine only, and only Linux has such names.

    Raises:
        UserError: another process holds it, still after `patience` seconds.
    """
    if sys.platform != "linux":
        yield
        return
    with _naming(out):
        name = f"\0jano-dist-{hashlib.sha256(os.fsencode(out.resolve())).hexdigest()}"
    deadline = time.monotonic() + patience
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as holder:
        while not _bound(holder, name):
            if time.monotonic() >= deadline:
                raise UserError(
                    f"--out {out} is in use by another run that has not ended: wait for it, or give another "
                    "folder"
                )
            time.sleep(_PAUSE)
        yield


def _bound(holder: socket.socket, name: str) -> bool:
    try:
        holder.bind(name)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    return True


@contextmanager
def _naming(out: Path) -> Iterator[None]:
    """Say which folder it is that cannot be looked into, or whose name is too long."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: links that go round in a circle
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--out {out} cannot be used ({reason}): give another folder") from error
