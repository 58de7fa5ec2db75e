"""`jano-dist submit`: the same command line as a job of a Ray cluster, whose log is followed."""

import asyncio
import logging
import os
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from jano_dist.cli.log import log
from jano_dist.errors import Interrupted, RunError, UserError

_COMMANDS = ("generate", "batch")


def submit(
    command: Annotated[
        list[str],
        typer.Argument(help="generate or batch with their options, after --.", metavar="COMMAND..."),
    ],
    address: Annotated[str, typer.Option(help="The cluster's dashboard.")] = "http://127.0.0.1:8265",
    folder: Annotated[
        str | None,
        typer.Option(help="To run it in, the same on all nodes; else the one you are in."),
    ] = None,
) -> None:
    """Run a command as a job of a Ray cluster, and follow its log until it ends."""
    if command[0] not in _COMMANDS:
        raise UserError(
            f"{command[0]!r} cannot be submitted: give {' or '.join(_COMMANDS)} and their options after --"
        )
    if any(each.split("=")[0] in ("--launcher", "--address") for each in command):
        raise UserError(
            "a job runs on the cluster that it is submitted to: leave --launcher and --address out"
        )
    client = _client(address)
    # The job finds the cluster by itself: Ray tells it the address.
    line = shlex.join(["python", "-m", "jano_dist", *command, "--launcher", "ray"])
    where = shlex.quote(str(folder or Path.cwd()))
    job = client.submit_job(entrypoint=f"cd {where} && exec {line}")
    log().print(f"job {job}: {line}", soft_wrap=True)
    try:
        status = asyncio.run(_follow(client, job))
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"the job goes on: see `ray job logs {job}`, or end it with `ray job stop {job}`"
        ) from error
    if status != "SUCCEEDED":
        raise RunError(f"job {job} ended as {status}: see what it said above")


def _client(address: str) -> Any:
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        from ray.exceptions import RayError
        from ray.job_submission import JobSubmissionClient
    except ImportError as error:
        raise UserError("Ray is not installed: pip install 'jano_dist[ray]'") from error
    logging.getLogger("ray.dashboard").setLevel(logging.WARNING)  # it tells of its connections
    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
    try:
        return JobSubmissionClient(address)
    except (OSError, RuntimeError, ValueError, RayError) as error:
        reason = next(iter(str(error).splitlines()), "it says nothing")
        raise UserError(
            f"no Ray dashboard lets us in at {address} ({reason}): give --address http://HOST:8265 of the "
            "head, and the cluster's token (docs/clusters.md)"
        ) from error


async def _follow(client: Any, job: str) -> str:
    """Print what the job says; its status at the end."""
    async for lines in client.tail_job_logs(job):
        print(lines, end="", flush=True)
    while not (status := client.get_job_status(job)).is_terminal():
        await asyncio.sleep(0.2)
    return str(status.value)
