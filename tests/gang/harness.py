"""Real ranks for tests: processes that form a gloo group, run one function, and never hang for long."""

import faulthandler
import multiprocessing
import os
import pickle
import sys
import tempfile
import traceback
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# Ranks are forked from one clean process that has imported the heavy libraries already.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["torch", "torch.distributed", "diffusers", "jano_dist.engine", "jano_dist.run_folder", "jano_dist.cli"]
)


class Leave(Exception):  # noqa: N818 - it names what happens
    """Raised by a target: the rank ends at once, as a killed one does, with the argument as its result."""


def gang(world: int, target: Any, *args: Any, timeout: float = 120, collective_timeout: float = 60) -> list:
    """`target(*args)` on `world` ranks that share a process group; every rank's result, in order.

    Args:
        target: a module-level function, so that it can be named to another process.
        timeout: seconds until a rank that hangs dumps its stacks to stderr and ends.
        collective_timeout: seconds a collective waits for the other ranks.

    Raises:
        AssertionError: a rank raised, died or hung; with its traceback.
    """
    with tempfile.TemporaryDirectory() as folder:
        ranks = []
        for rank in range(world):
            ours, theirs = CONTEXT.Pipe(duplex=False)
            settings = (rank, world, Path(folder) / "store", timeout, collective_timeout)
            process = CONTEXT.Process(target=_run, args=(theirs, settings, target, args), daemon=True)
            process.start()
            theirs.close()
            ranks.append((process, ours))
        answers = [_answer(connection, timeout + 10) for _, connection in ranks]
        for process, _ in ranks:
            process.join(5)
            process.kill()
    failures = [f"rank {rank}: {answer[1]}" for rank, answer in enumerate(answers) if not answer[0]]
    assert not failures, "\n".join(failures)
    return [value for _, value in answers]


def _answer(connection: Connection, timeout: float) -> tuple[bool, Any]:
    try:
        if not connection.poll(timeout):
            return False, "hung"
        return pickle.loads(connection.recv_bytes())
    except EOFError:
        return False, "died without a word (a hang dumps its stacks to stderr)"


def _run(connection: Connection, settings: tuple, target: Any, args: tuple) -> None:
    rank, world, store, timeout, collective_timeout = settings
    faulthandler.dump_traceback_later(timeout, exit=True, file=sys.__stderr__)
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(world)
    )
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{store}",
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=collective_timeout),
        )
        connection.send_bytes(pickle.dumps((True, target(*args))))
        dist.barrier()  # the first to leave would take the others' connections with it
        dist.destroy_process_group()
    except Leave as leave:
        connection.send_bytes(pickle.dumps((True, *(leave.args or (None,)))))
    except BaseException:
        connection.send_bytes(pickle.dumps((False, traceback.format_exc())))
    finally:
        connection.close()
        os._exit(0)
