"""A process that has imported what every rank needs, and forks the ranks of one machine.

    python -m jano_dist.launchers.zygote DESCRIPTOR

Imports take seconds for each rank, and a gang that starts again cannot wait for them. Orders come through a
socket, a JSON object each: {"rank", "entry", "arguments", "environment", "log"} starts a rank, {"signal"} is
sent to all. What goes back is {"rank", "code"} when a rank has ended. When the socket closes, all end.
"""

import importlib
import json
import os
import select
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

from jano_dist.gang import SUPERVISOR
from jano_dist.libraries import quiet_libraries, uncollected

_POLL = 0.02  # seconds
_LONGEST = 2**20  # bytes of an order
# What a rank imports on its way; libraries load the classes of a model only when they are asked for.
_NEEDED = (
    "jano_dist.cli.app",
    "jano_dist.run_folder",
    "jano_dist.report",
    "diffusers.models.transformers.transformer_wan",
    "diffusers.pipelines.wan.pipeline_wan",
    "transformers.models.umt5.modeling_umt5",
    "transformers.models.t5.tokenization_t5",
)


def main() -> None:
    """Serve until the socket closes."""
    orders = socket.socket(fileno=int(sys.argv[1]))
    signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGINT})  # Ctrl-C is for the supervisor
    quiet_libraries()
    with uncollected():
        for name in _NEEDED:
            importlib.import_module(name)
    ranks: dict[int, int] = {}  # by process id
    while True:
        ready, _, _ = select.select([orders], [], [], _POLL)
        if ready:
            order = json.loads(orders.recv(_LONGEST) or b"null")
            if order is None:
                _end(ranks)
            _follow(order, orders, ranks)
        _tell_of_the_ended(orders, ranks)


def _follow(order: dict[str, Any], orders: socket.socket, ranks: dict[int, int]) -> None:
    if "signal" in order:
        for process in ranks:
            os.kill(process, order["signal"])
        return
    parent, process = os.getpid(), os.fork()
    if process == 0:
        orders.close()
        _live(order, parent)
    ranks[process] = order["rank"]


def _tell_of_the_ended(orders: socket.socket, ranks: dict[int, int]) -> None:
    while ranks:
        process, status = os.waitpid(-1, os.WNOHANG)
        if process == 0:
            return
        rank = ranks.pop(process)
        orders.send(json.dumps({"rank": rank, "code": os.waitstatus_to_exitcode(status)}).encode())


def _end(ranks: dict[int, int]) -> NoReturn:
    for process in ranks:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    os._exit(0)  # to take down all that was imported takes seconds


def _live(order: dict[str, Any], parent: int) -> NoReturn:
    """Be a rank: a command line in its own environment, ended as Python would end it."""
    os.environ.clear()
    os.environ.update(order["environment"], **{SUPERVISOR: str(parent)})
    sys.argv = ["jano-dist", *order["arguments"]]
    if order["log"]:
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
    module, name = order["entry"]
    if _cuda_is_loaded():  # its driver does not survive a fork
        program = f"import {module} as entry; entry.{name}()"
        os.execv(sys.executable, [sys.executable, "-c", program, *order["arguments"]])
    try:
        getattr(importlib.import_module(module), name)()
        code = 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _cuda_is_loaded() -> bool:
    """Whether an import has called the CUDA driver, as some libraries do to see whether there is one."""
    maps = Path("/proc/self/maps")
    return maps.exists() and "libcuda.so" in maps.read_text()


if __name__ == "__main__":
    main()
