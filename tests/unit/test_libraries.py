"""Imports without garbage collection, which is on again after them."""

import gc

import pytest

from jano_dist.libraries import uncollected


@pytest.fixture(autouse=True)
def collecting():
    gc.enable()
    yield
    gc.enable()


class TestUncollected:
    def test_nothing_is_collected_inside(self):
        with uncollected():
            assert not gc.isenabled()
        assert gc.isenabled()

    def test_one_inside_another_does_not_end_it(self):
        with uncollected():
            with uncollected():
                pass
            assert not gc.isenabled()

    def test_an_import_that_fails_leaves_it_on(self):
        with pytest.raises(ImportError), uncollected():
            raise ImportError
        assert gc.isenabled()

    def test_who_had_it_off_has_it_off_after(self):
        gc.disable()
        with uncollected():
            pass
        assert not gc.isenabled()

    def test_what_is_made_later_is_collected(self):
        with uncollected():
            pass
        ring = []
        ring.append(ring)
        del ring
        assert gc.collect() > 0
