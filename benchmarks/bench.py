"""What `jano-dist bench recognition` and `bench scaling` say of wan-tiny, each with one command.

    python -m benchmarks.bench recognition   # what every score foretells, in six regimes
    python -m benchmarks.bench outcomes      # the videos made with their maps, on captions not chosen on
    python -m benchmarks.bench scaling       # two ranks against one, and against diffusers' own Ulysses

What is measured stays in --out: started again it goes on. A result is kept without the videos and pictures.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

from benchmarks.common import save

CAPTIONS = Path(__file__).with_name("quality.txt")
SCORES = "last_change; published; smooth_spread; fft velocity; RAS spread; change and detail"
RUNS = {
    "recognition": "recognition --guidances 3,4 --shifts 1,3,5 --warmups 4,6,10 --outcomes none",
    "outcomes": f"recognition --prompts '{CAPTIONS}' --shifts 3 --warmups 10 --outcomes '{SCORES}'",
    # 2,304 tokens, the published intervals: a preset of wan-tiny refreshes so often that little is retained.
    "scaling": "scaling --frames 33 --height 256 --width 256 --steps 20 --worlds 1,2 --meshes 2x1x1,1x1x2"
    " --active 0.2 --moderate 0.2 --set policy.warmup=4 --set policy.static_interval=6"
    " --set policy.moderate_interval=3 --peers diffusers",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("name", choices=list(RUNS))
    parser.add_argument("--out", type=Path, default=Path("out"))
    args, more = parser.parse_known_args()
    command, *options = shlex.split(RUNS[args.name])
    out = args.out / args.name
    call = [sys.executable, "-m", "jano_dist", "bench", command, "--config", "wan-tiny", *options, *more]
    subprocess.run([*call, "--out", str(out)], check=True)
    figures = json.loads((out / f"{command}.json").read_text())
    figures.pop("ran")
    save(f"bench-{args.name}", figures)


if __name__ == "__main__":
    main()
