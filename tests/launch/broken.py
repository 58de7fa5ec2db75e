"""A rank in which something goes wrong: the command line, with a fault built in. Run as a script.

BROKEN is `HOW:RANK:STEP`; HOW is raise, kill, hang or full (no space left). STEP may be `write`: when the
run folder is half written. Every rank writes its process id, and the broken one the time of its fault, to
the folder FAULTS.
"""

import errno
import os
import signal
import time
from pathlib import Path

os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # the command line does so before it imports torch

from jano_dist import cli, run_folder
from jano_dist.denoise import Denoiser


def break_down(how: str) -> None:
    (Path(os.environ["FAULTS"]) / "time").write_text(str(time.time()))
    if how == "raise":
        raise ValueError("boom")
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    time.sleep(1000)


def main() -> None:
    how, rank, step = os.environ["BROKEN"].split(":")
    (Path(os.environ["FAULTS"]) / f"pid{os.environ['RANK']}").write_text(str(os.getpid()))
    velocity, mine = Denoiser._velocity, os.environ["RANK"] == rank

    def broken(self, state, index, *rest):
        if mine and str(index) == step:
            break_down(how)
        return velocity(self, state, index, *rest)

    Denoiser._velocity = broken
    if mine and step == "write":
        run_folder.timeline_picture = lambda *_: break_down(how)
    cli.main()


if __name__ == "__main__":
    main()
