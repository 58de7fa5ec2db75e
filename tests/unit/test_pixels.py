"""Frames made where the video lies, against diffusers' own processor and numpy's rounding."""

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.video_processor import VideoProcessor

from jano_dist.models.pixels import to_frames


def random_video(dtype, frames=9):
    """Beyond -1..1 on both sides, and every level's middle and edge, where rounding decides."""
    video = torch.randn(3, frames, 10, 14, generator=torch.Generator().manual_seed(0))
    edges = (torch.arange(511) / 255 - 1).repeat(2)[: video[0, 0].numel()]
    video[1, 0] = edges.reshape(10, 14)
    return video.to(dtype)


def diffusers_frames(video):
    frames = VideoProcessor().postprocess_video(video[None].float(), output_type="np")[0]
    return (frames * 255).round().astype(np.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frames", [1, 4, 9])
def test_bit_for_bit_as_diffusers(dtype, frames):
    video = random_video(dtype, frames)
    kept = video.clone()
    made = to_frames(video)
    assert made.dtype == np.uint8
    assert made.shape == (frames, 10, 14, 3)
    np.testing.assert_array_equal(made, diffusers_frames(video))
    assert torch.equal(video, kept)
    assert {0, 255} <= set(np.unique(made).tolist())


def test_every_float_that_rounds_either_way():
    """All levels' halves and their neighbours among the floats."""
    rows = [((torch.arange(256, dtype=torch.float64) + 0.5) / 255 * 2 - 1).float()]
    for _ in range(3):
        rows = [rows[0].nextafter(torch.tensor(-2.0)), *rows, rows[-1].nextafter(torch.tensor(2.0))]
    video = torch.stack(rows).expand(3, 2, 7, 256)
    np.testing.assert_array_equal(to_frames(video), diffusers_frames(video))


def test_an_image_as_diffusers():
    image = random_video(torch.float32, 1).transpose(0, 1)
    theirs = VaeImageProcessor().postprocess(image, output_type="np")
    np.testing.assert_array_equal(to_frames(image.transpose(0, 1)), (theirs * 255).round().astype(np.uint8))


def test_no_float_copy_of_the_whole_video():
    """Of a long video a few frames are in float32 at once: the rest of what is allocated is bytes."""
    video = random_video(torch.bfloat16, 400)
    with torch.profiler.profile(profile_memory=True) as profile:
        to_frames(video)
    largest = max(event.self_cpu_memory_usage // max(event.count, 1) for event in profile.key_averages())
    assert largest <= video.numel()  # of bytes: the frames themselves
