"""What a made-up `ray.util.metrics` is told; tests/launch/test_ray_metrics.py asks Ray itself."""

from jano_dist.metrics import RayMetrics


class Api:
    """Sums and values by name and labels. Like Ray's, its counters take nothing that is not above zero."""

    def __init__(self):
        self.sums, self.values, self.observed = {}, {}, {}

    def Counter(self, name, description, tag_keys):  # noqa: N802 - Ray's names
        return self._metric(name, description, tag_keys)

    Gauge = Counter

    def Histogram(self, name, description, boundaries, tag_keys):  # noqa: N802
        assert list(boundaries) == sorted(boundaries)
        assert boundaries[0] > 0
        return self._metric(name, description, tag_keys)

    def _metric(api, name, description, tag_keys):  # noqa: N805
        class Metric:
            def key(self, tags):
                assert description
                assert set(tags) == set(tag_keys)
                return (name, *(tags[key] for key in tag_keys))

            def inc(self, value, tags):
                assert value > 0
                api.sums[self.key(tags)] = api.sums.get(self.key(tags), 0) + value

            def set(self, value, tags):
                api.values[self.key(tags)] = value

            def observe(self, value, tags):
                api.observed.setdefault(self.key(tags), []).append(value)

        return Metric()


STEPS = [
    {"index": 0, "kind": "full", "tokens": 100, "seconds": 2.0, "comm_bytes": 1000},
    {"index": 1, "kind": "active", "tokens": 7, "seconds": 0.5, "comm_bytes": 70},
    {"index": 2, "kind": "active", "tokens": 7, "seconds": 0.25, "comm_bytes": 0},
]


def test_what_is_told():
    api = Api()
    metrics = RayMetrics("g", api)
    for step in STEPS:
        metrics.step(step)
    metrics.recovery()
    for joules in (100.5, None, 50):
        metrics.video({"telemetry": {"energy_joules": joules}})
    for watts in (300.0, 250.0):
        metrics.gpu("GPU-a", watts, 2**30)
    metrics.gpu("GPU-b", None, None)
    assert api.sums == {
        ("jano_dist_steps", "g", "full"): 1,
        ("jano_dist_steps", "g", "active"): 2,
        ("jano_dist_tokens", "g", "full"): 100,
        ("jano_dist_tokens", "g", "active"): 14,
        ("jano_dist_denoising_seconds", "g", "full"): 2.0,
        ("jano_dist_denoising_seconds", "g", "active"): 0.75,
        ("jano_dist_sent_bytes", "g"): 1070,
        ("jano_dist_recoveries", "g"): 1,
        ("jano_dist_videos", "g"): 3,
        ("jano_dist_energy_joules", "g"): 150.5,
    }
    assert api.observed == {
        ("jano_dist_step_seconds", "g", "full"): [2.0],
        ("jano_dist_step_seconds", "g", "active"): [0.5, 0.25],
    }
    assert api.values == {
        ("jano_dist_gpu_power_watts", "g", "GPU-a"): 250.0,
        ("jano_dist_gpu_memory_bytes", "g", "GPU-a"): 2**30,
    }
