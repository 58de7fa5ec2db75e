"""Mutation testing: `python -m tests.mutants [ROOM ...]`, best through `make mutants`.

mutmut changes one thing at a time in the rooms of `rooms.toml` and runs the tests that belong to the room; a
change that no test notices is a gap in the tests. Each room has a working folder of its own, `.mutants/ROOM`,
where `mutmut browse` shows what it did. The result goes to `results/ROOM.md`.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.mutants.report import Mutant, RoomResult

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ROOMS = tomllib.loads((HERE / "rooms.toml").read_text())

SETTINGS = """
[tool.mutmut]
source_paths = ["jano_dist"]
also_copy = ["configs"]
only_mutate = {mutate}
pytest_add_cli_args = ["-p", "tests.mutants.plugin", "-p", "no:cacheprovider"]
pytest_add_cli_args_test_selection = {tests}
# Lines that are nothing but a part of a sentence: wording is not tested.
do_not_mutate_patterns = ['^ +f?".*"$']
# A mutant that hangs ends after 3 x (seconds of its tests + 5).
timeout_multiplier = 3.0
timeout_constant = 5.0
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.mutants")
    parser.add_argument(
        "rooms", nargs="*", metavar="ROOM", help=f"of {', '.join(ROOMS)}; all if none is given"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="mutants tested at a time")
    asked = parser.parse_args()
    unknown = set(asked.rooms) - set(ROOMS)
    if unknown:
        parser.error(f"no such room: {', '.join(sorted(unknown))}")
    results = [test(room, asked.jobs) for room in asked.rooms or ROOMS]
    for result in results:
        (HERE / "results" / f"{result.room}.md").write_text(result.text(stamp()))
    return 0 if all(result.score >= ROOMS[result.room]["least"] for result in results) else 1


def stamp() -> str:
    git = ["git", "-C", str(ROOT), "log", "-1", "--format=%h of %cs"]
    return "Commit " + subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()


def test(room: str, jobs: int) -> RoomResult:
    """Mutate one room and test all mutants."""
    folder, settings = ROOT / ".mutants" / room, ROOMS[room]
    prepare(folder, settings)
    print(f"{room}: mutants in {folder}, progress in {folder / 'log'}", flush=True)
    started = time.monotonic()
    with (folder / "log").open("w") as log:
        command = [mutmut(), "run", "--max-children", str(jobs)]
        subprocess.run(command, cwd=folder, stdout=log, stderr=log, check=True)
    result = RoomResult(room, time.monotonic() - started, list(read_mutants(folder)))
    print(result.line(), flush=True)
    return result


def prepare(folder: Path, settings: dict[str, Any]) -> None:
    """A fresh folder in which mutmut finds the project, and settings of one room."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in ("jano_dist", "tests", "configs"):
        (folder / name).symlink_to(ROOT / name)
    text = SETTINGS.format(mutate=settings["mutate"], tests=settings["tests"])
    (folder / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text() + text)


def read_mutants(folder: Path) -> Iterator[Mutant]:
    """From mutmut's own answers."""
    for line in answer(folder, "results", "--all", "true").splitlines():
        name, status = line.strip().rsplit(": ", 1)
        status = "crashed" if status in ("segfault", "suspicious") else status
        changed = [] if status == "killed" else answer(folder, "show", name).splitlines()
        lines = [one for one in changed if one[:1] in ("+", "-") and one[:3] not in ("+++", "---")]
        yield Mutant(name, status, tuple(lines))


def answer(folder: Path, *arguments: str) -> str:
    done = subprocess.run([mutmut(), *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


def mutmut() -> str:
    return str(Path(sys.executable).parent / "mutmut")


if __name__ == "__main__":
    sys.exit(main())
