"""Places in pictures, written out by hand from the cameras' conventions."""

import pytest
import torch

from t2mv_core.cameras import CameraRig
from t2mv_core.objects.viewing import Views, picture_places, resize_masks, sample_pictures

RIG = CameraRig((0.0, 90.0, 180.0, 0.0), (0.0, 0.0, 0.0, 90.0))


def test_where_cameras_see_a_point():
    # Right is +x, +y, -x from 0, 90, 180 degrees; up is +z. From above, at azimuth 0: right +x, up +y.
    # Half a picture is 0.55, and places count downwards.
    places = picture_places(torch.tensor([[0.11, 0.22, 0.33]]), RIG)[:, 0]
    expected = torch.tensor([[0.2, -0.6], [0.4, -0.6], [-0.2, -0.6], [0.2, -0.4]])
    torch.testing.assert_close(places, expected, atol=1e-6, rtol=0)


def test_pixels_are_found_at_their_centres_and_nothing_beyond_the_picture():
    pictures = torch.rand((1, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    # Row 0, column 3: 3.5/4 from the left, 0.5/4 from the top; and a place outside.
    found = sample_pictures(pictures, torch.tensor([[[0.75, -0.75], [1.5, 0.0]]]))
    torch.testing.assert_close(found[0, :, 0], pictures[0, :, 0, 3])
    assert found[0, :, 1].tolist() == [0, 0, 0]


def test_masks_are_averaged_when_reduced_and_never_enlarged():
    masks = torch.zeros(1, 64, 64)
    masks[:, :, ::2] = 1
    torch.testing.assert_close(resize_masks(masks, 16)[:, 1:-1, 1:-1], torch.full((1, 14, 14), 0.5))
    assert resize_masks(masks, 128) is masks


@pytest.mark.parametrize(
    ("images", "masks", "message"),
    [
        (torch.zeros(4, 3, 8, 8), torch.zeros(4, 8, 8, dtype=torch.bool), "torch.bool"),
        (torch.zeros(4, 3, 8, 9), torch.zeros(4, 8, 9), "pad or crop"),
        (torch.zeros(3, 3, 8, 8), torch.zeros(3, 8, 8), "3 masks for 4 cameras"),
        (torch.zeros(4, 3, 8, 8), torch.zeros(4, 4, 4), r"images have shape \[4, 3, 8, 8\]"),
    ],
)
def test_pictures_that_do_not_belong_together_are_refused(images, masks, message):
    with pytest.raises(ValueError, match=message):
        Views(images, masks, RIG)
