"""Silhouettes and depths of solids in closed form."""

import pytest
import torch

from t2mv_core.cameras import DEFAULT_RIG, CameraRig
from t2mv_core.objects.projection import project
from t2mv_core.objects.volume import Volume, voxel_centres

N = 64
VOXEL = 1.1 / N


def volume_of(distance):
    """Occupancy that falls from 1 to 0 over one voxel at the surface of a signed distance (x, y, z)."""
    c = voxel_centres(N, 0.55)
    d = distance(c[:, None, None], c[None, :, None], c[None, None, :])
    return Volume((0.5 - d / VOXEL).clamp(0, 1).expand(N, N, N).contiguous(), 0.55)


def box(half, at):
    def distance(*point):
        sides = [(p - a).abs() - h for p, a, h in zip(point, at, half, strict=True)]
        return torch.maximum(torch.maximum(sides[0], sides[1]), sides[2])

    return volume_of(distance)


def test_a_sphere_is_a_disc_of_depth_sqrt_r2_minus_s2_from_everywhere(solids):
    sphere = volume_of(lambda x, y, z: (x**2 + y**2 + z**2).sqrt() - 0.4)
    rig = CameraRig((0.0, 33.0, 120.0, 200.0), (0.0, 40.0, -70.0, 90.0))
    seen = project(sphere, rig, 32)
    true = solids.disc(0.4, 32)
    assert (seen.coverage - true).abs().mean() < 0.02
    across = voxel_centres(32, 0.55)
    radius2 = across[:, None] ** 2 + across[None, :] ** 2
    inner = radius2 < 0.3**2
    expected = (0.4**2 - radius2[inner]).sqrt()
    assert (seen.nearness[:, inner] - expected).abs().max() < 0.3 * VOXEL
    assert (seen.nearness[:, true == 0] == -torch.inf).all()


def test_the_nearest_face_of_a_box_is_seen():
    # x in [0.05, 0.25], y in [-0.2, 0.1]: the front shows y = -0.2, nearness 0.2; the right side x = 0.25;
    # the back y = 0.1; the left side x = 0.05, nearness -0.05.
    solid = box((0.1, 0.15, 0.2), (0.15, -0.05, 0.1))
    seen = project(solid, DEFAULT_RIG.subset([0, 2, 3, 4]), N).nearness
    medians = [view[view > -torch.inf].median().item() for view in seen]
    assert medians == pytest.approx([0.2, 0.25, 0.1, -0.05], abs=0.2 * VOXEL)


def test_a_box_appears_where_it_stands(solids):
    half, at = (0.1, 0.15, 0.2), (0.15, -0.05, 0.1)
    coverage = project(box(half, at), DEFAULT_RIG, N).coverage
    for view, azimuth in zip(coverage, DEFAULT_RIG.azimuths_deg, strict=True):
        true = solids.box(half, azimuth, N, at) > 0.5
        assert ((view > 0.5) & true).sum() / ((view > 0.5) | true).sum() > 0.9


def test_progress_is_told_view_by_view():
    steps = []
    project(box((0.1, 0.1, 0.1), (0, 0, 0)), DEFAULT_RIG, 8, on_step=lambda *step: steps.append(step))
    assert steps == [(view, 6) for view in range(1, 7)]


def test_an_empty_volume_shows_nothing():
    seen = project(Volume(torch.zeros(16, 16, 16), 0.55), DEFAULT_RIG, 8)
    assert seen.coverage.max() == 0
    assert (seen.nearness == -torch.inf).all()
