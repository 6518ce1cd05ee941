"""A rig told to others: in words, as JSON for 3D tools, and as ComfyUI's 3D camera. Needs no ComfyUI."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...t2mv_core.cameras import CameraRig

CONVENTION = (
    "Right-handed world, z up, object at the origin in a box of ±0.5, its front towards -y. Azimuth 0 is the "
    "camera at -y, 90 at +x (to the right of who looks at the front), 180 at +y, 270 at -x; elevation is the "
    "angle above the horizon. camera_to_world (row-major, column vectors) takes camera coordinates, x to the "
    "picture's right, y to its top, looking along -z (OpenGL), to the world. Orthographic: x and y in "
    "[-half_width, half_width] fill the picture. World units."
)
# ComfyUI's 3D viewer (three.js, y up) scales every model to a largest side of 5, standing on the floor, and
# looks with a vertical field of view of 35 degrees.
VIEWER_MODEL_SIZE = 5.0
VIEWER_FOV_DEG = 35.0


def to_json(rig: CameraRig) -> str:
    """All cameras with their 4x4 matrices, and what the numbers mean."""
    matrices = rig.camera_to_world()
    projection = {"type": "orthographic", "half_width": rig.frustum}
    views = [
        {
            "view": index + 1,
            "label": label,
            "azimuth_deg": rig.azimuths_deg[index],
            "elevation_deg": rig.elevations_deg[index],
            "distance": rig.distance,
            "projection": projection,
            "camera_to_world": _rounded(matrices[index].tolist()),
        }
        for index, label in enumerate(rig.labels())
    ]
    return json.dumps({"convention": CONVENTION, "views": views}, ensure_ascii=False, allow_nan=False)


def to_viewer_camera(rig: CameraRig, index: int) -> dict[str, Any]:
    """One view as ComfyUI's LOAD3D_CAMERA: the picture's side of the model, about as large as in the picture.

    The viewer keeps its own projection and field of view (35 degrees, perspective, unless changed there).
    Our x, y, z are its x, -z, y, so that an object's front looks along +z, as glTF asks.

    Args:
        rig: the cameras.
        index: of the view, from 0.
    """
    x, y, z = (float(axis) / rig.distance for axis in rig.camera_to_world()[index, :3, 3])
    half_height = rig.frustum * VIEWER_MODEL_SIZE
    distance = half_height / math.tan(math.radians(VIEWER_FOV_DEG / 2))
    floor = VIEWER_MODEL_SIZE / 2
    return {
        "position": {"x": distance * x, "y": distance * z + floor, "z": -distance * y},
        "target": {"x": 0.0, "y": floor, "z": 0.0},
        "zoom": 1,
        "cameraType": "perspective",
    }


def to_text(rig: CameraRig) -> str:
    """What the checkpoints were not trained on, first, as a node has room for two lines; then the views."""
    listed = ", ".join(f"{number} {label}" for number, label in enumerate(rig.labels(), 1))
    return "\n".join([*warnings(rig), f"{rig.num_views} views: {listed}"])


def warnings(rig: CameraRig) -> list[str]:
    """One sentence per way in which the rig leaves what the bundled and published checkpoints have seen."""
    from ...t2mv_core.cameras import TRAINED_AZIMUTHS_DEG, TRAINED_ELEVATION_DEG, is_same_azimuth

    known = ", ".join(f"{angle:g}" for angle in TRAINED_AZIMUTHS_DEG)
    trained = f"the bundled and published checkpoints were trained on azimuths {known} at elevation 0"
    azimuths = [
        angle
        for angle in dict.fromkeys(rig.azimuths_deg)
        if not any(is_same_azimuth(angle, seen) for seen in TRAINED_AZIMUTHS_DEG)
    ]
    elevations = [
        angle for angle in dict.fromkeys(rig.elevations_deg) if abs(angle - TRAINED_ELEVATION_DEG) > 1e-3
    ]
    found = []
    for name, angles in (("azimuths", azimuths), ("elevations", elevations)):
        if angles:
            listed = ", ".join(f"{angle:g}" for angle in angles)
            found.append(f"Warning: {name} {listed} are new to the models ({trained}); expect weaker views.")
    if rig.num_views > len(TRAINED_AZIMUTHS_DEG):
        found.append(
            f"Warning: {rig.num_views} views at once; the checkpoints were trained on "
            f"{len(TRAINED_AZIMUTHS_DEG)}. Expect weaker views, and more memory and time."
        )
    return found


def _rounded(matrix: list[list[float]]) -> list[list[float]]:
    """Twelve decimals, without the -0 and 1e-17 that sines and cosines leave."""
    return [[round(number, 12) + 0.0 for number in row] for row in matrix]
