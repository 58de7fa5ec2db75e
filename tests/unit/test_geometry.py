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


# Billions of parameters of the transformer, as published with each model.
@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("black-forest-labs/FLUX.1-dev", 11.9),
        ("stabilityai/stable-diffusion-3-medium-diffusers", 2.0),
        ("stabilityai/stable-diffusion-3.5-large", 8.1),
        ("stabilityai/stable-diffusion-3.5-medium", 2.5),
        ("Wan-AI/Wan2.2-T2V-A14B-Diffusers", 14.3),  # each of two
        ("Wan-AI/Wan2.2-I2V-A14B-Diffusers", 14.3),
        ("Wan-AI/Wan2.2-TI2V-5B-Diffusers", 5.0),
    ],
)
def test_published_sizes(name, published):
    transformer = read_sizes(name, local=True).transformer
    assert round((transformer.plain + transformer.float32) / 1e9, 1) == pytest.approx(published, abs=0.101)


def test_a_family_that_is_not_supported(model_copy):
    index = model_copy.folder / "model_index.json"
    model_copy.write(index, json.dumps({**json.loads(index.read_text()), "_class_name": "SomePipeline"}))
    with pytest.raises(
        UserError, match=r"SomePipeline, which is not supported: give another model, one of WanPi"
    ):
        read_geometry(str(model_copy.folder))
