"""Each family by `--model FOLDER` alone: what the folder says of itself is enough."""

import json

import pytest
from PIL import Image

from jano_dist.geometry import KNOWN, usual_config
from tests.conftest import WAN_TINY
from tests.parity.image_pipelines import flux_pipeline, sd3_pipeline

MAKERS = {
    "flux.1-dev-1024": flux_pipeline,
    "flux.1-schnell-1024": lambda: flux_pipeline(guidance_embeds=False, dynamic=False),
    "sd3-1024": sd3_pipeline,
}


@pytest.mark.parametrize("config", MAKERS)
def test_an_image(cli, tmp_path, config):
    """Under the config of its family, at the size asked for."""
    folder, out = tmp_path / "model", tmp_path / "run"
    MAKERS[config]().save_pretrained(folder)
    assert usual_config(str(folder)) == config
    small = ("--height", 32, "--width", 24, "--set", "model.dtype=float32")
    block = () if "schnell" in config else ("--set", "policy.block=[1, 4, 4]", "--steps", 12)
    result = cli("generate", "a red ball", "--out", out, "--model", folder, *small, *block)
    assert (result.code, result.err) == (0, "")
    record = json.loads((out / "run.json").read_text())
    assert Image.open(out / "image.png").size == (24, 32)
    assert Image.open(out / "complexity.png").size[0] > 0
    assert not (out / "video.mp4").exists()
    kinds = {step["kind"] for step in record["steps"]}
    assert kinds >= ({"full"} if "schnell" in config else {"full", "refresh", "active"})
    assert record["config"]["sampling"]["guidance"] == {"flux.1-dev-1024": 3.5, "sd3-1024": 7.0}.get(
        config, 0.0
    )


def test_known_models_have_their_config():
    names = {name: usual_config(name) for name in KNOWN}
    assert names["Wan-AI/Wan2.1-T2V-14B-Diffusers"] == "wan2.1-14b-480p"
    assert names["Wan-AI/Wan2.1-T2V-1.3B-Diffusers"] == "wan2.1-1.3b-480p"
    assert names["Wan-AI/Wan2.2-T2V-A14B-Diffusers"] == "wan2.2-t2v-a14b-720p"
    assert names["Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"] == "wan2.1-i2v-14b-480p"
    assert names["Wan-AI/Wan2.2-I2V-A14B-Diffusers"] == "wan2.2-i2v-a14b-720p"
    assert names["Wan-AI/Wan2.2-TI2V-5B-Diffusers"] == "wan2.2-ti2v-5b-720p"
    assert names["black-forest-labs/FLUX.1-schnell"] == "flux.1-schnell-1024"
    assert names["stabilityai/stable-diffusion-3.5-large"] == "sd3-1024"
    assert None not in names.values()
    assert usual_config(str(WAN_TINY)) is None
    assert usual_config("some/model") is None
