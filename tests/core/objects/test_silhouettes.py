"""Masks against pictures whose coverage is known."""

import math

import pytest
import torch

from t2mv_core.objects.silhouettes import border_colour, object_masks


def painted(mask, colour, background):
    colour, background = (torch.tensor(c)[:, None, None] for c in (colour, background))
    return mask * colour + (1 - mask) * background


def test_a_painted_disc_is_found_with_its_soft_rim(solids):
    true = solids.disc(0.4, at=(0.05, -0.02))
    found = object_masks(painted(true, (0.9, 0.2, 0.1), (0.3, 0.6, 0.5)))
    assert (found - true).abs().max() < 0.25
    assert found.sum().item() == pytest.approx(math.pi * (0.4 / 0.55 * 32) ** 2, rel=0.01)


def test_rendered_objects_are_found(rendered, scene_views):
    true = torch.from_numpy(rendered.silhouettes)
    found = object_masks(scene_views)
    assert found.shape == true.shape
    inside = found > 0.5
    assert ((inside & true).sum() / (inside | true).sum()) > 0.95
    assert found.sum().item() == pytest.approx(true.sum().item(), rel=0.05)


def test_noise_of_the_background_is_no_object(solids):
    true = solids.disc(0.3)
    noise = 0.02 * torch.randn((3, 64, 64), generator=torch.Generator().manual_seed(0))
    found = object_masks((painted(true, (0.9, 0.2, 0.1), (0.5, 0.5, 0.5)) + noise).clamp(0, 1))
    assert found[solids.disc(0.36) == 0].max() == 0
    assert found[solids.disc(0.26) == 1].min() == 1


def test_every_picture_has_a_background_of_its_own(solids):
    mask = solids.disc(0.3)
    pictures = torch.stack([painted(mask, (0.9, 0.2, 0.1), (g, g, g)) for g in (0.0, 0.5, 1.0)])
    assert border_colour(pictures).tolist() == [[0, 0, 0], [0.5, 0.5, 0.5], [1, 1, 1]]
    assert ((object_masks(pictures) > 0.5).sum(dim=(1, 2)) - (mask > 0.5).sum()).abs().max() < 25


def test_an_object_at_the_border_does_not_become_background(solids):
    mask = solids.disc(0.4, at=(0.3, 0.0))  # the right border cuts it
    assert border_colour(painted(mask, (0.9, 0.2, 0.1), (0.5, 0.5, 0.5))).tolist() == [0.5, 0.5, 0.5]


def test_a_hole_stays_a_hole():
    picture = torch.full((3, 16, 16), 0.5)
    picture[:, 3:13, 3:13] = 0.9
    picture[:, 6:10, 6:10] = 0.5
    found = object_masks(picture)
    assert found[7:9, 7:9].max() == 0
    assert found.sum() == 10 * 10 - 4 * 4


def test_given_alpha_wins():
    picture = torch.rand((2, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    alpha = torch.full((2, 8, 8), 0.3)
    assert torch.equal(object_masks(picture, alpha=alpha), alpha)
    plain = torch.full((1, 3, 8, 8), 0.8)
    assert object_masks(plain).sum() == 0


@pytest.mark.parametrize(
    ("images", "alpha", "message"),
    [
        (torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 9), r"alpha has shape \[2, 8, 9\]"),
        (torch.zeros(2, 8, 8, 3), None, r"shape \[2, 8, 8, 3\]"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), None, "divide uint8 by 255"),
    ],
)
def test_bad_pictures_are_refused(images, alpha, message):
    with pytest.raises(ValueError, match=message):
        object_masks(images, alpha)
