"""Sampling against functions that interpolation reproduces exactly."""

import pytest
import torch

from t2mv_core.objects.volume import Volume, voxel_centres


def test_centres_divide_the_cube_evenly():
    assert voxel_centres(4, 0.8).tolist() == pytest.approx([-0.6, -0.2, 0.2, 0.6])


def test_a_linear_occupancy_is_sampled_exactly():
    c = voxel_centres(8, 0.4)
    values = 0.5 + 0.1 * c[:, None, None] + 0.5 * c[None, :, None] - 0.3 * c[None, None, :]
    points = torch.tensor([[0.1, -0.2, 0.3], [-0.31, 0.05, 0.0]])
    expected = 0.5 + points @ torch.tensor([0.1, 0.5, -0.3])
    torch.testing.assert_close(Volume(values, 0.4).sample(points), expected, atol=1e-5, rtol=0)


def test_beyond_the_cube_is_nothing():
    assert Volume(torch.ones(4, 4, 4), 0.4).sample(torch.tensor([[0.6, 0.0, 0.0]])).item() == 0


def test_a_voxel_over_half_full_is_inside():
    values = torch.zeros(4, 4, 4)
    assert Volume(values, 0.4).is_empty()
    values[1, 2, 3] = 0.6
    assert not Volume(values, 0.4).is_empty()
