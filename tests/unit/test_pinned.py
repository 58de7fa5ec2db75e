"""What PyTorch takes in pinned host memory, against its rule counted out; and how it is told our wishes."""

import os
import subprocess
import sys
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jano_dist.pinned import exact_sizes, pinned_bytes, with_exact_sizes

MIB = 2**20
OURS = "pinned_max_round_threshold_mb:1,pinned_max_cached_size_mb:1"


@given(nbytes=st.integers(1, 2**36))
def test_the_power_of_two_from_a_size_on(nbytes):
    taken = pinned_bytes(nbytes, exact=False)
    assert taken.bit_count() == 1
    assert taken // 2 < nbytes <= taken


@pytest.mark.parametrize(
    ("nbytes", "rounded", "exact"),
    [
        (0, 0, 0),
        (1, 1, 1),
        (3, 4, 4),
        (20480, 32768, 32768),
        (MIB - 1, MIB, MIB),
        (MIB, MIB, MIB),
        (MIB + 1, 2 * MIB, MIB + 1),
        (193_536_000, 256 * MIB, 193_536_000),  # K of a layer of 14B at 720p, a quarter of the heads
    ],
)
def test_above_a_mebibyte_it_can_be_exact(nbytes, rounded, exact):
    assert pinned_bytes(nbytes, exact=False) == rounded
    assert pinned_bytes(nbytes, exact=True) == exact


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("", OURS),
        ("expandable_segments:True", f"expandable_segments:True,{OURS}"),
        (
            "pinned_max_round_threshold_mb:64",
            f"pinned_max_round_threshold_mb:64,{OURS}",
        ),  # the last one counts
        (OURS, OURS),
        (f"max_split_size_mb:512,{OURS}", f"max_split_size_mb:512,{OURS}"),
    ],
)
def test_what_the_user_set_stays(given, wanted):
    assert with_exact_sizes(given) == wanted


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_pytorch_is_told_whatever_its_environment(name):
    """In a process of its own: what it reads there it reads once."""
    program = (
        "import torch; from jano_dist.pinned import exact_sizes\n"
        "for _ in range(2): print(exact_sizes(), torch._C._accelerator_getAllocatorSettings())"
    )
    environment = {**os.environ, name: "max_split_size_mb:512"}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert ended.stdout == f"True max_split_size_mb:512,{OURS}\n" * 2, ended.stderr


def test_a_pytorch_that_knows_no_such_setting_keeps_its_own():
    settings = ["max_split_size_mb:512"]

    def change(wanted):
        settings.append(wanted)  # first, as PyTorch does
        if "pinned" in wanted:
            raise ValueError(
                "Unrecognized key 'pinned_max_round_threshold_mb' in Accelerator allocator config."
            )

    with mock.patch.multiple(
        torch._C,
        _accelerator_getAllocatorSettings=lambda: settings[-1],
        _accelerator_setAllocatorSettings=change,
    ):
        assert not exact_sizes()
        assert settings[-1] == "max_split_size_mb:512"
