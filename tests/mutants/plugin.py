"""What pytest does differently under mutmut. See `__main__`.

mutmut picks a mutant in the process that runs the tests, and notes in that process which functions a test
calls. Ranks are therefore forked from it; and because their calls are not seen, a test of a gang counts as
one of every function of the room.
"""

import multiprocessing
import os
import signal

import pytest
from mutmut.mutation.data import SourceFileMutationData
from mutmut.state import state
from mutmut.utils.file_utils import walk_mutatable_files
from mutmut.utils.format_utils import mangled_name_from_mutant_name

from tests.gang import harness

harness.CONTEXT = multiprocessing.get_context("fork")


def _functions() -> set[str]:
    """All that have mutants, as mutmut names them."""
    names = set()
    os.chdir("..")  # pytest runs in the folder of the mutants
    for path in walk_mutatable_files():
        data = SourceFileMutationData(path=path)
        data.load()
        names |= {mangled_name_from_mutant_name(name) for name in data.exit_code_by_key}
    os.chdir("mutants")
    return names


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item):
    if "tests/gang" in item.nodeid and os.environ["MUTANT_UNDER_TEST"] == "stats":
        state()._stats.update(_functions())


def _end(*_):
    """Out of time: the ranks end too."""
    for rank in multiprocessing.active_children():
        rank.kill()
    os._exit(36)  # mutmut's code for it


signal.signal(signal.SIGXCPU, _end)
