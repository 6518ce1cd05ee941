import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from t2mv_core.cameras import DEFAULT_RIG, CameraRig

angles = st.floats(-720.0, 720.0, allow_nan=False)


def test_default_rig_is_the_published_one():
    assert DEFAULT_RIG.azimuths_deg == (0, 45, 90, 180, 270, 315)
    assert DEFAULT_RIG.elevations_deg == (0,) * 6
    assert (DEFAULT_RIG.num_views, DEFAULT_RIG.distance, DEFAULT_RIG.frustum) == (6, 1.8, 0.55)


def test_positions_follow_the_convention():
    # az' = az - 90: front -> -y, 90 -> +x, 180 -> +y, 270 -> -x; elevation 90 -> +z; 45 -> 1.8/sqrt(2).
    rig = CameraRig((0, 90, 180, 270, 45, 0), (0, 0, 0, 0, 0, 90))
    s = 1.8 / math.sqrt(2.0)
    expected = [[0, -1.8, 0], [1.8, 0, 0], [0, 1.8, 0], [-1.8, 0, 0], [s, -s, 0], [0, 0, 1.8]]
    torch.testing.assert_close(rig.positions(), torch.tensor(expected), atol=1e-6, rtol=0)


def test_front_camera_embedding():
    # At (0, -1.8, 0), looking along +y: direction (0, 1, 0), position (0, -1, 0); (x + 1)/2 of each.
    expected = torch.tensor([[0.5, 1.0, 0.5, 0.5, 0.0, 0.5]])
    torch.testing.assert_close(CameraRig((0,), (0,)).embedding(), expected, atol=1e-6, rtol=0)


@given(azimuth=angles, elevation=st.floats(-90.0, 90.0), distance=st.floats(0.1, 10.0))
@settings(max_examples=50, deadline=None)
def test_cameras_lie_on_the_sphere_and_look_at_the_origin(azimuth, elevation, distance):
    rig = CameraRig((azimuth,), (elevation,), distance)
    assert rig.positions().norm().item() == pytest.approx(distance, rel=1e-5)
    embedding = rig.embedding()
    assert embedding.shape == (1, 6)
    assert bool(((embedding >= 0) & (embedding <= 1)).all())
    # The viewing direction is minus the position, so the halves of the embedding add up to one.
    torch.testing.assert_close(embedding[:, :3] + embedding[:, 3:], torch.ones(1, 3), atol=1e-6, rtol=0)


def test_full_turn_is_the_same_camera():
    torch.testing.assert_close(
        CameraRig((10.0,), (0,)).positions(), CameraRig((370.0,), (0,)).positions(), atol=1e-6, rtol=0
    )


def test_embedding_does_not_depend_on_distance():
    near, far = CameraRig((30.0,), (10.0,), distance=1.0), CameraRig((30.0,), (10.0,), distance=5.0)
    torch.testing.assert_close(near.embedding(), far.embedding(), atol=1e-6, rtol=0)


def test_subset_keeps_order_and_scale():
    rig = CameraRig((0, 90, 180), (0, 10, 20), distance=2.0, frustum=0.7)
    assert rig.subset([2, 0]) == CameraRig((180, 0), (20, 0), 2.0, 0.7)


@pytest.mark.parametrize("indices", [[3], [-1], [0, 7]])
def test_subset_refuses_views_that_are_not_there(indices):
    with pytest.raises(ValueError, match="between 0 and 2"):
        CameraRig((0, 90, 180), (0, 0, 0)).subset(indices)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"azimuths_deg": (), "elevations_deg": ()}, "at least one view"),
        ({"azimuths_deg": (0, 90), "elevations_deg": (0,)}, "2 azimuths but 1 elevations"),
        ({"azimuths_deg": (math.nan,), "elevations_deg": (0,)}, "not a finite number"),
        ({"azimuths_deg": (0,), "elevations_deg": (math.inf,)}, "not a finite number"),
        ({"azimuths_deg": (0,), "elevations_deg": (91,)}, "between -90 and 90"),
        ({"distance": 0.0}, "greater than 0"),
        ({"frustum": -1.0}, "greater than 0"),
    ],
)
def test_impossible_rigs_are_refused_in_words(arguments, words):
    with pytest.raises(ValueError, match=words):
        CameraRig(**arguments)
