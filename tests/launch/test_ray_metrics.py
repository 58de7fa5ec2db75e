"""Ray itself, on this machine: what was reported is what Prometheus is shown."""

import json
import re
import subprocess
import sys
import tempfile

import pytest

from tests.launch.conftest import HERE, LIMIT

STEPS = [
    {"kind": "full", "tokens": 100, "seconds": 2.0, "comm_bytes": 1000},
    {"kind": "active", "tokens": 7, "seconds": 0.5, "comm_bytes": 70},
    {"kind": "active", "tokens": 7, "seconds": 0.25, "comm_bytes": 0},
]
OF_STEPS = {
    ("steps_total", "full"): 1,
    ("steps_total", "active"): 2,
    ("step_seconds_count", "full"): 1,
    ("step_seconds_count", "active"): 2,
    ("denoising_seconds_total", "full"): 2.0,
    ("denoising_seconds_total", "active"): 0.75,
    ("tokens_total", "full"): 100,
    ("tokens_total", "active"): 14,
    ("sent_bytes_total", None): 1070,
}
OF_THE_DRIVER = {
    **OF_STEPS,
    ("recoveries_total", None): 1,
    ("videos_total", None): 1,
    ("energy_joules_total", None): 150.5,
    ("gpu_power_watts", "GPU-a"): 250.0,
    ("gpu_memory_bytes", "GPU-a"): 2**30,
}


def read(text, gang):
    """(name, kind or GPU) -> value, of our metrics with this label; without the histogram's buckets."""
    found = {}
    for name, labels, value in re.findall(r"^ray_jano_dist_(\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
        label = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if label["gang"] == gang and "le" not in label and name != "step_seconds_sum":
            found[name, label.get("kind", label.get("gpu"))] = float(value)
    return found


@pytest.mark.slow
def test_what_prometheus_is_shown(command):
    # Ray makes sockets in its folder, and their names may not be long. It would also leave a token at home.
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        ended = subprocess.run(
            [sys.executable, HERE / "report_to_ray.py", folder, json.dumps(STEPS)],
            env={**command[1], "HOME": folder},
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
    assert ended.returncode == 0, ended.stderr
    assert read(ended.stdout, "node's") == OF_STEPS
    assert read(ended.stdout, "driver's") == OF_THE_DRIVER
