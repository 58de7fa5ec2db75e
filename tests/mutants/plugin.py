"""What pytest does differently under mutmut. See `__main__`.

mutmut activates a mutant in the process that runs the tests, and sees in that process which functions a test
calls. So ranks are forked from it; and because their calls are not seen, a test that starts ranks counts as
a test of every function of its room.
"""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from mutmut.mutation.data import SourceFileMutationData
from mutmut.state import state
from mutmut.utils.format_utils import mangled_name_from_mutant_name

from tests.gang import harness

harness.CONTEXT = multiprocessing.get_context("fork")


def every_function(mutants: Path) -> set[str]:
    """All that have mutants, by mutmut's names."""
    names = set()
    for meta in mutants.rglob("*.meta"):
        data = SourceFileMutationData(path=meta.relative_to(mutants).with_suffix(""))
        data.meta_path = meta
        data.load()
        names |= {mangled_name_from_mutant_name(mutant) for mutant in data.exit_code_by_key}
    return names


@pytest.hookimpl(tryfirst=True)  # before mutmut's own, which notes and forgets them
def pytest_runtest_teardown(item):
    if "gang" in item.path.parts and os.environ["MUTANT_UNDER_TEST"] == "stats":
        state()._stats.update(every_function(Path.cwd()))


def _end(*_):
    """mutmut's time for a mutant is over: without this its ranks would stay behind."""
    for rank in multiprocessing.active_children():
        rank.kill()
    os._exit(36)  # "timeout"


signal.signal(signal.SIGXCPU, _end)
