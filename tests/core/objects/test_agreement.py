"""Views that contradict the others are named; true ones are not."""

import pytest
import torch

from t2mv_core.cameras import DEFAULT_RIG, CameraRig
from t2mv_core.objects.agreement import (
    MIN_IOU,
    find_disagreement,
    outline_sentence,
    repeat_sentence,
    view_agreement,
)
from t2mv_core.objects.projection import Projection
from t2mv_core.objects.silhouettes import object_masks

AZIMUTHS = DEFAULT_RIG.azimuths_deg


@pytest.fixture
def tall_box(solids):
    """Silhouettes of one box."""
    return torch.stack([solids.box((0.2, 0.12, 0.3), azimuth, at=(0.05, 0.1, 0.0)) for azimuth in AZIMUTHS])


def test_agreement_is_intersection_over_union():
    masks = torch.zeros(2, 8, 8)
    masks[:, :4] = 1  # 32 pixels
    coverage = torch.zeros(2, 8, 8)
    coverage[0, :2] = 1  # 16 of them
    coverage[1, :4, :4] = 0.5  # half of 16: 8 of 32
    found = view_agreement(Projection(coverage, torch.zeros(2, 8, 8)), masks)
    assert found.tolist() == pytest.approx([0.5, 0.25])


def test_views_of_one_solid_agree(tall_box):
    found = find_disagreement(tall_box, DEFAULT_RIG)
    assert min(found.iou) > 0.93
    assert found.disagreeing == ()
    assert found.sentences == ()


def test_rendered_scenes_agree(scene_views):
    worst = [min(find_disagreement(object_masks(views), DEFAULT_RIG).iou) for views in scene_views[:6]]
    assert min(worst) > MIN_IOU


@pytest.mark.parametrize("view", [1, 2])
@pytest.mark.parametrize("half", [(0.05, 0.05, 0.1), (0.4, 0.4, 0.5)], ids=["too small", "too large"])
def test_a_view_of_another_object_is_named(tall_box, solids, view, half):
    masks = tall_box.clone()
    masks[view] = solids.box(half, AZIMUTHS[view])
    found = find_disagreement(masks, DEFAULT_RIG)
    assert found.disagreeing == (view,)
    assert len(found.sentences) == 1
    name = ("2 (front-right 45°)", "3 (right 90°)")[view - 1]
    assert found.sentences[0].startswith(f"View {name} contradicts the others: all agree with one solid to")


def test_two_wrong_views_are_both_named(tall_box, solids):
    masks = tall_box.clone()
    masks[1], masks[5] = (solids.box((0.4, 0.4, 0.05), 0, at=(0, 0, z)) for z in (0.4, -0.45))
    found = find_disagreement(masks, DEFAULT_RIG)
    assert found.disagreeing == (1, 5)
    assert found.sentences[0].startswith("Views 2 (front-right 45°) and 6 (front-left 315°) contradict")


def test_empty_views_are_named_and_the_others_compared_without_them(tall_box):
    masks = tall_box.clone()
    masks[[0, 4]] = 0
    found = find_disagreement(masks, DEFAULT_RIG)
    assert found.disagreeing == (0, 4)
    assert found.iou[0] == found.iou[4] == 0
    assert min(found.iou[v] for v in (1, 2, 3, 5)) > 0.93
    assert found.sentences == (
        "Views 1 (front 0°) and 5 (left 270°) show no object, so no solid fits all views; leave out what is "
        "empty.",
    )
    nothing = find_disagreement(torch.zeros(6, 32, 32), DEFAULT_RIG)
    assert nothing.disagreeing == tuple(range(6))
    assert nothing.sentences == ("No view shows an object.",)


def test_two_views_alone_contradict_each_other(solids):
    rig = CameraRig((0.0, 180.0), (0.0, 0.0))
    left = solids.box((0.1, 0.1, 0.3), 0, at=(-0.3, 0.0, 0.0))
    assert find_disagreement(torch.stack([left, left.flip(-1)]), rig).sentences == ()
    found = find_disagreement(torch.stack([left, left]), rig)
    assert found.disagreeing == (0, 1)
    assert found.sentences == (
        "Views 1 (front 0°) and 2 (back 180°) contradict each other: they agree with one solid to 0 % only.",
    )


def test_the_same_picture_twice_is_named(tall_box):
    images = tall_box[:, None].expand(-1, 3, -1, -1) + 0.01 * torch.arange(6)[:, None, None, None]
    assert repeat_sentence(images, DEFAULT_RIG) == ""
    images[4] = images[1]
    expected = "Views 2 (front-right 45°) and 5 (left 270°) are the same picture; check what is connected."
    assert repeat_sentence(images, DEFAULT_RIG) == expected


def test_views_of_another_outline_than_the_mesh_are_named():
    rig = DEFAULT_RIG.subset([0, 2])
    assert outline_sentence((0.76, 0.9), rig) == ""
    assert outline_sentence((0.9, 0.5), rig).startswith(
        "View 2 (right 90°) shows another outline than the mesh"
    )
    assert outline_sentence((0.6, 0.5), rig).startswith(
        "Views 1 (front 0°) and 2 (right 90°) show other outl"
    )


def test_one_view_contradicts_nobody(solids):
    rig = CameraRig((30.0,), (20.0,))
    assert find_disagreement(solids.disc(0.3)[None], rig).sentences == ()
