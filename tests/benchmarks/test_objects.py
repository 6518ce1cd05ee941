"""Objects of views against the truth."""

import math

import numpy as np
import pytest
import torch

from benchmarks.objects import (
    RESOLUTION,
    SCENE_SEED,
    measure_scene,
    measure_set,
    psnr,
    true_solid,
    views_of,
)
from t2mv_core.cameras import DEFAULT_RIG
from training.toybox.data.dataset import dataset_scene
from training.toybox.data.renderer import render_views


@pytest.fixture(scope="module")
def scene():
    return dataset_scene(SCENE_SEED, 1, allow_held_out=True)


def test_the_true_solids_outline_is_the_renderers(scene):
    """The solid seen along x and along y has the silhouettes that the renderer draws from right and front."""
    solid = true_solid(scene)
    _, (front, right) = render_views(scene, (0.0, 90.0), RESOLUTION)
    for axis, silhouette in ((1, front), (0, right)):
        outline = solid.any(dim=axis).T.flip(0).numpy()  # picture rows are -z
        # They differ at rim pixels alone: one samples centres, the other counts half-covered pixels.
        assert np.sum(outline & silhouette) / np.sum(outline | silhouette) > 0.95
        assert np.mean(outline[1:-1] != silhouette[1:-1]) < 0.02


def test_a_true_scene_becomes_nearly_the_object_it_is(scene):
    figures, views = measure_scene(scene)
    assert figures["iou_of_allowed"] > 0.85
    assert figures["psnr_db"] > 25
    assert figures["own_mesh_psnr_between_db"] > 28
    assert views.shape == (12, 3, 64, 64)


def test_views_without_an_object_have_no_figures():
    figures = measure_set(torch.full((6, 3, 64, 64), 0.5))
    assert figures["makes_object"] == 0
    assert math.isnan(figures["psnr_db"])


def test_psnr_of_a_known_error(scene):
    images = views_of(scene, DEFAULT_RIG, 64)
    assert psnr(images + 0.1, images) == pytest.approx(20.0, abs=1e-3)
