"""What is read ahead: whose files, in which order, and every byte of them once."""

import os

import pytest
import torch

from jano_dist.models import check_model, load_model, loading
from jano_dist.models.read_ahead import read_ahead
from tests.conftest import WAN_TINY


def test_every_byte_once_and_in_order(tmp_path, monkeypatch):
    """Also where a range is cut short; a file that is not there is left out."""
    sizes = {"b": 5 * 2**20 + 3, "a": 7, "gone": 0, "empty": 0, "c": 2**21}
    for name, size in sizes.items():
        if name != "gone":
            (tmp_path / name).write_bytes(bytes(size))
    asked = []

    def advise(descriptor, start, length, advice):
        asked.append((os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")), start, length, advice))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    read_ahead(tmp_path / name for name in sizes).join()
    assert {advice for *_, advice in asked} == {os.POSIX_FADV_WILLNEED}
    assert list(dict.fromkeys(name for name, *_ in asked)) == ["b", "a", "c"]
    for name, size in sizes.items():
        ranges = [(start, start + length) for own, start, length, _ in asked if own == name]
        assert all(end - start <= 2**21 for start, end in ranges)  # of more the kernel reads a part
        covered = [byte for start, end in ranges for byte in (start, end)]
        assert covered[1:-1:2] == covered[2::2]  # each begins where the last one ended
        assert not size or (covered[0] == 0 and covered[-1] >= size > ranges[-1][0])


class Place:
    """A rank of several."""

    def __init__(self, rank, local_world):
        self.is_coordinator, self.is_node_lead = rank == 0, rank % local_world == 0


@pytest.mark.parametrize(
    ("rank", "texts", "wanted"),
    [
        (0, True, ["transformer", "text_encoder"]),  # in the order in which they are wanted
        (0, False, ["transformer"]),
        (1, True, []),
        (2, True, ["transformer"]),  # of the second node
    ],
)
def test_whose_files(monkeypatch, rank, texts, wanted):
    seen = []
    monkeypatch.setattr(loading, "read_ahead", seen.extend)
    _, parts = check_model("wan-tiny")
    loading._read_ahead(WAN_TINY, parts, Place(rank, 2), texts=texts)
    assert [file.parent.name for file in seen] == wanted
    assert all(file.suffix == ".safetensors" for file in seen)


@pytest.mark.parametrize(("how", "wanted"), [("keep", 2), ("reload", 1)])
def test_before_anything_is_loaded(monkeypatch, how, wanted):
    events = []
    monkeypatch.setattr(loading, "read_ahead", lambda files: events.append(len(files)))
    real = loading.load_pipeline
    monkeypatch.setattr(loading, "load_pipeline", lambda *given: events.append("load") or real(*given))
    settings = {"dtype": "auto", "vae_dtype": "float32", "max_sequence_length": 32}
    load_model("wan-tiny", device=torch.device("cpu"), text_encoder=how, **settings)
    assert events == [wanted, "load"]
