"""Decoding over several ranks gives what diffusers' own VAE gives in one process."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan

from jano_dist.mesh import Mesh, ranks_started
from jano_dist.models.wan_pipeline import load_wan, model_folder
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
def decoded(dtype, shape, parallel, tiling):
    """What this rank's decoder returns, twice in a row."""
    vae = load(dtype)
    if tiling:
        vae.enable_tiling(**TILES)
    decoder, mesh = VideoDecoder(vae, parallel=parallel), Mesh(ulysses=ranks_started())
    latent = latents(shape).to(dtype)
    results = [decoder.decode(latent, mesh) for _ in range(2)]
    return [None if video is None else video.float().numpy() for video in results]


@torch.inference_mode()
def reference(dtype, shape, tiling):
    vae = load(dtype)
    if tiling:
        vae.enable_tiling(**TILES)
    return vae.decode(latents(shape).to(dtype), return_dict=False)[0].float().numpy()


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
    expected = reference(dtype, shape, tiling)
    for rank, videos in enumerate(gang(world, decoded, dtype, shape, "auto", tiling)):
        for video in videos:
            assert video is not None, f"rank {rank} did not take part"
            if rank == 0:
                assert np.abs(video - expected).max() <= tolerance


@pytest.mark.parametrize(
    ("parallel", "shape"),
    [("single", (2, 6, 6)), ("auto", (2, 2, 4))],  # the second has fewer rows than ranks
)
def test_the_coordinator_alone(parallel, shape):
    ranks = gang(3, decoded, torch.float32, shape, parallel, False)
    assert (ranks[0][0] == reference(torch.float32, shape, False)).all()
    assert ranks[1:] == [[None, None]] * 2


def model_frames(world):
    settings = {"dtype": "auto", "vae_dtype": "bfloat16", "max_sequence_length": 32}
    model = load_wan("wan-tiny", device=torch.device("cpu"), **settings)
    with torch.inference_mode():
        mesh = Mesh(ulysses=world)
        together = model.decode(latents((2, 8, 6))[0], mesh)
        alone = model.decode(latents((2, 8, 6))[0], Mesh.single())
    return together, alone


def test_a_model_decodes_with_any_mesh_and_only_the_coordinator_has_frames():
    (frames, alone), (nothing, _) = gang(2, model_frames, 2)
    assert frames.shape == alone.shape == (5, 64, 48, 3)
    assert frames.dtype == np.uint8
    assert np.abs(frames.astype(int) - alone).max() <= 2
    assert nothing.shape == (0, 64, 48, 3)
