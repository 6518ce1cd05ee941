"""Pictures of a coloured surface, against a sphere known by its formula."""

import pytest
import torch

from t2mv_core.cameras import CameraRig
from t2mv_core.objects.colours import interpolate_colours
from t2mv_core.objects.rendering import GREY, render_surface
from t2mv_core.objects.surface import extract_surface
from t2mv_core.objects.volume import Volume, voxel_centres

RADIUS, PX = 0.35, 32
RIG = CameraRig((0.0, 90.0, 180.0), (0.0, 0.0, 0.0))


@pytest.fixture(scope="module")
def ball():
    """A ball, red where x > 0 and blue where x < 0, as its volume, surface and colours."""
    centres = voxel_centres(48, RIG.frustum)
    radius = torch.stack(torch.meshgrid(centres, centres, centres, indexing="ij")).norm(dim=0)
    volume = Volume((0.5 + (RADIUS - radius) / (2 * RIG.frustum / 48)).clamp(0, 1), RIG.frustum)
    surface = extract_surface(volume)
    is_red = (surface.vertices[:, :1] > 0).float()
    return volume, surface, torch.cat([is_red, torch.zeros_like(is_red), 1 - is_red], dim=1)


def test_each_camera_sees_its_side_of_a_two_coloured_ball(ball):
    """From the front red lies right, from behind left; from the right (azimuth 90, at +x) all is red."""
    front, right, back = render_surface(*ball, RIG, PX)
    middle = PX // 2
    red, blue = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 1.0])
    torch.testing.assert_close(front[:, middle, middle + 4], red)
    torch.testing.assert_close(front[:, middle, middle - 5], blue)
    torch.testing.assert_close(back[:, middle, middle + 4], blue)
    torch.testing.assert_close(right[:, middle, middle - 5], red)
    assert float(right[2, middle - 6 : middle + 6, middle - 6 : middle + 6].max()) < 1e-6


def test_the_picture_of_a_ball_is_a_disc_on_grey(ball):
    drawn = render_surface(*ball, RIG, PX)
    places = voxel_centres(PX, RIG.frustum)
    distance = torch.hypot(*torch.meshgrid(places, places, indexing="ij"))
    pixel = 2 * RIG.frustum / PX
    outside = (drawn - GREY).abs().amax(dim=1) < 1e-6
    assert bool(outside[:, distance > RADIUS + pixel].all())
    assert not bool(outside[:, distance < RADIUS - pixel].any())


def test_colours_between_points_are_theirs_and_at_a_point_its_own():
    points = torch.tensor([[0.0, 0, 0], [1.0, 0, 0]])
    colours = torch.tensor([[1.0, 0, 0], [0.0, 0, 1]])
    places = torch.tensor([[0.0, 0, 0], [0.5, 0, 0], [0.75, 0, 0]])
    found = interpolate_colours(points, colours, places)
    expected = torch.tensor([[1.0, 0, 0], [0.5, 0, 0.5], [0.25, 0, 0.75]])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
