"""The tests with real ranks once more, while PyTorch itself compares what ranks exchange."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__)


@pytest.mark.slow
def test_no_rank_is_at_another_collective_than_the_others():
    """TORCH_DISTRIBUTED_DEBUG=DETAIL puts a comparison of kind, number and shape before every collective."""
    tests = [str(path) for path in sorted(HERE.parent.glob("test_*.py")) if path != HERE]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *tests],
        env={**os.environ, "TORCH_DISTRIBUTED_DEBUG": "DETAIL"},
        cwd=HERE.parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
