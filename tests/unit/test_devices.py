"""What is made for a device is made there, also where torch's default device is another one."""

import torch

from jano_dist.sampling.velocity import VelocityRows

CPU = torch.device("cpu")


def test_velocity_rows():
    with torch.device("meta"):
        velocity = VelocityRows(3, 2, torch.float32, CPU)
    assert velocity.rows.device == CPU
    assert velocity.sigmas.device == CPU
