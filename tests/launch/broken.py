"""A rank in which something goes wrong: the command line, with a fault built in.

BROKEN is `HOW:RANK:PLACE`, or `HOW:RANK:PLACE:TIMES` where only the first TIMES starts of the ranks break.
HOW is raise, kill, abort, full (no space left), hang (asleep, but it hears signals), stuck (asleep in C, deaf
to signals) or stop (as by SIGSTOP). PLACE is a step, encode, decode, or write: when the run folder is half
written. Every rank writes its process id, and the broken one the time of its fault, to the folder FAULTS.
"""

import ctypes
import errno
import os
import signal
import time
from pathlib import Path

os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # the command line does so before it imports torch

from jano_dist import cli, gang, run_folder
from jano_dist.denoise import Denoiser
from jano_dist.engine import Engine
from jano_dist.gang import attempt
from jano_dist.models.wan_pipeline import WanModel


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


def tell_when_back() -> None:
    """Write the time when a rank that was started again has done a step, or begins to decode."""
    whole = gang.Progress._at

    def at(self, position: str) -> None:
        back = Path(os.environ["FAULTS"]) / "back"
        if position not in ("load", "encode", "step 0") and not back.exists():
            back.write_text(str(time.time()))
        whole(self, position)

    gang.Progress._at = at


def main() -> None:
    how, rank, place, *times = os.environ["BROKEN"].split(":")
    own, start = os.environ["RANK"], attempt()
    (Path(os.environ["FAULTS"]) / f"pid{own}{f'-{start}' if start else ''}").write_text(str(os.getpid()))
    if start and own == "0":
        tell_when_back()
    if own == rank and not (times and start >= int(times[0])):
        if place == "write":
            run_folder.timeline_picture = lambda *_: break_down(how)
        elif place in ("encode", "decode"):
            _breaking(*((Engine, "_encode") if place == "encode" else (WanModel, "decode")), how)
        else:
            _breaking(Denoiser, "_velocity", how, lambda state, index, *_: index == int(place))
    cli.main()


if __name__ == "__main__":
    main()
