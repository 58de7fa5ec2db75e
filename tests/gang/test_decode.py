"""Decoding over several ranks gives what diffusers' own VAE gives in one process."""

import time
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.distributed as dist
from diffusers import AutoencoderKLWan
from torch.utils.flop_counter import FlopCounterMode

from jano_dist import Engine, load_config
from jano_dist.groups import DECODERS
from jano_dist.mesh import Mesh, ranks_started
from jano_dist.models import load_model, wan_vae
from jano_dist.models.folder import model_folder
from jano_dist.models.wan_vae import VideoDecoder
from tests.gang.harness import gang

TILES = {
    "tile_sample_min_height": 64,
    "tile_sample_min_width": 64,
    "tile_sample_stride_height": 48,
    "tile_sample_stride_width": 48,
}


def load(dtype):
    return AutoencoderKLWan.from_pretrained(model_folder("wan-tiny") / "vae", dtype=dtype)


def latents(shape):
    return torch.randn(1, 16, *shape, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def decoded(dtype, shape, parallel, tiling, most=8):
    """What this rank's decoder returns, twice in a row, and the FLOPs of the second time."""
    vae = load(dtype)
    if tiling:
        vae.enable_tiling(**TILES)
    decoder, mesh = VideoDecoder(vae, parallel=parallel), Mesh(ulysses=ranks_started(), decoders=most)
    latent = latents(shape).to(dtype)
    first = decoder.decode(latent, mesh)
    with FlopCounterMode(display=False) as work:
        second = decoder.decode(latent, mesh)
    videos = [None if video is None else video.float().numpy() for video in (first, second)]
    return videos, work.get_total_flops()


@torch.inference_mode()
def reference(dtype, shape, tiling):
    vae = load(dtype)
    if tiling:
        vae.enable_tiling(**TILES)
    with FlopCounterMode(display=False) as work:
        video = vae.decode(latents(shape).to(dtype), return_dict=False)[0]
    return video.float().numpy(), work.get_total_flops()


@pytest.mark.parametrize(
    ("world", "dtype", "shape", "tiling", "tolerance"),
    [
        (2, torch.float32, (3, 6, 10), False, 1e-4),
        (3, torch.float32, (2, 7, 6), False, 1e-4),  # 7 rows on 3 ranks
        (2, torch.bfloat16, (2, 8, 8), False, 0.02),  # in -1..1, where neighbours are 0.008 apart
        (2, torch.float32, (2, 16, 14), True, 1e-5),
        (3, torch.float32, (2, 12, 16), True, 1e-5),
    ],
)
def test_all_ranks_together(world, dtype, shape, tiling, tolerance):
    expected, whole = reference(dtype, shape, tiling)
    ranks = gang(world, decoded, dtype, shape, "auto", tiling)
    for video in ranks[0][0]:
        assert np.abs(video - expected).max() <= tolerance
    shares = [work / whole for _, work in ranks]
    assert 0 < min(shares) <= max(shares) < 0.7, "the ranks decode the same instead of their part"


@pytest.mark.parametrize("tiling", [False, True])
def test_ranks_beyond_the_limit_wait(tiling):
    """Three ranks of which two decode: as if there were two, and nothing of it on the third."""
    shape = (2, 12, 16)
    settings = (torch.float32, shape, "auto", tiling)
    first, second, third = gang(3, decoded, *settings, 2)
    expected, _ = reference(torch.float32, shape, tiling)
    for video, pair in zip(first[0], gang(2, decoded, *settings)[0][0], strict=True):
        assert np.abs(video - expected).max() <= 1e-4
        assert (video == pair).all()
    assert second[1] > 0
    assert third == ([None, None], 0)


def test_eight_ranks_at_most():
    assert VideoDecoder(None, parallel="auto").decode(torch.zeros(1), Beyond()) is None


class Beyond:
    """The mesh of a ninth rank."""

    world, rank, decoders, decode_group, is_coordinator = 9, 8, DECODERS, None, False


@pytest.mark.parametrize(
    ("parallel", "shape"),
    [("single", (2, 6, 6)), ("auto", (2, 2, 4))],  # the second has fewer rows than ranks
)
def test_the_coordinator_alone(parallel, shape):
    ranks = gang(3, decoded, torch.float32, shape, parallel, False)
    expected, whole = reference(torch.float32, shape, False)
    (videos, work), *others = ranks
    assert all((video == expected).all() for video in videos)
    assert work == whole
    assert others == [([None, None], 0)] * 2


def load_wan(**vae):
    settings = {"dtype": "auto", "vae_dtype": "bfloat16", "max_sequence_length": 32}
    return load_model("wan-tiny", device=torch.device("cpu"), **settings, **vae)


@torch.inference_mode()
def model_frames(world):
    model, mesh = load_wan(), Mesh(ulysses=world)
    with patch.object(wan_vae, "parallelize_decoder", wraps=wan_vae.parallelize_decoder) as install:
        frames = [model.decode(latents((2, 8, 6))[0], each) for each in (mesh, Mesh.single(), mesh)]
    return frames, install.call_count


def test_a_model_decodes_with_any_mesh_and_only_the_coordinator_has_frames():
    ((frames, alone, again), installed), ((nothing, alone_too, _), _) = gang(2, model_frames, 2)
    assert frames.shape == alone.shape == (5, 64, 48, 3)
    assert frames.dtype == np.uint8
    assert np.abs(frames.astype(int) - alone).max() <= 2
    assert (frames == again).all()
    assert (alone == alone_too).all()
    assert nothing.shape == (0, 64, 48, 3)
    assert installed == 1


@torch.inference_mode()
def model_work(world, shape, vae):
    """FLOPs of this rank's decoding."""
    model, mesh = load_wan(**vae), Mesh(ulysses=world)
    with FlopCounterMode(display=False) as work:
        model.decode(latents(shape)[0], mesh)
    return work.get_total_flops()


def test_vae_parallel_of_the_config_is_heard():
    first, second = gang(2, model_work, 2, (1, 4, 4), {"vae_parallel": "single"})
    assert first == model_work(1, (1, 4, 4), {})
    assert second == 0


def test_vae_tiling_of_the_config_is_heard():
    shape = (1, 34, 2)  # more rows than one tile has
    tiled = model_work(1, shape, {"vae_tiling": True})
    assert tiled > model_work(1, shape, {}), "tiles overlap, so they are more work"


def with_a_slow_decoder(seconds):
    """A generation on whose coordinator decoding takes this long."""
    video = {"video.frames": 1, "video.height": 64, "video.width": 64, "sampling.steps": 3}
    patience = {"model.vae_parallel": "single", "runtime.timeout_seconds": 3}
    engine = Engine(load_config("wan-tiny", policy="full", overrides={**video, **patience}))
    decode = engine.model.decode

    def slowly(latent, mesh):
        time.sleep(seconds if dist.get_rank() == 0 else 0)
        return decode(latent, mesh)

    with patch.object(engine.model, "decode", slowly):
        return engine.generate("a red ball").frames.shape[0]


def test_decoding_may_take_longer_than_the_time_out():
    assert gang(2, with_a_slow_decoder, 5, collective_timeout=3) == [1, 0]
