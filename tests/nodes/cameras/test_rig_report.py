"""A rig in words, as JSON and as ComfyUI's 3D camera."""

from __future__ import annotations

import importlib
import json
import math
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def rig_report(pack: ModuleType) -> ModuleType:
    return importlib.import_module(f"{pack.__name__}.nodes.cameras.rig_report")


@pytest.fixture(scope="module")
def cameras(pack: ModuleType) -> ModuleType:
    return importlib.import_module(f"{pack.__name__}.t2mv_core.cameras")


def test_trained_views_give_no_warning(rig_report: ModuleType, cameras: ModuleType) -> None:
    assert rig_report.warnings(cameras.DEFAULT_RIG) == []
    assert rig_report.warnings(cameras.CameraRig((-45, 360, -90), (0, 0, 0))) == []  # 315, 0, 270
    assert rig_report.to_text(cameras.CameraRig((0, 180), (0, 0))) == "2 views: 1 front 0°, 2 back 180°"


def test_new_angles_are_named_once(rig_report: ModuleType, cameras: ModuleType) -> None:
    azimuths, elevations = rig_report.warnings(cameras.CameraRig((0, 30, 30, 135), (0, 10, 10, -5.5)))
    assert "azimuths 30, 135 are new" in azimuths
    assert "0, 45, 90, 180, 270, 315 at elevation 0" in azimuths
    assert "elevations 10, -5.5 are new" in elevations


def test_more_views_than_trained_are_said(rig_report: ModuleType, cameras: ModuleType) -> None:
    _, many = rig_report.warnings(cameras.CameraRig(tuple(30.0 * i for i in range(12)), (0.0,) * 12))
    assert "12 views at once" in many


def test_json_holds_every_view_and_projects_as_the_convention_says(
    rig_report: ModuleType, cameras: ModuleType
) -> None:
    rig = cameras.CameraRig((0, 90, 30), (0, 0, 40))
    told = json.loads(rig_report.to_json(rig))
    assert "z up" in told["convention"]
    assert [view["view"] for view in told["views"]] == [1, 2, 3]
    assert [view["label"] for view in told["views"]] == ["front 0°", "right 90°", "30°/+40°"]
    assert told["views"][2]["elevation_deg"] == 40
    assert told["views"][0]["projection"] == {"type": "orthographic", "half_width": 0.55}
    # By hand: at (0, -1.8, 0), right +x, up +z, backwards -y; at (1.8, 0, 0), right +y, up +z, backwards +x.
    assert told["views"][0]["camera_to_world"] == [[1, 0, 0, 0], [0, 0, -1, -1.8], [0, 1, 0, 0], [0, 0, 0, 1]]
    assert told["views"][1]["camera_to_world"] == [[0, 0, 1, 1.8], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]
    assert all(view["distance"] == 1.8 for view in told["views"])
    assert "-0.0" not in rig_report.to_json(rig)


@pytest.mark.parametrize(
    ("azimuth", "elevation", "direction"),
    # The viewer's axes: x right, y up, z towards who looks at the front (glTF).
    [(0, 0, (0, 0, 1)), (90, 0, (1, 0, 0)), (180, 0, (0, 0, -1)), (270, 0, (-1, 0, 0)), (0, 90, (0, 1, 0))],
)
def test_viewer_camera_stands_on_the_pictures_side(
    rig_report: ModuleType,
    cameras: ModuleType,
    azimuth: float,
    elevation: float,
    direction: tuple[float, ...],
) -> None:
    camera = rig_report.to_viewer_camera(cameras.CameraRig((45, azimuth), (0, elevation)), 1)
    offset = [camera["position"][axis] - camera["target"][axis] for axis in "xyz"]
    distance = math.dist(offset, (0, 0, 0))
    assert [part / distance for part in offset] == pytest.approx(direction, abs=1e-9)
    # A model 5 units high that fills 1 / 1.1 of the picture: 5.5 units high at 35 degrees of view.
    assert 2 * distance * math.tan(math.radians(17.5)) == pytest.approx(5.5)
