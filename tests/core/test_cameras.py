import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from t2mv_core.cameras import DEFAULT_RIG, CameraRig, label_view

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


@given(azimuth=angles, elevation=st.floats(-90.0, 90.0), distance=st.floats(0.1, 10.0))
@settings(max_examples=50, deadline=None)
def test_matrices_are_rotations_at_the_cameras_positions_and_look_at_the_origin(azimuth, elevation, distance):
    rig = CameraRig((azimuth,), (elevation,), distance)
    matrix = rig.camera_to_world()[0]
    rotation = matrix[:3, :3]
    torch.testing.assert_close(rotation.T @ rotation, torch.eye(3, dtype=torch.float64), atol=1e-9, rtol=0)
    assert torch.linalg.det(rotation).item() == pytest.approx(1.0)
    assert matrix[3].tolist() == [0, 0, 0, 1]
    torch.testing.assert_close(matrix[:3, 3].float(), rig.positions()[0], atol=1e-4, rtol=1e-5)
    # The origin lies straight ahead, on -z, `distance` away; the picture's right is level, its top not down.
    ahead = torch.linalg.inv(matrix) @ torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(
        ahead, torch.tensor([0.0, 0.0, -distance, 1.0], dtype=torch.float64), atol=1e-8, rtol=0
    )
    assert abs(rotation[2, 0].item()) < 1e-12
    assert rotation[2, 1].item() > -1e-12


def test_a_known_point_is_seen_where_it_must_be():
    # A point on the object's front, its right-hand side for the viewer, a little up: (0.2, -0.5, 0.1).
    point = torch.tensor([0.2, -0.5, 0.1, 1.0], dtype=torch.float64)
    rig = CameraRig((0, 90, 180, 270), (0, 0, 0, 0))
    seen = torch.linalg.inv(rig.camera_to_world()) @ point
    # From the front: 0.2 right. From +x the front edge (-y) is at the left: -0.5. From behind: -0.2; and 0.5.
    assert seen[:, 0].tolist() == pytest.approx([0.2, -0.5, -0.2, 0.5])
    assert seen[:, 1].tolist() == pytest.approx([0.1] * 4)
    # Depth: 1.8 less what the point comes towards the camera.
    assert (-seen[:, 2]).tolist() == pytest.approx([1.3, 1.6, 2.3, 2.0])
    above = torch.linalg.inv(CameraRig((0,), (90,)).camera_to_world()[0]) @ point
    assert above.tolist() == pytest.approx([0.2, -0.5, 0.1 - 1.8, 1.0])  # +y is up in the picture


@pytest.mark.parametrize(("azimuth", "elevation"), [(0.0, 0.0), (30.0, 20.0), (200.0, -75.0), (-45.0, 90.0)])
def test_matrices_agree_with_rotations_about_the_axes(azimuth, elevation):
    # Independently: a camera at the origin looking along -z with y up (OpenGL) is turned upright to look
    # along +y (about x by 90), lifted about x by -elevation, turned about z by the azimuth, moved back.
    def turn(axis, degrees):
        c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        rows = {"x": [[1, 0, 0], [0, c, -s], [0, s, c]], "z": [[c, -s, 0], [s, c, 0], [0, 0, 1]]}[axis]
        return torch.tensor(rows, dtype=torch.float64)

    rotation = turn("z", azimuth) @ turn("x", -elevation) @ turn("x", 90)
    matrix = CameraRig((azimuth,), (elevation,)).camera_to_world()[0]
    torch.testing.assert_close(matrix[:3, :3], rotation, atol=1e-12, rtol=0)
    torch.testing.assert_close(
        matrix[:3, 3], rotation @ torch.tensor([0, 0, 1.8]).double(), atol=1e-7, rtol=0
    )


@pytest.mark.parametrize(
    ("family", "view", "wrong"),
    # The mug's handle is at the viewer's right, so it tells the front from the back; the chair's backrest
    # tells azimuth 90 from -90.
    [("mug", 0, lambda azimuth: azimuth + 180), ("chair", 2, lambda azimuth: -azimuth)],
)
def test_matrices_see_what_the_toybox_renderer_draws(family, view, wrong):
    import numpy as np

    from training.toybox.data.renderer import render_views
    from training.toybox.data.scenes import build_parts, sample_scene
    from training.toybox.data.shapes import distance

    px, azimuths, rng = 64, (0.0, 45.0, 90.0, 135.0, 270.0), np.random.default_rng(0)
    scene = sample_scene(0, family)
    silhouettes = torch.from_numpy(render_views(scene, azimuths, px)[1])
    points = []  # inside the object, by its distance functions
    for part in build_parts(scene):
        local = rng.uniform(-0.5, 0.5, (20_000, 3)).astype(np.float32)
        inside = local[distance(part.shape, part.size, *local.T) <= 0]
        points.append(torch.from_numpy(np.asarray(part.at) + inside @ np.asarray(part.axes)))
    world = torch.cat(points)

    def share_on_silhouette(rig: CameraRig) -> list[float]:
        """Share of the points that each view's matrix puts onto the rendered silhouette."""
        homogeneous = torch.cat([world, torch.ones(len(world), 1)], dim=1).double()
        seen = homogeneous @ torch.linalg.inv(rig.camera_to_world()).mT
        columns = ((1 + seen[..., 0] / rig.frustum) / 2 * px).long()
        rows = ((1 - seen[..., 1] / rig.frustum) / 2 * px).long()
        return [silhouettes[i, rows[i], columns[i]].double().mean().item() for i in range(len(azimuths))]

    right = share_on_silhouette(CameraRig(azimuths, (0.0,) * 5))
    assert min(right) > 0.97  # all but the pixels at the edge
    assert share_on_silhouette(CameraRig(tuple(map(wrong, azimuths)), (0.0,) * 5))[view] < 0.9


def test_views_are_found_by_azimuth_the_levellest_first():
    rig = CameraRig((0, 450, 90, 180, -270), (0, 5, -10, 0, 20))
    assert rig.find_views(90) == [1, 2, 4]
    assert rig.find_views(360) == [0]
    assert rig.find_views(270) == []


def test_angular_order_goes_once_around():
    rig = CameraRig((315, -90, 0, 359.9999, 90, 90, 180), (0, 0, 5, 0, 10, -10, 0))
    # 359.9999 is the front within a thousandth of a degree; equal azimuths go by elevation.
    assert rig.angular_order() == [3, 2, 5, 4, 6, 1, 0]


@pytest.mark.parametrize(
    ("angles", "label"),
    [
        ((0, 0), "front 0°"),
        ((-0.0, 0), "front 0°"),
        ((360, 0), "front 360°"),
        ((-45, 0), "front-left -45°"),
        ((90, 20), "right 90°/+20°"),
        ((180, -7.5), "back 180°/-7.5°"),
        ((30, 0), "30°"),
        ((12.5, 90), "12.5°/+90°"),
    ],
)
def test_labels_name_the_side_and_the_elevation_where_there_is_one(angles, label):
    assert label_view(*angles) == label
    assert CameraRig((angles[0],), (angles[1],)).labels() == [label]
