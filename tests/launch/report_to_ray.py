"""A driver that reports a gang's steps to Ray and prints what Prometheus would read. Run as a script.

Its arguments: a folder for Ray's files, and the steps as JSON.
"""

import json
import sys
import time
import urllib.request

import ray

from jano_dist.metrics import RayMetrics

PATIENCE = 60  # seconds


@ray.remote(num_cpus=0)
class Node:
    """The actor that starts the ranks of a node."""

    def report(self, steps: list[dict]) -> None:
        self._metrics = RayMetrics("node's")
        for step in steps:
            self._metrics.step(step)


def main(folder: str, steps: list[dict]) -> None:
    ray.init(
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=folder,
        _system_config={"metrics_report_interval_ms": 500},
    )
    driver = RayMetrics("driver's")
    for step in steps:
        driver.step(step)
    driver.recovery()
    driver.video({"telemetry": {"energy_joules": 150.5}})
    driver.gpu("GPU-a", 250.0, 2**30)
    node = Node.remote()
    ray.get(node.report.remote(steps))
    shown, deadline = "", time.monotonic() + PATIENCE
    while not ("driver's" in shown and "node's" in shown) and time.monotonic() < deadline:
        time.sleep(0.2)
        address = f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics"
        with urllib.request.urlopen(address, timeout=5) as answer:
            shown = answer.read().decode()
    print(shown)
    ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
