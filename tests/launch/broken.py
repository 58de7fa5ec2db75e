"""A rank in which something goes wrong: the command line, with a fault built in. Run as a script.

BROKEN is `HOW:RANK:STEP`; HOW is raise, kill or hang. Every rank writes its process id, and the broken
one the time of its fault, to the folder FAULTS.
"""

import os
import signal
import time
from pathlib import Path

from jano_dist import cli
from jano_dist.engine import Engine


def break_down(how: str) -> None:
    (Path(os.environ["FAULTS"]) / "time").write_text(str(time.time()))
    if how == "raise":
        raise ValueError("boom")
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(1000)


def main() -> None:
    how, rank, step = os.environ["BROKEN"].split(":")
    (Path(os.environ["FAULTS"]) / f"pid{os.environ['RANK']}").write_text(str(os.getpid()))
    velocity = Engine._velocity

    def broken(self, state, index, *rest):
        if os.environ["RANK"] == rank and index == int(step):
            break_down(how)
        return velocity(self, state, index, *rest)

    Engine._velocity = broken
    cli.main()


if __name__ == "__main__":
    main()
