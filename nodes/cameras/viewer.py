"""Views as cameras of ComfyUI's 3D nodes (LOAD3D_CAMERA). Needs no ComfyUI."""

from __future__ import annotations

import math
from typing import Any

from ...t2mv_core.cameras import CameraRig

# The 3D viewer of ComfyUI 0.3.64 (three.js, y up) scales every model to a largest side of 5, standing on the
# floor, and looks with a vertical field of view of 35 degrees.
VIEWER_MODEL_SIZE = 5.0
VIEWER_FOV_DEG = 35.0
# Today's viewer leaves models as they are and reads position, target and zoom. It and Render Mesh know
# perspective only: from far away, with a large zoom, that is nearly orthographic. From farther away the
# viewer's depths would be too coarse.
CAMERA_ZOOM = 33.0


def to_camera(rig: CameraRig, index: int, mesh_size: float = 1.0) -> dict[str, Any]:
    """Return one view as today's LOAD3D_CAMERA, in the mesh's coordinates (y up, front towards +z, glTF).

    A perspective reader (Preview 3D, Render Mesh) and an orthographic one (Render Splat) both see what the
    picture shows. Our x, y, z are its x, -z, y.

    Args:
        rig: the cameras.
        index: of the view, from 0.
        mesh_size: side of the box around the origin that is ±0.5 in our world.
    """
    x, y, z = (float(axis) / rig.distance for axis in rig.camera_to_world()[index, :3, 3])
    half_width = rig.frustum * mesh_size
    distance = half_width * CAMERA_ZOOM / math.tan(math.radians(VIEWER_FOV_DEG / 2))
    edge = half_width * CAMERA_ZOOM  # before the zoom, as three.js keeps it
    return {
        "position": {"x": distance * x, "y": distance * z, "z": -distance * y},
        "target": {"x": 0.0, "y": 0.0, "z": 0.0},
        "quaternion": _quaternion(rig.azimuths_deg[index], rig.elevations_deg[index]),
        "zoom": CAMERA_ZOOM,
        "cameraType": "orthographic",
        "fov": VIEWER_FOV_DEG,
        "aspect": 1.0,
        "near": distance / 100,
        "far": distance * 10,
        "frustum": {"left": -edge, "right": edge, "top": edge, "bottom": -edge},
    }


def _quaternion(azimuth_deg: float, elevation_deg: float) -> dict[str, float]:
    """Turn three.js's camera, which looks along -z, down by the elevation, then around y by the azimuth."""
    azimuth, elevation = math.radians(azimuth_deg) / 2, math.radians(elevation_deg) / 2
    return {
        "x": -math.cos(azimuth) * math.sin(elevation),
        "y": math.sin(azimuth) * math.cos(elevation),
        "z": math.sin(azimuth) * math.sin(elevation),
        "w": math.cos(azimuth) * math.cos(elevation),
    }


def to_viewer_camera(rig: CameraRig, index: int) -> dict[str, Any]:
    """Return one view as the LOAD3D_CAMERA of ComfyUI 0.3.64: the picture's side, about as large as there.

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
