"""A rank in which something goes wrong: the command line, with a fault built in.

BROKEN is `HOW:RANK:PLACE`, or `HOW:RANK:PLACE:TIMES` where only the first TIMES starts of the ranks break.
HOW is raise, kill, abort, full (no space left), hang (asleep, but it hears signals), stuck (asleep in C, deaf
to signals) or stop (as by SIGSTOP). PLACE is a step, encode, decode, prepare: when a batch's texts are
encoded, or write: when the run folder is half written. With BROKEN_PROMPT only videos of that prompt break.
Every rank writes its process id, and the broken one the time of its fault, to the folder FAULTS.
"""

import ctypes
import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # the command line does so before it imports torch

from jano_dist.libraries import uncollected

with uncollected():  # and this, too
    from jano_dist import cli, gang
    from jano_dist.denoise import Denoiser
    from jano_dist.engine import Engine
    from jano_dist.gang import attempt
    from jano_dist.models.wan_pipeline import WanModel

_PLACES = {"encode": (Engine, "_encode"), "prepare": (Engine, "prepare"), "decode": (WanModel, "decode")}


def break_down(how: str) -> None:
    (Path(os.environ["FAULTS"]) / "time").write_text(str(time.time()))
    if how == "raise":
        raise ValueError("boom")
    if how == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if how == "stuck":
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        ctypes.CDLL(None).sleep(1000)
    numbers = {"kill": signal.SIGKILL, "abort": signal.SIGABRT, "stop": signal.SIGSTOP}
    if how in numbers:
        os.kill(os.getpid(), numbers[how])
    time.sleep(1000)


def _breaking(owner: type, name: str, how: str, strikes=lambda *_: True) -> None:
    """Break down when a method is called."""
    whole = getattr(owner, name)

    def broken(self, *args, **kwargs):
        if strikes(*args):
            break_down(how)
        return whole(self, *args, **kwargs)

    setattr(owner, name, broken)


def tell_of_the_cause() -> None:
    """Write the time when a rank first says why the gang fails."""
    whole = gang.claim

    def claim(store, cause):
        first = whole(store, cause)
        if first == cause:
            (Path(os.environ["FAULTS"]) / "cause").write_text(str(time.time()))
        return first

    gang.claim = claim


def tell_when_back() -> None:
    """Write the time when a rank that was started again has done a step, or begins to decode."""
    whole = gang.Progress._at

    def at(self, position: str) -> None:
        back = Path(os.environ["FAULTS"]) / "back"
        if position not in ("load", "encode", "step 0") and not back.exists():
            back.write_text(str(time.time()))
        whole(self, position)

    gang.Progress._at = at


def _strikes_at(place: str) -> Callable[..., bool]:
    """Whether a step is the one to break in, of a video that is to break."""
    only, prompts, generate = os.environ.get("BROKEN_PROMPT"), [], Engine.generate

    def noting(self, prompt, **more):
        prompts.append(prompt)
        return generate(self, prompt, **more)

    Engine.generate = noting
    return lambda state, index, *_: index == int(place) and only in (None, prompts[-1])


def main() -> None:
    how, rank, place, *times = os.environ["BROKEN"].split(":")
    own, start = os.environ["RANK"], attempt()
    note = Path(os.environ["FAULTS"]) / f"pid{own}{f'-{start}' if start else ''}"
    try:
        note.touch(exist_ok=False)
    except FileExistsError:  # a rank of another gang
        note = note.with_name(f"{note.name}.{os.getpid()}")
    note.write_text(str(os.getpid()))
    tell_of_the_cause()
    if start and own == "0":
        tell_when_back()
    if own == rank and not (times and start >= int(times[0])):
        if place == "write":
            from jano_dist import report  # with matplotlib, which other ranks need not wait for

            report.timeline_picture = lambda *_: break_down(how)
        elif place in _PLACES:
            _breaking(*_PLACES[place], how)
        else:
            _breaking(Denoiser, "_predicted", how, _strikes_at(place))
    cli.main()


if __name__ == "__main__":
    main()
