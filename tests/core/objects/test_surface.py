"""Surfaces of solids in closed form: where they lie, that they are closed and face outwards."""

import math
from collections import Counter

import pytest
import torch

from t2mv_core.objects.surface import extract_surface
from t2mv_core.objects.volume import Volume, voxel_centres

N = 48
VOXEL = 1.1 / N


def ball(radius, at=(0.0, 0.0, 0.0)):
    c = voxel_centres(N, 0.55)
    x, y, z = c[:, None, None] - at[0], c[None, :, None] - at[1], c[None, None, :] - at[2]
    return Volume((0.5 - ((x**2 + y**2 + z**2).sqrt() - radius) / VOXEL).clamp(0, 1), 0.55)


def directed_edges(faces):
    return Counter((a, b) for face in faces.tolist() for a, b in zip(face, face[1:] + face[:1], strict=True))


def test_a_sphere_lies_where_it_is_and_faces_outwards():
    at = torch.tensor([0.1, -0.05, 0.08])
    surface = extract_surface(ball(0.3, at.tolist()))
    away = surface.vertices - at
    assert (away.norm(dim=1) - 0.3).abs().max() < 0.1 * VOXEL
    assert surface.enclosed_volume() == pytest.approx(4 / 3 * math.pi * 0.3**3, rel=0.01)
    cosines = (surface.vertex_normals() * away / away.norm(dim=1, keepdim=True)).sum(dim=1)
    assert cosines.min() > 0.98


@pytest.mark.parametrize("volume", [ball(0.3), ball(0.7), Volume(torch.ones(16, 16, 16), 0.55)])
def test_surfaces_are_closed_also_at_the_border(volume):
    edges = directed_edges(extract_surface(volume).faces)
    assert set(edges.values()) == {1}
    assert all((b, a) in edges for a, b in edges)


def test_smoothing_keeps_a_ball_and_rounds_a_cube():
    ball_volume = extract_surface(ball(0.35), smoothing=1.0).enclosed_volume()
    assert ball_volume == pytest.approx(4 / 3 * math.pi * 0.35**3, rel=0.02)
    cube = torch.zeros(N, N, N)
    cube[12:36, 12:36, 12:36] = 1
    plain, smooth = (extract_surface(Volume(cube, 0.55), smoothing=s) for s in (0.0, 2.0))
    corner = 12 * math.sqrt(3) * VOXEL
    assert plain.vertices.norm(dim=1).max() > corner - VOXEL
    assert smooth.vertices.norm(dim=1).max() < corner - 2 * VOXEL
    assert smooth.vertices[:, 0].max() == pytest.approx(plain.vertices[:, 0].max().item(), abs=0.2 * VOXEL)


def test_what_has_no_surface_is_refused():
    with pytest.raises(ValueError, match="empty"):
        extract_surface(Volume(torch.zeros(16, 16, 16), 0.55))
    speck = torch.zeros(16, 16, 16)
    speck[8, 8, 8] = 1
    with pytest.raises(ValueError, match=r"smoothing=2.0 voxels dissolves"):
        extract_surface(Volume(speck, 0.55), smoothing=2.0)
    with pytest.raises(ValueError, match="smoothing=-1"):
        extract_surface(ball(0.3), smoothing=-1)
