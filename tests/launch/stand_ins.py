"""Stand-ins for torchrun, SLURM and Ray that write down how they are called."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.launch.cluster_files import ROOT

# Every call leaves a folder with its arguments and its environment.
RECORD = """\
call=$(mktemp -d "$RECORD/$(basename "$0").${SLURM_PROCID:-0}.XXXXXX")
printf '%s\\0' "$@" > "$call/arguments"
env -0 > "$call/environment"
"""
STAND_INS = {
    "torchrun": RECORD,
    "scontrol": 'tr "," "\\n" <<< "$3"\n',
    # What follows the options, for every node, as if it were there.
    "srun": RECORD
    + """\
while [[ $1 == --* ]]; do
    [[ $1 != --output=* ]] || exec > "$RECORD/output" 2>&1
    shift
done
code=0
IFS=, read -ra nodes <<< "$SLURM_JOB_NODELIST"
for rank in "${!nodes[@]}"; do SLURM_PROCID=$rank SLURM_NODEID=$rank "$@" || code=$?; done
exit "$code"
""",
    # While Ray runs the token must be there, and for its owner alone.
    "ray": RECORD
    + """\
stat -c %a "$RAY_AUTH_TOKEN_PATH" > "$call/mode"
cat "$RAY_AUTH_TOKEN_PATH" > "$call/token"
[[ $1 != start ]] || touch "$RECORD/started.$SLURM_PROCID"
""",
    # As with --wait: begins when all nodes are there.
    "jano-dist": RECORD
    + """\
[[ ${2:-} != --check ]] || exit "${CHECK:-0}"
IFS=, read -ra nodes <<< "$SLURM_JOB_NODELIST"
for node in "${!nodes[@]}"; do
    for _ in {1..1000}; do [[ ! -e $RECORD/started.$node ]] || break; sleep 0.01; done
done
exit "${CODE:-0}"
""",
}


@dataclass(frozen=True)
class Called:
    """One call of a stand-in."""

    folder: Path

    @property
    def arguments(self) -> list[str]:
        return (self.folder / "arguments").read_text().split("\0")[:-1]

    @property
    def environment(self) -> dict[str, str]:
        entries = (self.folder / "environment").read_text().split("\0")[:-1]
        return dict(entry.split("=", 1) for entry in entries)


class Shell:
    """Runs shell scripts where the stand-ins are found first."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin, self.home = folder / "record", folder / "bin", folder / "home"
        for path in (self.folder, self.bin, self.home):
            path.mkdir()
        for name, body in STAND_INS.items():
            (self.bin / name).write_text(f"#!/usr/bin/env bash\n{body}")
            (self.bin / name).chmod(0o755)

    def __call__(self, script: Path, *arguments, **environment) -> subprocess.CompletedProcess:
        given = {"RECORD": self.folder, "HOME": self.home, "PYTHONPATH": ROOT, "PATH": self.path}
        return subprocess.run(
            ["bash", script, *map(str, arguments)],
            env={name: str(value) for name, value in (given | environment).items()},
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=60,
        )

    @property
    def path(self) -> str:
        return os.pathsep.join([str(self.bin), str(Path(sys.executable).parent), "/usr/bin", "/bin"])

    def calls(self, name: str) -> list[Called]:
        return [Called(folder) for folder in sorted(self.folder.glob(f"{name}.*"))]

    def only(self, name: str) -> Called:
        (call,) = self.calls(name)
        return call
