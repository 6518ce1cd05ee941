"""True views win against sets that no object shows, and the score means what it says."""

import pytest
import torch

from t2mv_core.cameras import DEFAULT_RIG, CameraRig
from t2mv_core.objects.consistency import OTHER_COLOUR, colour_agreement, score_consistency
from t2mv_core.objects.silhouettes import object_masks
from training.toybox.data.renderer import render_views

COUNT = 4


@pytest.fixture(scope="module")
def true_scores(scene_views):
    return score_consistency(scene_views[:COUNT], DEFAULT_RIG)


def unrelated(views):
    return torch.stack([views.roll(-v, dims=0)[:COUNT, v] for v in range(views.shape[1])], dim=1)


ATTACKS = {
    "unrelated": unrelated,
    "repeated": lambda views: views[:COUNT, :1].expand(-1, 6, -1, -1, -1),
    "mirrored": lambda views: views[:COUNT].flip(-1),
    "shuffled": lambda views: views[:COUNT, [2, 4, 0, 1, 5, 3]],
    "noise": lambda views: torch.rand(views[:COUNT].shape, generator=torch.Generator().manual_seed(0)),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_true_views_win(scene_views, true_scores, attack):
    attacked = score_consistency(ATTACKS[attack](scene_views), DEFAULT_RIG)
    assert (attacked.geometry < true_scores.geometry).all()
    assert attacked.geometry.mean() < true_scores.geometry.mean() - 0.1


def test_silhouettes_alone_do_not_see_that_all_views_are_mirrored(scene_views, true_scores):
    mirrored = score_consistency(scene_views[:COUNT].flip(-1), DEFAULT_RIG)
    torch.testing.assert_close(mirrored.silhouettes, true_scores.silhouettes, atol=0.01, rtol=0)
    assert (mirrored.colours < true_scores.colours - 0.1).all()


def test_true_views_score_high_and_the_parts_multiply(true_scores):
    assert true_scores.silhouettes.min() > 0.9
    assert true_scores.geometry.min() > 0.45
    torch.testing.assert_close(true_scores.geometry, true_scores.silhouettes * true_scores.colours)
    assert true_scores.geometry.max() <= 1


def test_a_set_does_not_depend_on_the_others(scene_views, true_scores):
    alone = score_consistency(scene_views[1:2], DEFAULT_RIG)
    assert alone.geometry.tolist() == true_scores.geometry[1:2].tolist()
    assert score_consistency(scene_views[:0], DEFAULT_RIG).geometry.shape == (0,)


def test_pictures_smaller_than_the_hulls_grid_are_scored(rendered, true_scores):
    images, _ = render_views(rendered.scenes[0], image_px=32)
    small = score_consistency(torch.from_numpy(images).movedim(-1, 1)[None].float() / 255, DEFAULT_RIG)
    assert small.geometry[0] == pytest.approx(float(true_scores.geometry[0]), abs=0.15)


def test_larger_pictures_score_alike(rendered, true_scores):
    images, _ = render_views(rendered.scenes[0], image_px=192)
    large = score_consistency(torch.from_numpy(images).movedim(-1, 1)[None].float() / 255, DEFAULT_RIG)
    assert large.geometry.item() == pytest.approx(true_scores.geometry[0].item(), abs=0.05)


def test_alpha_takes_the_place_of_the_background(scene_views, true_scores):
    masks = object_masks(scene_views[:1])
    black = scene_views[:1] * (masks > 0.5)[:, :, None]
    found = score_consistency(black, DEFAULT_RIG, alpha=masks)
    assert found.silhouettes.item() == pytest.approx(true_scores.silhouettes[0].item(), abs=1e-6)


def test_nothing_drawn_scores_nothing(scene_views):
    sets = scene_views[:3].clone()
    sets[0] = 0.5
    sets[1, 3] = 0.5
    assert score_consistency(sets, DEFAULT_RIG).geometry[:2].tolist() == [0, 0]


def test_agreement_of_colours_by_hand():
    # Point 1: views 0 and 1 with weights 1 and 0.25, roots 1 and 0.5, differ by a third of OTHER_COLOUR.
    # Point 2: all three views with weight 1; view 2 differs by more than OTHER_COLOUR, the others by nothing.
    colours = torch.zeros(3, 2, 3)
    colours[1, 0, 1] = OTHER_COLOUR / 3
    colours[2, 1, 2] = 0.9
    weights = torch.tensor([[1.0, 1.0], [0.25, 1.0], [0.0, 1.0]])
    lost, total = 0.5 / 3 + 2 * 1.0, 0.5 + 3 * 1.0
    assert colour_agreement(colours, weights) == pytest.approx(1 - lost / total, abs=1e-6)
    assert colour_agreement(colours[:, :1], torch.tensor([[1.0], [0.0], [0.0]])) == 0


def test_requests_that_cannot_be_scored_are_refused(scene_views):
    with pytest.raises(ValueError, match=r"for 6 cameras"):
        score_consistency(scene_views[:1, :4], DEFAULT_RIG)
    opposite = CameraRig((0.0, 180.0), (0.0, 0.0))
    with pytest.raises(ValueError, match=r"front 0°, back 180° see no surface in common"):
        score_consistency(scene_views[:1, [0, 3]], opposite)
