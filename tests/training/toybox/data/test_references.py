"""Pictures of scenes for the image adapter: framed, from many sides, under other light, reproducible."""

from __future__ import annotations

import numpy as np
import pytest

from t2mv_core.cameras import DEFAULT_RIG
from training.toybox.data.dataset import dataset_scene
from training.toybox.data.references import (
    PER_SCENE,
    draw_light,
    draw_reference,
    render_reference,
    render_references,
)
from training.toybox.data.renderer import LIGHT, render_views


@pytest.fixture(scope="module")
def scene():
    return dataset_scene(3, 1)


def test_an_object_fills_nine_tenths_of_its_frame(scene):
    picture = render_reference(scene, 30.0, LIGHT)
    assert picture.shape == (64, 64, 3)
    is_object = (np.abs(picture.astype(int) - 128) > 4).any(axis=-1)
    rows, columns = (np.flatnonzero(is_object.any(axis=axis)) for axis in (1, 0))
    longer = max(np.ptp(rows), np.ptp(columns)) + 1
    assert 56 <= longer <= 60
    middle = (rows[0] + rows[-1]) / 2, (columns[0] + columns[-1]) / 2
    assert middle == pytest.approx((31.5, 31.5), abs=1.5)


def test_light_comes_from_above_and_changes_colours_not_shape(scene):
    lights = [draw_light(np.random.default_rng(n)) for n in range(200)]
    assert all(np.linalg.norm(light) == pytest.approx(1) and light[2] > 0.25 for light in lights)
    one, other = (render_views(scene, [0.0], 64, light) for light in lights[:2])
    assert np.array_equal(one[1], other[1])
    assert np.abs(one[0].astype(int) - other[0].astype(int)).max() > 10


def test_half_of_the_pictures_are_from_the_rigs_sides(scene):
    azimuths = [draw_reference(scene, np.random.default_rng(n))[1] for n in range(40)]
    of_rig = sum(azimuth in DEFAULT_RIG.azimuths_deg for azimuth in azimuths)
    assert 10 <= of_rig <= 30
    assert len(set(azimuths)) > 15


def test_a_scenes_pictures_do_not_depend_on_its_neighbours(tmp_path):
    scenes = [dataset_scene(3, number) for number in range(3)]
    for name, chosen in (("all", scenes), ("two", scenes[:2])):
        render_references(chosen, tmp_path / name, seed=7)
    everything, part = np.load(tmp_path / "all"), np.load(tmp_path / "two")
    assert everything.shape == (3, PER_SCENE, 64, 64, 3)
    assert np.array_equal(everything[:2], part)
    assert not np.array_equal(everything[0, 0], everything[0, 1])
