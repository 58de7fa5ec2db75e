"""A model's sizes without torch: the same as diffusers reads them, or none."""

import inspect
import json

import pytest
from diffusers import AutoencoderKLWan, WanTransformer3DModel

from jano_dist import UserError, geometry
from jano_dist.geometry import wan
from jano_dist.models import read_geometry
from jano_dist.models.sizes import read_sizes

NAMES = ["wan-tiny", *geometry.KNOWN]


def test_the_defaults_are_those_of_diffusers():
    for kind, ours in ((WanTransformer3DModel, wan.TRANSFORMER), (AutoencoderKLWan, wan.VAE)):
        theirs = inspect.signature(kind).parameters
        assert ours == {name: theirs[name].default for name in ours}


@pytest.mark.parametrize("name", NAMES)
def test_the_same_as_the_classes_say(name):
    assert geometry.quick_geometry(name) == read_sizes(name, local=True).geometry


def test_a_folder_that_leaves_out_what_is_usual(model_copy):
    """The files on the hub do not have the VAE's strides."""
    file = model_copy.folder / "vae" / "config.json"
    values = json.loads(file.read_text())
    del values["scale_factor_temporal"], values["scale_factor_spatial"]
    model_copy.write(file, json.dumps(values))
    assert geometry.quick_geometry(str(model_copy.folder)) == read_geometry("wan-tiny")


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"patch_size": null}', '{"num_layers": "6"}', '{"in_channels": 0}']
)
def test_what_is_broken_is_left_to_others(model_copy, content):
    model_copy.write(model_copy.folder / "transformer" / "config.json", content)
    assert geometry.quick_geometry(str(model_copy.folder)) is None


def test_what_is_not_here():
    assert geometry.quick_geometry("some/model") is None
    for name in ("nothing", "", "a/b/c", "wan-tiny/x/y"):
        with pytest.raises(UserError, match="give wan-tiny, an existing folder, or a hub name"):
            geometry.quick_geometry(name)


def test_a_shipped_model_is_found_by_its_own_name_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert geometry.find_model("wan-tiny").endswith("assets/wan-tiny")
    assert geometry.find_model(".") == "."  # the folder one is in, not that of the shipped ones
