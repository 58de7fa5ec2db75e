"""A Ray cluster of simulated nodes: prints its address, and ends when its stdin does. `nodes.py NODES`.

`nodes.py asked` begins with a head only, and then does what an autoscaler does: it reads where Ray keeps what
was asked for, brings a node with as much, and prints what was asked for; told to, it prints what still is.
"""

import json
import sys
import time

import ray
from ray.cluster_utils import Cluster
from ray.experimental.internal_kv import _internal_kv_get

cluster = Cluster(
    initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0, "include_dashboard": False}
)


def asked() -> list[dict[str, float]]:
    return json.loads(_internal_kv_get(b"autoscaler_resource_request") or b"[]")


def grow() -> None:
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    while not (bundles := asked()):
        time.sleep(0.1)
    print(json.dumps(bundles), flush=True)
    cluster.add_node(num_cpus=1, num_gpus=len(bundles))


if sys.argv[1] == "asked":
    print(cluster.address, flush=True)
    grow()
    sys.stdin.readline()
    print(json.dumps(asked()), flush=True)
else:
    for _ in range(int(sys.argv[1])):
        cluster.add_node(num_cpus=1, num_gpus=2)
    print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
