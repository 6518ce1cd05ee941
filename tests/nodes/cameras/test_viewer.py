"""Views as cameras of ComfyUI's 3D nodes: where they stand, how they look, how much they show."""

from __future__ import annotations

import math

import pytest
from t2mv_pack.nodes.cameras import viewer
from t2mv_pack.t2mv_core import cameras


@pytest.mark.parametrize(
    ("azimuth", "elevation", "direction"),
    # The viewer's axes: x right, y up, z towards who looks at the front (glTF).
    [(0, 0, (0, 0, 1)), (90, 0, (1, 0, 0)), (180, 0, (0, 0, -1)), (270, 0, (-1, 0, 0)), (0, 90, (0, 1, 0))],
)
def test_viewer_camera_stands_on_the_pictures_side(
    azimuth: float,
    elevation: float,
    direction: tuple[float, ...],
) -> None:
    camera = viewer.to_viewer_camera(cameras.CameraRig((45, azimuth), (0, elevation)), 1)
    offset = [camera["position"][axis] - camera["target"][axis] for axis in "xyz"]
    distance = math.dist(offset, (0, 0, 0))
    assert [part / distance for part in offset] == pytest.approx(direction, abs=1e-9)
    # A model 5 units high that fills 1 / 1.1 of the picture: 5.5 units high at 35 degrees of view.
    assert 2 * distance * math.tan(math.radians(17.5)) == pytest.approx(5.5)


@pytest.mark.parametrize(("azimuth", "elevation"), [(0, 0), (90, 0), (315, 0), (200, 35), (30, -60), (0, 90)])
def test_camera_agrees_with_the_matrix(azimuth: float, elevation: float) -> None:
    rig = cameras.CameraRig((45, azimuth), (0, elevation))
    camera = viewer.to_camera(rig, 1, mesh_size=2.0)
    right, up, backwards = (
        (x, z, -y) for x, y, z in rig.camera_to_world()[1, :3, :3].T.tolist()
    )  # our x, y, z are the viewer's x, -z, y
    x, y, z, w = (camera["quaternion"][name] for name in "xyzw")
    assert right == pytest.approx((1 - 2 * (y * y + z * z), 2 * (x * y + z * w), 2 * (x * z - y * w)))
    assert up == pytest.approx((2 * (x * y - z * w), 1 - 2 * (x * x + z * z), 2 * (y * z + x * w)))
    assert backwards == pytest.approx((2 * (x * z + y * w), 2 * (y * z - x * w), 1 - 2 * (x * x + y * y)))
    position = [camera["position"][axis] for axis in "xyz"]
    distance = math.dist(position, (0, 0, 0))
    assert [part / distance for part in position] == pytest.approx(backwards, abs=1e-9)
    # Perspective or orthographic, ±0.55 of a box of ±0.5 fill the picture: ±1.1 at twice the size.
    assert distance * math.tan(math.radians(camera["fov"] / 2)) / camera["zoom"] == pytest.approx(1.1)
    assert camera["frustum"]["right"] / camera["zoom"] == pytest.approx(1.1)
    assert camera["near"] < distance - 2 < distance + 2 < camera["far"]
