"""Workflow 11 against the cameras that ComfyUI's Pixal3DMultiViewConditioning gives to its views.

Facts, read in Comfy-Org/ComfyUI at 015e604679bbf0f0dc44a34d91f5cedb52535b4b:

* comfy_extras/nodes_trellis2.py: front, left, back and right at azimuths 0, 90, 180, 270 and elevation 0;
  without cropping, the cameras stand at 1.1 · 0.5 / tan(fov / 2); backward axis (sin az, -cos az, 0), right
  axis (cos az, sin az, 0), up the backward axis times the right one, z up.
* comfy/ldm/trellis2/model.py: a point at (x, y, z) of a camera is in column R / 2 + f x / -z and row
  R / 2 - f y / -z of R pixels, f = R / (2 tan(fov / 2)); the mesh's x, y, z are the world's x, z, -y.

Matrices and distance are those that Pixal3D's authors give for their own four views with 20 degrees
(TencentARC/Pixal3D, assets/mv_images/example/transforms.json).
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from t2mv_core.cameras import CameraRig
from t2mv_core.objects.viewing import picture_places

API = json.loads(
    (Path(__file__).parents[1] / "docs" / "api" / "11 Views to Pixal3D - download.json").read_text("utf-8")
)
AZIMUTH_DEG = {"front": 0.0, "left": 90.0, "back": 180.0, "right": 270.0}
ROTATION = {
    "front": [[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]],
    "left": [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
    "back": [[-1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]],
    "right": [[0.0, 0.0, -1.0], [-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
}
FOV_DEG, DISTANCE = 20.0, 3.1192049980163574
PADDING = 1.1
PICTURE_PX = 1024
SAME = 1e-6


@pytest.fixture
def rig() -> CameraRig:
    """The workflow's cameras."""
    angles = API["2"]["inputs"]
    azimuths = tuple(float(word) for word in angles["azimuths"].split(","))
    return CameraRig(azimuths, (float(angles["elevations"]),) * len(azimuths))


def view_of(side: str) -> int:
    """The view that the workflow gives to a socket."""
    node, slot = API["14"]["inputs"][side]
    assert slot == 0
    assert API[node]["inputs"]["length"] == 1
    return API[node]["inputs"]["batch_index"]


def core_places(points: Tensor, side: str, fov_deg: float) -> Tensor:
    """Where core looks for points [N, 3] in a view, [N, 2], in half pictures to the right and down."""
    tangent = math.tan(math.radians(fov_deg) / 2)
    seen = points @ torch.tensor(ROTATION[side], dtype=points.dtype)
    depth = PADDING * 0.5 / tangent - seen[:, 2]
    return seen[:, :2] * seen.new_tensor([1.0, -1.0]) / (depth * tangent)[:, None]


@pytest.mark.parametrize("side", AZIMUTH_DEG)
def test_azimuths_poses_and_half_extent_are_cores(rig: CameraRig, side: str) -> None:
    view = view_of(side)
    assert rig.azimuths_deg[view] == pytest.approx(AZIMUTH_DEG[side], abs=SAME)
    assert rig.elevations_deg[view] == 0
    pose = rig.camera_to_world()[view]
    expected = torch.tensor(ROTATION[side], dtype=torch.float64)
    torch.testing.assert_close(pose[:3, :3], expected, atol=SAME, rtol=0)
    # Without perspective a camera's distance is free; ours stands in the same direction.
    torch.testing.assert_close(pose[:3, 3] / rig.distance, expected[:, 2], atol=SAME, rtol=0)
    half_extent = DISTANCE * math.tan(math.radians(FOV_DEG) / 2)
    assert rig.frustum == pytest.approx(half_extent, abs=SAME)
    assert rig.frustum == pytest.approx(PADDING * 0.5, abs=SAME)


def test_the_workflows_fov_is_the_one_that_fits_cameras_without_perspective(rig: CameraRig) -> None:
    """At 1 degree core looks at most 4 of 1024 pixels beside a point of the unit cube, at 20 up to 89."""
    inputs = API["14"]["inputs"]
    assert inputs["crop"] is False
    cube = torch.cartesian_prod(*[torch.tensor([-0.5, 0.5], dtype=torch.float64)] * 3)
    errors = {}
    for fov_deg in (inputs["fov"], FOV_DEG):
        ours = picture_places(cube, rig)
        gaps = [ours[view_of(side)] - core_places(cube, side, fov_deg) for side in AZIMUTH_DEG]
        errors[fov_deg] = float(torch.stack(gaps).abs().max()) * PICTURE_PX / 2
    assert errors[1.0] < 4
    assert errors[FOV_DEG] == pytest.approx(89, abs=1)
