"""The first hour on a GPU, here on a CPU: it notices a lie, stops there, and keeps what it had found."""

import json

import pytest
import torch

from benchmarks import gpu_first_hour
from benchmarks.first_hour import Hour, Lie, promised, truth
from benchmarks.first_hour.page import write_page
from benchmarks.probes import random_transformer, true_width
from jano_dist import load_config
from jano_dist.account import memory_of
from jano_dist.attention.kernels import TORCH, Kernel
from jano_dist.degrees import Degrees


@pytest.fixture
def hour(tmp_path):
    return Hour(torch.device("cpu"), 2, "float32", 1, ((5, 32, 32),), tmp_path)


def test_kernels_that_are_right(hour):
    found = truth.kernels(hour)["rows"]
    assert [row["backend"] for row in found] == ["torch"] * 2 * len(truth.SHAPES)
    assert max(row["attention"] for row in found if row["dtype"] == "torch.float32") <= 1e-5


@pytest.mark.parametrize(
    ("of", "name", "wrong"),
    [
        (Kernel, "attention", lambda kernel, q, k, v: v.mean(0).expand_as(q)),
        (
            Kernel,
            "attention_with_lse",
            lambda kernel, q, k, v: (TORCH.attention(q, k, v), torch.zeros(q.shape[:2])),
        ),
        (truth, "merge", lambda out, lse: out.mean(0)),
        (truth, "rotate", lambda x, rope: x),
    ],
)
def test_a_kernel_that_is_wrong(hour, monkeypatch, of, name, wrong):
    monkeypatch.setattr(of, name, wrong)
    with pytest.raises(Lie, match=r"kernel torch of cpu in .* from float64, not 1e-05: take another"):
        truth.kernels(hour)


def test_a_copy_that_is_not_waited_for(hour, monkeypatch):
    def late(device, policy, **own):
        return torch.ones(2) * (own["cache.device"] == "cpu")

    monkeypatch.setattr(truth, "_tiny", late)
    with pytest.raises(Lie, match=r"the kv cache in native makes another video from host memory than on cpu"):
        truth.caches(hour)


def test_random_weights_take_what_loaded_ones_do():
    """Some of them are in float32 whatever the others are; the hour compares all with the account."""
    config = load_config("wan2.1-14b-720p")
    sizes = true_width(config, None)
    made = random_transformer(config, sizes.geometry.layers, torch.bfloat16, torch.device("meta"))
    counted = memory_of(sizes, config, Degrees(1, 1, 1)).resident["transformer"]
    assert sum(each.nbytes for each in made.parameters()) == counted


def test_it_stops_at_the_first_lie(hour, tmp_path):
    def lies(hour):
        promised(1 > 2, "one is not above two: count again")

    parts = {
        "good": lambda hour: {"rows": [{"a|b": 1.23456, "c": [1, 2]}]},
        "bad": lies,
        "never": pytest.fail,
    }
    figures, lie = gpu_first_hour.run(hour, parts)
    assert lie == "bad: one is not above two: count again"
    assert list(figures) == ["good"]
    content = {"device_name": "cpu", "lie": lie, "parts": figures}
    ran = {"ended": "today", "commit": "0" * 40, "command": "python -m benchmarks.gpu_first_hour"}
    result = tmp_path / "result.json"
    result.write_text(json.dumps({"ran": ran, **content}))
    text = write_page(result).read_text()
    assert f"**Stopped at the first lie.** {lie}" in text
    assert "| 1.235 | [1, 2] |" in text
