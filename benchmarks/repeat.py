"""Run a benchmark several times, each in a process of its own, and merge the results.

    python -m benchmarks.repeat 5 retention --steps 20

Where nothing but the benchmark may run meanwhile and the machine is shared, the runs can be made one by one
instead, each with BENCHMARK_RESULTS naming a folder of its own, and merged by `python -m benchmarks.merge`.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common import ELSEWHERE
from benchmarks.merge import write


def run(name: str, arguments: list[str], folder: Path) -> Path:
    """One process; the result file it wrote into `folder`."""
    call = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    subprocess.run(call, env={**os.environ, ELSEWHERE: str(folder)}, check=True)
    (file,) = folder.glob("*.json")
    return file


def main() -> None:
    if len(sys.argv) < 3 or not sys.argv[1].isdecimal():
        sys.exit("usage: python -m benchmarks.repeat TIMES BENCHMARK [its arguments]")
    times, name, *arguments = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        write([run(name, arguments, Path(folder) / str(turn)) for turn in range(int(times))])


if __name__ == "__main__":
    main()
