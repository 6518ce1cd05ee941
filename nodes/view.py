"""Nodes around the views: which cameras look at the object, and all pictures on one sheet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io, ui

from .checks import first_problem, read_rig_angles
from .sockets import Rig, make_schema

if TYPE_CHECKING:
    from torch import Tensor

    from ..t2mv_core.cameras import CameraRig

MAX_SHEET_PICTURES = 24 * 16
MAX_CELL_PX = 1024


class T2MVCreateCameraRig(io.ComfyNode):
    """Angles to a camera rig."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return make_schema(
            node_id="T2MVCreateCameraRig",
            display_name="Create Camera Rig (T2MV)",
            category="T2MV/cameras",
            description="Chooses the views: one camera per azimuth around the object.",
            search_aliases=["multiview cameras", "azimuth", "elevation", "view angles", "turntable"],
            inputs=[
                io.String.Input(
                    "azimuths",
                    default="0, 45, 90, 180, 270, 315",
                    tooltip="One view per angle, in degrees: 0 front, 90 right, 180 back, 270 left side. "
                    "The bundled and published models were trained on 0, 45, 90, 180, 270 and 315.",
                ),
                io.String.Input(
                    "elevations",
                    default="0",
                    tooltip="Height angle in degrees, -90 to 90: one for all views, or one per view. "
                    "The bundled and published models were trained on 0.",
                ),
            ],
            outputs=[
                Rig.Output("rig", display_name="rig", tooltip="The cameras, in the order of the angles.")
            ],
        )

    @classmethod
    def validate_inputs(cls, azimuths: str | None = None, elevations: str | None = None) -> bool | str:
        """Refuse unreadable angles before the run."""
        return first_problem(lambda: read_rig_angles(azimuths, elevations))

    @classmethod
    def execute(cls, azimuths: str, elevations: str) -> io.NodeOutput:
        """Build the rig."""
        from ..t2mv_core.cameras import CameraRig

        return io.NodeOutput(CameraRig(*read_rig_angles(azimuths, elevations)))


class T2MVCreateContactSheet(io.ComfyNode):
    """A batch of views to one picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return make_schema(
            node_id="T2MVCreateContactSheet",
            display_name="Create Contact Sheet (T2MV)",
            category="T2MV/view",
            description="Puts views side by side on one picture: a row per set, a column per view.",
            search_aliases=["image grid", "side by side", "compare views", "multiview sheet"],
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="Views of one or more sets, one set after the other."),
                Rig.Input(
                    "rig",
                    optional=True,
                    tooltip="The cameras the views were made with; gives the columns and their angles. "
                    "Without it the six default views are meant.",
                ),
                io.String.Input(
                    "row_labels",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip="A label per row, one per line; may be left empty.",
                ),
                io.Int.Input(
                    "cell_px",
                    default=160,
                    min=32,
                    max=MAX_CELL_PX,
                    step=16,
                    optional=True,
                    tooltip="Height of every view on the sheet, in pixels.",
                ),
            ],
            outputs=[
                io.Image.Output("sheet", display_name="sheet", tooltip="The contact sheet, one picture.")
            ],
        )

    @classmethod
    def execute(
        cls, images: Tensor, rig: CameraRig | None = None, row_labels: str = "", cell_px: int = 160
    ) -> io.NodeOutput:
        """Draw the sheet and show it on the node."""
        from ..t2mv_core.cameras import DEFAULT_RIG
        from ..t2mv_core.images import contact_sheet, from_comfy

        rig = rig or DEFAULT_RIG
        views = split_sets(from_comfy(images), rig.num_views)
        lines = [line.strip() for line in row_labels.splitlines()]
        rows = (lines + [""] * len(views))[: len(views)] if any(lines) else []
        columns = [f"{angle:g}°" for angle in rig.azimuths_deg]
        sheet = picture_tensor(contact_sheet(views, rows, columns, cell_px))
        return io.NodeOutput(sheet, ui=ui.PreviewImage(sheet, cls=cls))


def split_sets(images: Tensor, num_views: int) -> Tensor:
    """Group pictures [n, 3, H, W] into sets of views, [n/V, V, 3, H, W].

    Raises:
        ValueError: the number of pictures is not a multiple of V, or too large for one sheet.
    """
    if len(images) % num_views:
        raise ValueError(
            f"{len(images)} pictures do not divide into sets of {num_views} views; connect the sampler's rig."
        )
    if len(images) > MAX_SHEET_PICTURES:
        raise ValueError(
            f"{len(images)} pictures are too many for one sheet; at most {MAX_SHEET_PICTURES} fit."
        )
    return images.unflatten(0, (-1, num_views))


def picture_tensor(picture: object) -> Tensor:
    """A PIL picture as ComfyUI's IMAGE [1, H, W, 3] in [0, 1]."""
    import numpy as np
    import torch

    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)  # type: ignore[attr-defined]
    return torch.from_numpy(pixels / 255.0)[None]
