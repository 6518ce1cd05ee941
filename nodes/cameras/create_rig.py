"""Nodes around the cameras: which ones look at the object, and what they are in numbers for 3D nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io, ui

from ..common.checks import MAX_VIEWS, Field, first_problem, widgets
from ..common.progress import show_text
from ..sockets import Rig, make_schema, output
from .rig import CUSTOM, PRESET_CHOICES, TRAINED_AZIMUTHS, choose_rig, to_json, to_text
from .viewer import to_camera, to_viewer_camera

if TYPE_CHECKING:
    from ...t2mv_core.cameras import CameraRig

# ComfyUI's own camera type; an output of it is left out should a ComfyUI no longer have the type.
ViewerCamera = getattr(io, "Load3DCamera", None)
FIELDS = (
    Field(
        "azimuths", TRAINED_AZIMUTHS,
        "Only for the preset 'custom'. One view per angle, in degrees: 0 front, 90 right, 180 back, 270 "
        f"left side. The bundled and published models were trained on {TRAINED_AZIMUTHS}.",
    ),
    Field(
        "elevations", "0",
        "Only for the preset 'custom'. Height angle in degrees, -90 to 90: one for all views, or one per "
        "view. The bundled and published models were trained on 0.",
    ),
    Field(
        "preset", CUSTOM, "Ready-made views at elevation 0, or 'custom': the angles in the boxes above.",
        choices=PRESET_CHOICES, is_optional=True,
    ),
    Field(
        "views", "",
        "Which of these views to draw, in this order: numbers such as '1, 3' or names such as 'front, "
        "back'. Empty: all of them.",
        is_optional=True,
    ),
)  # fmt: skip
# Today's camera says how it looks, and is meant in the coordinates of the mesh.
HAS_FULL_CAMERA = "quaternion" in getattr(getattr(ViewerCamera, "CameraInfo", None), "__annotations__", {})
MESH_SIZE = Field(
    "mesh_size", 1.0,
    "Side of the mesh's box around the origin, for the 'camera' output: 1 for meshes as our pictures show "
    "them, 2 for Hunyuan3D's. Without effect in ComfyUI 0.3.64, whose viewer scales every mesh.",
    0.001, 1000.0, step=0.1, is_optional=True,
)  # fmt: skip
VIEW = Field("view", 1, "Which view the 'camera' output is, counted from 1 in the rig's order.", 1, MAX_VIEWS)


class T2MVCreateCameraRig(io.ComfyNode):
    """A preset or angles to a camera rig."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="T2MVCreateCameraRig",
            display_name="Create Camera Rig (T2MV)",
            category="T2MV/cameras",
            description="Chooses the views: one camera per azimuth around the object. Says so when angles "
            "leave what the models were trained on.",
            shows_result=True,
            search_aliases=["multiview cameras", "azimuth", "elevation", "view angles", "turntable", "orbit"],
            hidden=[io.Hidden.unique_id],
            inputs=widgets(*FIELDS),
            outputs=[
                output(Rig, "rig", "The cameras, in the order of the angles."),
                output(
                    io.String,
                    "report",
                    "The views in words, and a warning when the models were not trained on them.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        azimuths: str | None = None,
        elevations: str | None = None,
        preset: str | None = CUSTOM,
        views: str | None = "",
    ) -> bool | str:
        """Refuse unreadable angles and views before the run."""
        return first_problem(lambda: choose_rig(azimuths, elevations, preset, views))

    @classmethod
    def execute(cls, azimuths: str, elevations: str, preset: str = CUSTOM, views: str = "") -> io.NodeOutput:
        """Build the rig."""
        rig = choose_rig(azimuths, elevations, preset, views)
        if rig is None:
            raise ValueError("An input of the camera rig is linked to nothing (None); give it a text.")
        report = to_text(rig)
        show_text(cls, report)
        return io.NodeOutput(rig, report, ui=ui.PreviewText(report))


class T2MVCreateCameraData(io.ComfyNode):
    """A rig to numbers for 3D nodes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        outputs = [
            output(
                io.String,
                "json",
                "Every view's angles, distance, projection and 4x4 matrix, and the convention.",
            )
        ]
        if ViewerCamera is not None:
            tooltip = "The chosen view for Preview 3D, Render Mesh and Render Splat."
            outputs.append(output(ViewerCamera, "camera", tooltip))
        return make_schema(
            node_id="T2MVCreateCameraData",
            display_name="Create Camera Data (T2MV)",
            category="T2MV/cameras",
            description="The cameras in numbers, for 3D nodes and other programs: angles, orthographic "
            "projection and camera-to-world matrices as JSON, and one view as ComfyUI's 3D camera.",
            search_aliases=["camera matrix", "extrinsics", "camera to world", "json cameras", "3d camera"],
            inputs=[
                Rig.Input("rig", tooltip="The cameras the views were made with."),
                *widgets(VIEW, MESH_SIZE),
            ],
            outputs=outputs,
        )

    @classmethod
    def execute(cls, rig: CameraRig, view: int, mesh_size: float = MESH_SIZE.default) -> io.NodeOutput:
        """Write the cameras down."""
        if not 1 <= view <= rig.num_views:
            raise ValueError(f"view={view} is not in this rig; it has views 1 to {rig.num_views}.")
        MESH_SIZE.check(mesh_size)
        full = to_camera(rig, view - 1, mesh_size)
        camera = full if HAS_FULL_CAMERA else to_viewer_camera(rig, view - 1)
        return io.NodeOutput(to_json(rig), *([] if ViewerCamera is None else [camera]))
