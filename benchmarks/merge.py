"""Several runs of one benchmark as one result: the median of every figure, its lowest and its highest.

    python -m benchmarks.merge RESULT.json RESULT.json ...

The files are result files of the same name from different folders. What is written has the benchmark's own
structure under `summary`, and the runs as they were under `runs`.
"""

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import RESULTS


def merge(runs: list[Any]) -> Any:
    """Leaf by leaf: what all runs agree on stays as it is, numbers that differ become
    `{"median", "lowest", "highest"}`, and anything else that differs `{"differs": [one per run]}`."""
    first = runs[0]
    if all(isinstance(run, dict) and run.keys() == first.keys() for run in runs):
        return {key: merge([run[key] for run in runs]) for key in first}
    if all(isinstance(run, list) and len(run) == len(first) for run in runs):
        return [merge(list(items)) for items in zip(*runs, strict=True)]
    if all(type(run) is type(first) and run == first for run in runs):
        return first
    if all(isinstance(run, int | float) and not isinstance(run, bool) for run in runs):
        return {"median": median(runs), "lowest": min(runs), "highest": max(runs)}
    return {"differs": runs}


def write(files: list[Path]) -> Path:
    """Merge result files into one of the same name among the committed results."""
    runs = [json.loads(file.read_text()) for file in files]
    path = RESULTS / files[0].name
    path.write_text(json.dumps({"summary": merge(runs), "runs": runs}, indent=1) + "\n")
    print(f"written: {path} ({len(runs)} runs)")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+")
    files = parser.parse_args().files
    if len({file.name for file in files}) > 1:
        parser.error("these are results of different benchmarks: give files of one name")
    write(files)


if __name__ == "__main__":
    main()
