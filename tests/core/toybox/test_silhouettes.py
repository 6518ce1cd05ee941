"""Silhouette coherence: solids seen truly score 1, contradictions cost what geometry says they cost."""

import math

import numpy as np
import pytest
import torch

from t2mv_core.toybox.silhouettes import silhouette_coherence, silhouettes, view_consistency
from training.toybox.data.renderer import render_views
from training.toybox.data.scenes import sample_scene


@pytest.fixture(scope="module")
def true_masks(rendered):
    return torch.from_numpy(rendered.silhouettes)


def to_images(rendered):
    return torch.from_numpy(rendered.images).movedim(-1, 2).float() / 255


def centred(half_px, width=64, height=2):
    """A silhouette of `half_px` columns on each side of the middle."""
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[:, width // 2 - half_px : width // 2 + half_px] = True
    return mask


def naive_coherence(views, azimuths_deg):
    """World points one by one, in the renderer's units: the picture is 1.1 wide."""
    num_views, height, width = views.shape
    covered = 0
    for v, row, column in zip(*np.nonzero(views), strict=True):
        a = math.radians(azimuths_deg[v])
        u = ((column + 0.5) / width - 0.5) * 1.1
        for step in range(2 * width):
            depth = ((step + 0.5) / (2 * width) - 0.5) * 1.1
            x = u * math.cos(a) - depth * math.sin(a)
            y = u * math.sin(a) + depth * math.cos(a)
            seen = []
            for w in range(num_views):
                b = math.radians(azimuths_deg[w])
                place = math.floor(((x * math.cos(b) + y * math.sin(b)) / 1.1 + 0.5) * width)
                seen.append(w == v or (0 <= place < width and views[w, row, place]))
            if all(seen):
                covered += 1
                break
    return covered / views.sum()


@pytest.mark.parametrize("azimuths", [(0, 45, 100, 180), (0, 90), (10, 130, 250, 300)])
@pytest.mark.parametrize("shape", [(3, 6), (2, 7)])
def test_the_vectorised_hull_equals_three_plain_loops(azimuths, shape):
    rng = np.random.default_rng(0)
    views = rng.random((9, len(azimuths), *shape)) < 0.4  # nine sets: more than one chunk
    found = silhouette_coherence(torch.from_numpy(views), azimuths)
    assert found.tolist() == pytest.approx([naive_coherence(each, azimuths) for each in views], abs=1e-6)
    assert 0.05 < found.std()  # the sets differ, so this compares something


def test_rendered_scenes_are_coherent(rendered, true_masks):
    assert silhouette_coherence(true_masks, rendered.azimuths_deg).mean() >= 0.99
    assert view_consistency(to_images(rendered), rendered.azimuths_deg).min() >= 0.97


def test_silhouettes_agree_with_the_renderer_and_ignore_the_vaes_noise(rendered, true_masks):
    images = to_images(rendered)
    noise = 0.02 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    for pictures in (images, images + noise):
        found = silhouettes(pictures)
        union, common = (found | true_masks).sum(), (found & true_masks).sum()
        assert common / union > 0.97


def test_swapped_views_contradict_each_other(rendered, true_masks):
    order = [2, 1, 0, 3, 4, 5]  # front and right
    true = silhouette_coherence(true_masks, rendered.azimuths_deg)
    swapped = silhouette_coherence(true_masks[:, order], rendered.azimuths_deg)
    assert (swapped <= true).all()
    assert swapped.mean() < true.mean() - 0.1
    relabelled = [rendered.azimuths_deg[k] for k in order]  # swapping the azimuths too changes nothing
    assert silhouette_coherence(true_masks[:, order], relabelled) == pytest.approx(true, abs=1e-6)


def test_a_view_of_another_object_contradicts_the_rest(rendered, true_masks):
    mixed = true_masks.clone()
    mixed[:, 2] = true_masks.roll(1, dims=0)[:, 2]
    true = silhouette_coherence(true_masks, rendered.azimuths_deg)
    assert (silhouette_coherence(mixed, rendered.azimuths_deg) < true).all()


def test_a_view_from_a_wrong_azimuth_contradicts_the_rest():
    scene, azimuths = sample_scene(0, "table"), (0.0, 45.0, 90.0, 180.0)
    true = torch.from_numpy(render_views(scene, azimuths)[1])[None]
    turned = torch.from_numpy(render_views(scene, (0.0, 45.0, 135.0, 180.0))[1])[None]
    assert silhouette_coherence(turned, azimuths) < silhouette_coherence(true, azimuths) - 0.05


def test_a_disc_is_coherent_from_everywhere():
    disc = centred(20).expand(1, 7, -1, -1)
    assert silhouette_coherence(disc, [0, 13, 45, 90, 180, 200, 315]) == 1


def test_cost_of_a_silhouette_that_is_too_wide():
    # Front and side show a square of half-width 8 px. At 45 degrees its corner is at 8 √2 = 11.3 px, which
    # covers the columns with centres 0.5 ... 10.5: 22 of the 32 shown. (16 + 16 + 22) / (16 + 16 + 32).
    views = torch.stack([centred(8), centred(8), centred(16)])[None]
    assert silhouette_coherence(views, (0, 90, 45)).item() == pytest.approx(54 / 64, abs=1e-6)


def test_opposite_views_must_mirror_each_other():
    left = torch.zeros(1, 1, 4, 8, dtype=torch.bool)
    left[..., :4] = True
    assert silhouette_coherence(torch.cat([left, left.flip(-1)], dim=1), (0, 180)) == 1
    assert silhouette_coherence(torch.cat([left, left], dim=1), (0, 180)) == 0


def test_the_sense_of_rotation_cannot_be_seen(true_masks, rendered):
    reversed_deg = [-azimuth for azimuth in rendered.azimuths_deg]
    mixed = true_masks.roll(1, dims=1)
    there, back = (silhouette_coherence(mixed, a) for a in (rendered.azimuths_deg, reversed_deg))
    assert there.tolist() == pytest.approx(back.tolist(), abs=1e-6)


def test_empty_views_give_zero_and_do_not_touch_other_sets(true_masks, rendered):
    masks = true_masks[:3].clone()
    masks[0, 4] = False
    masks[1] = False
    found = silhouette_coherence(masks, rendered.azimuths_deg)
    assert found[:2].tolist() == [0, 0]
    assert found[2] == silhouette_coherence(true_masks[2:3], rendered.azimuths_deg)
    assert silhouette_coherence(masks[:0], rendered.azimuths_deg).shape == (0,)


@pytest.mark.parametrize(
    ("masks", "azimuths", "message"),
    [
        (torch.ones(2, 3, 8, 8, dtype=torch.bool), (0, 90), "3 views for 2 azimuths"),
        (torch.ones(2, 1, 8, 8, dtype=torch.bool), (0,), "at least two views"),
        (torch.ones(3, 8, 8, dtype=torch.bool), (0, 90, 180), r"shape \[3, 8, 8\]"),
        (torch.ones(2, 2, 8, 8), (0, 90), "type torch.float32; pass bool"),
    ],
)
def test_bad_masks_are_refused(masks, azimuths, message):
    with pytest.raises(ValueError, match=message):
        silhouette_coherence(masks, azimuths)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 8, 8, 3), r"shape \[2, 8, 8, 3\]"),
        (torch.zeros(1, 2, 4, 8, 8), r"\[B, V, 3, H, W\]"),
        (torch.zeros(1, 2, 3, 8, 8, dtype=torch.uint8), "divide uint8 by 255"),
    ],
)
def test_bad_pictures_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        view_consistency(images, (0, 90))
