"""A Ray cluster of simulated nodes: prints its address, and ends when its stdin does. `nodes.py NODES`."""

import sys

from ray.cluster_utils import Cluster

cluster = Cluster(
    initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0, "include_dashboard": False}
)
for _ in range(int(sys.argv[1])):
    cluster.add_node(num_cpus=1, num_gpus=2)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
