"""Colours of painted solids, the points that are hidden, and those that no view sees."""

import numpy as np
import pytest
import torch

from t2mv_core.cameras import DEFAULT_RIG
from t2mv_core.objects.carving import carve_hull
from t2mv_core.objects.colours import colour_vertices, fill_unseen, sample_views, to_linear
from t2mv_core.objects.projection import project
from t2mv_core.objects.surface import extract_surface
from t2mv_core.objects.viewing import Views

SIDES = DEFAULT_RIG.subset([0, 2, 3, 4])  # front, right, back, left
PAINT = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.8, 0.2], [0.1, 0.2, 0.9], [0.9, 0.8, 0.1]])
OUTWARDS = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 1, 0], [-1, 0, 0]])
HALF = torch.tensor([0.25, 0.3, 0.2])


@pytest.fixture(scope="module")
def painted_box(solids):
    """A box with one colour per side, seen from its four sides before grey."""
    masks = torch.stack([solids.box(HALF.tolist(), azimuth) for azimuth in SIDES.azimuths_deg])
    images = masks[:, None] * PAINT[:, :, None, None] + (1 - masks[:, None]) * 0.5
    return Views(images, masks, SIDES)


@pytest.fixture(scope="module")
def hull(painted_box):
    return carve_hull(painted_box.masks, SIDES, 48)


def test_every_side_has_its_colour(painted_box, hull):
    surface = extract_surface(hull)
    colours = colour_vertices(surface, hull, painted_box)
    assert colours.shape == surface.vertices.shape
    upright = surface.vertices[:, 2].abs() < 0.15
    for outwards, paint in zip(OUTWARDS, PAINT, strict=True):
        # Two voxels off the edges, where sides meet.
        on_side = upright & ((surface.vertices / HALF) @ outwards > 0.9)
        inner = on_side & ((surface.vertices / HALF).abs() > 0.85).sum(dim=1).eq(1)
        assert inner.sum() > 100
        assert (colours[inner] - paint).abs().max() < 0.02


def test_the_top_that_no_view_sees_takes_the_colours_beside_it(painted_box, hull):
    surface = extract_surface(hull)
    colours = colour_vertices(surface, hull, painted_box)
    top = (surface.vertices[:, 2] > 0.19) & (surface.vertices[:, :2] / HALF[:2]).abs().amax(dim=1).lt(0.9)
    assert top.sum() > 100
    distances = (colours[top][:, None] - PAINT).abs().amax(dim=-1)
    assert distances.amin(dim=1).median() < 0.1
    assert distances.argmin(dim=1).unique().tolist() == [0, 1, 2, 3]


def test_no_grey_comes_in_from_the_rim(painted_box, hull):
    # The front's silhouette ends at x = 0.25, in the middle of a pixel that is half grey.
    point, normal = torch.tensor([[0.249, -0.3, 0.0]]), torch.tensor([[0.0, -1.0, 0.0]])
    projection = project(hull, SIDES, 48)
    colours, weights = sample_views(point, normal, painted_box, projection, hull.voxel_size)
    assert weights[0, 0] > 0.3
    assert (colours[0, 0] - PAINT[0]).abs().max() < 0.02


def test_weights_follow_the_angle_and_vanish_where_a_point_is_hidden(painted_box, hull):
    projection = project(hull, SIDES, 48)
    slanted = torch.tensor([[0.8, -0.6, 0.0]])  # 0.6 towards the front, 0.8 towards the right
    corner = torch.tensor([[0.23, -0.28, 0.0]])
    _, weights = sample_views(corner, slanted, painted_box, projection, hull.voxel_size)
    assert weights[:, 0].tolist() == pytest.approx([0.6**4, 0.8**4, 0, 0], abs=1e-4)
    inside = torch.tensor([[0.0, 0.0, 0.0]])
    assert sample_views(inside, slanted, painted_box, projection, hull.voxel_size)[1].max() == 0


def test_unseen_points_are_the_inverse_distance_mean_of_their_four_nearest():
    rng = np.random.default_rng(0)
    points, colours = (torch.from_numpy(rng.random((40, 3), dtype=np.float32)) for _ in range(2))
    seen = torch.from_numpy(rng.random(40) < 0.6)
    found = fill_unseen(points, colours, seen)
    assert torch.equal(found[seen], colours[seen])
    for i in torch.nonzero(~seen)[:, 0].tolist():
        gaps = (points[seen] - points[i]).norm(dim=1)
        nearest = gaps.argsort()[:4]
        weights = 1 / gaps[nearest]
        expected = (colours[seen][nearest] * weights[:, None]).sum(dim=0) / weights.sum()
        torch.testing.assert_close(found[i], expected, atol=1e-4, rtol=0)


def test_one_seen_point_colours_all_and_none_is_refused():
    points, colours = torch.rand(5, 3), torch.rand(5, 3)
    seen = torch.tensor([True, False, False, False, False])
    torch.testing.assert_close(fill_unseen(points, colours, seen), colours[:1].expand(5, 3))
    with pytest.raises(ValueError, match="None of the 5 points"):
        fill_unseen(points, colours, ~seen & seen)


def test_linear_colours_by_hand():
    """0.5: ((0.5 + 0.055) / 1.055)^2.4 = 0.21404; below 0.04045: a straight line."""
    found = to_linear(torch.tensor([0.0, 0.02584, 0.5, 1.0]))
    torch.testing.assert_close(found, torch.tensor([0.0, 0.002, 0.21404, 1.0]), atol=1e-5, rtol=0)
