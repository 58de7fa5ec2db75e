"""The look at a model folder before it is loaded, against files that safetensors itself wrote."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from jano_dist.errors import UserError
from jano_dist.models.weights import check_file, check_folder, check_weights, stored_dtype, weight_files

TENSORS = {
    "a.weight": torch.arange(12.0).reshape(3, 4),
    "a.bias": torch.zeros(3, dtype=torch.bfloat16),
    "empty": torch.zeros(0),
    "steps": torch.tensor(7),
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    return path


def header_length(file):
    return int.from_bytes(file.read_bytes()[:8], "little")


class TestCheckFile:
    def test_whole(self, file):
        found = check_file(file)
        assert {name: (entry["dtype"], entry["shape"]) for name, entry in found.items()} == {
            "a.weight": ("F32", [3, 4]),
            "a.bias": ("BF16", [3]),
            "empty": ("F32", [0]),
            "steps": ("I64", []),
        }

    def test_without_tensors(self, tmp_path):
        save_file({}, tmp_path / "none.safetensors")
        assert check_file(tmp_path / "none.safetensors") == {}

    @pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.6, 0.9])
    def test_truncated(self, file, share):
        content = file.read_bytes()
        file.write_bytes(content[: int(share * len(content))])
        with pytest.raises(UserError, match=rf"{re.escape(str(file))} .*: fetch it again"):
            check_file(file)

    def test_truncated_anywhere(self, file):
        """No length but the right one passes."""
        content = file.read_bytes()
        for length in range(len(content)):
            file.write_bytes(content[:length])
            with pytest.raises(UserError, match="fetch it again"):
                check_file(file)

    @pytest.mark.parametrize("missing", [1, 5])
    def test_truncated_in_the_data_names_both_sizes(self, file, missing):
        content = file.read_bytes()
        file.write_bytes(content[:-missing])
        with pytest.raises(UserError, match=f"has {len(content) - missing} bytes .* says {len(content)}"):
            check_file(file)

    def test_too_long(self, file):
        file.write_bytes(file.read_bytes() + b"\0")
        with pytest.raises(UserError, match="where its header says"):
            check_file(file)

    @pytest.mark.parametrize("header", [b"{ ", b"\xff\xff", b"[]", b"17", b'{"a": 1}', b'{"a": {"b": 1}}'])
    def test_damaged_header(self, file, header):
        file.write_bytes(len(header).to_bytes(8, "little") + header)
        with pytest.raises(UserError, match="damaged header: fetch it again"):
            check_file(file)

    @pytest.mark.parametrize("content", [b"", b"PK\3\4" + bytes(100), b"version https://git-lfs.github.com/"])
    def test_no_safetensors(self, file, content):
        file.write_bytes(content)
        with pytest.raises(UserError, match="fetch it again"):
            check_file(file)

    def test_reads_no_more_than_the_header(self, file):
        """A 14B model's files are looked at in no time: data that is not there is not missed."""
        content = file.read_bytes()
        start = 8 + header_length(file)
        with file.open("r+b") as stream:
            stream.truncate(start)
            stream.truncate(len(content))  # a hole
        assert set(check_file(file)) == set(TENSORS)


class TestWeightFiles:
    def test_one_file(self, file):
        assert weight_files(file.parent) == [file]

    def test_none(self, tmp_path):
        (tmp_path / "model.bin").write_bytes(b"x")
        with pytest.raises(UserError, match=r"holds no \.safetensors weights: fetch"):
            weight_files(tmp_path)

    def write_index(self, folder, content):
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))

    def test_the_index_decides(self, tmp_path):
        """A file that it does not name is not looked at."""
        for name in ("one", "two", "left-over"):
            save_file({name: torch.zeros(1)}, tmp_path / f"{name}.safetensors")
        names = {"two": "two.safetensors", "one": "one.safetensors", "uno": "one.safetensors"}
        self.write_index(tmp_path, {"weight_map": names})
        assert weight_files(tmp_path) == [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]

    def test_missing_shard(self, file):
        self.write_index(file.parent, {"weight_map": {"a": file.name, "b": "lost.safetensors"}})
        with pytest.raises(UserError, match=r"lost\.safetensors is missing: fetch it again"):
            weight_files(file.parent)

    @pytest.mark.parametrize("content", [{}, [], {"weight_map": []}, {"weight_map": {"a": 1, "b": "x"}}])
    def test_damaged_index(self, file, content):
        self.write_index(file.parent, content)
        with pytest.raises(UserError, match=r"index\.json is damaged: fetch it again"):
            weight_files(file.parent)


class TestStoredDtype:
    def stored(self, folder, **sizes):
        for number, (name, size) in enumerate(sizes.items()):
            tensor = torch.zeros(size, dtype=getattr(torch, name))
            save_file({f"w{number}": tensor}, folder / f"{number}.safetensors")
        return stored_dtype(folder)

    def test_of_most_elements(self, tmp_path):
        """Not of most bytes: 100 float32 numbers take more room than 150 of bfloat16."""
        assert self.stored(tmp_path, float32=100, bfloat16=150) == torch.bfloat16

    @pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
    def test_of_all(self, tmp_path, name):
        assert self.stored(tmp_path, **{name: 10}) == getattr(torch, name)

    def test_mixed_in_one_file(self, file):
        assert stored_dtype(file.parent) == torch.float32

    def test_one_that_nothing_is_computed_in(self, tmp_path):
        assert self.stored(tmp_path, int8=10) == torch.float32


class TestCheckFolder:
    @pytest.fixture
    def folder(self, tmp_path):
        index = {"_class_name": "SomePipeline", "_diffusers_version": "0.42.0", "boundary": None}
        for part in ("vae", "scheduler"):
            (tmp_path / part).mkdir()
            index[part] = ["diffusers", "Some"]
        index["transformer_2"] = [None, None]  # a part that this pipeline does without
        (tmp_path / "vae" / "config.json").write_text("{}")
        save_file(TENSORS, tmp_path / "vae" / "model.safetensors")
        (tmp_path / "model_index.json").write_text(json.dumps(index))
        return tmp_path

    def test_whole(self, folder):
        check_folder(folder, ("vae",))

    @pytest.mark.parametrize(
        ("gone", "words"),
        [
            ("model_index.json", r"no model_index\.json"),
            ("vae/config.json", r"vae has no config\.json"),
            ("vae/model.safetensors", r"vae holds no \.safetensors weights"),
        ],
    )
    def test_without_a_file(self, folder, gone, words):
        (folder / gone).unlink()
        with pytest.raises(UserError, match=words):
            check_folder(folder, ("vae",))

    def test_without_a_part(self, folder):
        (folder / "scheduler").rmdir()
        with pytest.raises(UserError, match="has no folder scheduler: fetch"):
            check_folder(folder, ("vae",))

    def test_with_a_truncated_file(self, folder):
        file = folder / "vae" / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(UserError, match="where its header says"):
            check_folder(folder, ("vae",))


class Tied(nn.Module):
    """One weight under two names, as the embedding of a T5 encoder."""

    def __init__(self):
        super().__init__()
        with torch.device("meta"):
            self.shared = nn.Linear(4, 3, bias=False)
            self.head = nn.Linear(4, 3)
        self.head.weight = self.shared.weight


class TestCheckWeights:
    @pytest.mark.parametrize("stored", [["shared.weight"], ["head.weight"], ["shared.weight", "head.weight"]])
    def test_whole_under_either_name(self, tmp_path, stored):
        tensors = {name: torch.zeros(3, 4) for name in stored}
        save_file({**tensors, "head.bias": torch.zeros(3)}, tmp_path / "model.safetensors")
        check_weights(tmp_path, Tied())

    def test_missing(self, tmp_path):
        save_file({"head.bias": torch.zeros(3)}, tmp_path / "model.safetensors")
        with pytest.raises(UserError, match=r"lacks the weight head\.weight: fetch"):
            check_weights(tmp_path, Tied())

    def test_several_missing(self, tmp_path):
        save_file({"other": torch.zeros(3)}, tmp_path / "model.safetensors")
        with pytest.raises(UserError, match=r"lacks the weight head\.bias and 1 more: fetch"):
            check_weights(tmp_path, Tied())

    def test_of_another_size(self, tmp_path):
        tensors = {"shared.weight": torch.zeros(3, 5), "head.bias": torch.zeros(3)}
        save_file(tensors, tmp_path / "model.safetensors")
        with pytest.raises(UserError, match=r"weight shared\.weight has shape \[3, 5\].* asks for \[3, 4\]"):
            check_weights(tmp_path, Tied())
