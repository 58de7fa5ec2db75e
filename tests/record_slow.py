"""Run the tests marked slow and write to slow.md how it went: `make test-slow`."""

import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

PAGE = """\
# The last run of the slow tests

Written by `make test-slow`; commit it.

| when (UTC) | commit | minutes | result |
| --- | --- | --- | --- |
| {when} | {commit} | {minutes:.0f} | {result} |
"""


def main() -> int:
    """The exit code of pytest."""
    commit, started = _commit(), time.monotonic()
    call = [sys.executable, "-m", "pytest", "-m", "slow", *sys.argv[1:]]
    with subprocess.Popen(call, stdout=subprocess.PIPE, text=True) as tests:
        line = ""
        for line in tests.stdout or ():
            print(line, end="", flush=True)
    page = PAGE.format(
        when=datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        commit=commit,
        minutes=(time.monotonic() - started) / 60,
        result=line.strip(" =\n").split(" in ")[0],
    )
    Path(__file__).with_name("slow.md").write_text(page)
    return tests.returncode


def _commit() -> str:
    """What is checked out, and whether it is changed."""
    call = ["git", "describe", "--always", "--dirty=, with changes", "--abbrev=8"]
    return subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
