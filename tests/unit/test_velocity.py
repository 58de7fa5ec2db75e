"""Guidance, and the rows that skipped tokens keep."""

import numpy as np
import pytest
import torch

from jano_dist.sampling.guidance import guidance_on, guide
from jano_dist.sampling.velocity import VelocityRows

CPU = torch.device("cpu")


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_before_the_first_update(dtype):
    velocity = VelocityRows(5, 3, dtype, CPU)
    assert velocity.rows.dtype == dtype
    assert torch.equal(velocity.rows, torch.zeros(5, 3, dtype=dtype))
    assert velocity.sigmas.dtype == torch.float32
    assert velocity.sigmas.shape == (5,)
    assert velocity.sigmas.isnan().all()


def test_rows_lie_on_the_device_asked_for():
    """`meta` stands for any that is not torch's default."""
    velocity = VelocityRows(5, 3, torch.float32, torch.device("meta"))
    assert velocity.rows.device.type == velocity.sigmas.device.type == "meta"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_held_bit_by_bit(dtype):
    """Against a plain table: row -> what was last given for it, and when."""
    tokens, width = 17, 6
    velocity, random = VelocityRows(tokens, width, dtype, CPU), np.random.default_rng(1)
    table = [[0.0] * width for _ in range(tokens)]
    sigmas = [float("nan")] * tokens
    for step, count in enumerate((5, 17, 1, 0, 9, 4)):
        index = random.permutation(tokens)[:count]
        values, sigma = noise(count, width, seed=step), 1 / (step + 1)
        velocity.update(torch.from_numpy(index), values, sigma)
        for place, row in enumerate(index):
            table[row], sigmas[row] = values[place].to(dtype).tolist(), sigma
        assert velocity.rows.tolist() == table
        np.testing.assert_array_equal(velocity.sigmas.numpy(), np.float32(sigmas))


def test_values_keep_their_order_of_rows():
    velocity = VelocityRows(4, 1, torch.float32, CPU)
    velocity.update(torch.tensor([3, 0, 2]), torch.tensor([[30.0], [1.0], [20.0]]), 0.5)
    assert velocity.rows.flatten().tolist() == [1, 0, 20, 30]
    assert velocity.sigmas[[0, 2, 3]].tolist() == [0.5] * 3
    assert velocity.sigmas[1].isnan()


def test_rows_have_the_dtype_of_the_model_whatever_is_given():
    velocity, values = VelocityRows(2, 4, torch.bfloat16, CPU), noise(2, 4)
    velocity.update(torch.arange(2), values, 1.0)
    assert velocity.rows.dtype == torch.bfloat16
    assert torch.equal(velocity.rows, values.bfloat16())


def test_what_is_given_is_copied():
    velocity, values, index = VelocityRows(2, 2, torch.float32, CPU), torch.ones(2, 2), torch.arange(2)
    velocity.update(index, values, 1.0)
    values.zero_()
    assert torch.equal(velocity.rows, torch.ones(2, 2))
    assert index.tolist() == [0, 1]


class TestForecast:
    def table(self, updates, tokens, width):
        """Row by row: lists of (sigma, values) as computed, and whether the last line was better."""
        seen, trusted, errors = [[] for _ in range(tokens)], [False] * tokens, []
        for index, values, sigma in updates:
            off = []
            for row, value in zip(index, values.astype(np.float64), strict=True):
                held = np.linalg.norm(value - (seen[row][-1][1] if seen[row] else 0))
                line = np.inf
                if len(seen[row]) > 1:
                    (s0, v0), (s1, v1) = seen[row][-2:]
                    line = np.linalg.norm(value - (v0 + (v1 - v0) * (sigma - s0) / (s1 - s0)))
                trusted[row] = line < held
                off.append(min(line, held))
                seen[row].append((sigma, value))
            errors.append(np.mean(off) / np.mean(np.linalg.norm(values, axis=1)))
        return seen, trusted, errors

    def updates(self, tokens=11, width=5):
        """Tokens whose velocity is nearly a line in sigma, and others that jump; not all in every step."""
        random, sigmas = np.random.default_rng(4), np.linspace(1, 0.3, 9) ** 2
        start, slope = random.standard_normal((2, tokens, width))
        jumps = (np.arange(tokens) % 3 == 0)[:, None]
        for step, sigma in enumerate(sigmas):
            index = random.permutation(tokens)[: tokens if step < 3 else 8]
            noise = random.standard_normal((tokens, width)) * np.where(jumps, 3, 0.02)
            yield index, (start + slope * sigma + noise)[index].astype(np.float32), float(np.float32(sigma))

    def test_trusts_and_errors_are_those_of_a_plain_table(self):
        velocity, updates = VelocityRows(11, 5, torch.float32, CPU, forecasts=True), list(self.updates())
        errors = []
        for index, values, sigma in updates:
            velocity.update(torch.from_numpy(index), torch.from_numpy(values), sigma)
            errors.append(float(velocity.error))
        seen, trusted, wanted = self.table(updates, 11, 5)
        assert velocity.trusted.tolist() == trusted
        assert 0 < sum(trusted) < 11
        np.testing.assert_allclose(errors, wanted, rtol=1e-4)
        sigma = 0.05
        for row, (own, trust) in enumerate(zip(seen, trusted, strict=True)):
            (s0, v0), (s1, v1) = own[-2:]
            line = v0 + (v1 - v0) * (sigma - s0) / (s1 - s0) if trust else v1
            np.testing.assert_allclose(velocity.at(sigma)[row], line, rtol=2e-4, atol=2e-4)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_what_was_computed_here_is_itself(self, dtype):
        velocity = VelocityRows(11, 5, dtype, CPU, forecasts=True)
        for index, values, sigma in self.updates():
            velocity.update(torch.from_numpy(index), torch.from_numpy(values), sigma)
            assert torch.equal(velocity.at(sigma)[index], torch.from_numpy(values).to(dtype))

    def test_before_there_is_a_line(self):
        velocity = VelocityRows(3, 2, torch.float32, CPU, forecasts=True)
        for sigma in (0.9, 0.8):
            velocity.update(torch.arange(3), noise(3, 2), sigma)
            assert velocity.error.isfinite()
            assert torch.equal(velocity.at(0.7), velocity.rows)

    def test_without_forecasts_rows_are_held(self):
        velocity = VelocityRows(11, 5, torch.float32, CPU)
        for index, values, sigma in self.updates():
            velocity.update(torch.from_numpy(index), torch.from_numpy(values), sigma)
        assert torch.equal(velocity.at(0.01), velocity.rows)
        assert velocity.earlier.numel() == 0
        assert velocity.error is None

    def test_what_is_kept_restores_it(self):
        one = VelocityRows(11, 5, torch.float32, CPU, forecasts=True)
        for index, values, sigma in self.updates():
            one.update(torch.from_numpy(index), torch.from_numpy(values), sigma)
        other = VelocityRows(11, 5, torch.float32, CPU, forecasts=True)
        other.restore(one.kept("velocity."), "velocity.")
        assert torch.equal(other.at(0.01), one.at(0.01))
        assert not torch.equal(other.at(0.01), one.rows)


@pytest.mark.parametrize(
    ("scale", "on"), [(0.0, False), (0.5, False), (1.0, False), (1.001, True), (5.0, True)]
)
def test_guidance_needs_a_scale_above_one(scale, on):
    assert guidance_on(scale) is on


def test_one_branch_is_the_velocity():
    cond = noise(3, 4)
    assert torch.equal(guide([cond], 5.0), cond)


@pytest.mark.parametrize("scale", [1.5, 4.0, 7.0])
def test_guidance_goes_on_from_uncond_through_cond(scale):
    cond, uncond = noise(3, 4, seed=1, dtype=torch.float64), noise(3, 4, seed=2, dtype=torch.float64)
    wanted = (1 - scale) * uncond.numpy() + scale * cond.numpy()
    np.testing.assert_allclose(guide([cond, uncond], scale).numpy(), wanted, rtol=0, atol=1e-13)


def test_guidance_by_hand():
    assert guide([torch.tensor([3.0]), torch.tensor([1.0])], 4.0).item() == 9
