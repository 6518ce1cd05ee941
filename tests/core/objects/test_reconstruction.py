"""Views to a coloured solid: its shape and colours, wrong views left out, lines of sight that say nothing."""

import pytest
import torch

from t2mv_core.cameras import DEFAULT_RIG, CameraRig
from t2mv_core.objects.reconstruction import reconstruct
from t2mv_core.objects.silhouettes import object_masks
from t2mv_core.objects.viewing import Views

RESOLUTION = 48


def rig(*azimuths):
    return CameraRig(azimuths, (0.0,) * len(azimuths))


def coloured_box(solids, half, cameras):
    """Views of an upright box whose faces towards x are red and towards y blue."""
    masks = torch.stack([solids.box(half, azimuth) for azimuth in cameras.azimuths_deg])
    colours = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    images = 0.5 + masks[:, None] * (colours[: len(masks), :, None, None] - 0.5)
    return Views(images, masks, cameras)


def test_a_box_comes_back_with_the_colours_of_its_faces(solids):
    half = (0.3, 0.2, 0.25)
    made = reconstruct(coloured_box(solids, half, rig(0, 90, 180, 270)), RESOLUTION, smoothing=0.0)
    voxel = made.volume.voxel_size
    size = made.surface.vertices.amax(dim=0)
    torch.testing.assert_close(size, torch.tensor(half), atol=voxel, rtol=0)
    torch.testing.assert_close(made.surface.vertices.amin(dim=0), -torch.tensor(half), atol=voxel, rtol=0)
    points, colours = made.surface.vertices, made.colours
    middle = points[:, 2].abs() < 0.15
    right = middle & (points[:, 0] > half[0] - voxel) & (points[:, 1].abs() < 0.1)
    front = middle & (points[:, 1] < -half[1] + voxel) & (points[:, 0].abs() < 0.2)
    assert (colours[right] - torch.tensor([1.0, 0.0, 0.0])).abs().max() < 0.1
    assert (colours[front] - torch.tensor([0.0, 0.0, 1.0])).abs().max() < 0.1
    assert made.agreement.disagreeing == ()


def test_a_view_of_something_else_is_left_out(scene_views):
    images = scene_views[0].clone()
    true = reconstruct(Views(images, object_masks(images), DEFAULT_RIG), RESOLUTION)
    assert true.agreement.disagreeing == ()
    images[3] = 0.5
    images[3, :, 4:12, 4:60] = 0.9
    made = reconstruct(Views(images, object_masks(images), DEFAULT_RIG), RESOLUTION)
    assert made.agreement.disagreeing == (3,)
    common = torch.minimum(made.volume.occupancy, true.volume.occupancy).sum()
    assert common / torch.maximum(made.volume.occupancy, true.volume.occupancy).sum() > 0.85


@pytest.mark.parametrize("azimuths", [(0,), (0, 0), (0, 180), (40, 50, 220)])
def test_views_along_one_line_say_nothing_of_the_depth(solids, azimuths):
    masks = solids.disc(0.3).expand(len(azimuths), -1, -1)
    views = Views(torch.rand(len(azimuths), 3, 64, 64), masks, rig(*map(float, azimuths)))
    with pytest.raises(ValueError, match="all look along one line"):
        reconstruct(views, RESOLUTION)


def test_empty_views_get_a_sentence():
    views = Views(torch.full((6, 3, 64, 64), 0.5), torch.zeros(6, 64, 64), DEFAULT_RIG)
    with pytest.raises(ValueError, match="No two views agree on an object. No view shows an object"):
        reconstruct(views, RESOLUTION)
