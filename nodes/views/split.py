"""The node that hands out single views by name, for image-to-3D nodes with an input per side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io

from ..common.outputs import blocked
from ..common.progress import show_notes
from ..sockets import make_schema, output
from .contact_sheet import SET, choose_set, grouping_notes, view_inputs

if TYPE_CHECKING:
    from torch import Tensor

    from ...t2mv_core.cameras import CameraRig

# Side -> (display name, tooltip). The sides are the viewer's, as everywhere in this pack; Hunyuan3D names
# them after the object's own left and right hand: its example pictures "left" look to the picture's left, and
# that is what our azimuth 90 shows.
SIDES = {
    "front": ("front", "Azimuth 0. Hunyuan3D-2mv: to its 'front'."),
    "front-right": ("front-right", "Azimuth 45."),
    "right": ("right (3D: left)", "Azimuth 90. Hunyuan3D-2mv: to its 'left', the object's own left."),
    "back": ("back", "Azimuth 180. Hunyuan3D-2mv: to its 'back'."),
    "left": ("left (3D: right)", "Azimuth 270. Hunyuan3D-2mv: to its 'right', the object's own right."),
    "front-left": ("front-left", "Azimuth 315."),
}


class T2MVSplitViews(io.ComfyNode):
    """A batch of views to one output per side."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="T2MVSplitViews",
            display_name="Split Views (T2MV)",
            category="T2MV/view",
            description="Gives single views by name, for nodes with an input per side such as Hunyuan3D's "
            "multi-view conditioning. Left and right are the viewer's; Hunyuan3D means the object's own.",
            search_aliases=["unbatch views", "hunyuan3d multi view", "front back left right", "image to 3d"],
            hidden=[io.Hidden.unique_id],
            inputs=[*view_inputs(), SET.widget()],
            outputs=[
                output(
                    io.Image,
                    side.replace("-", "_"),
                    f"{meaning} A rig without this view stops what is connected here.",
                    shown,
                )
                for side, (shown, meaning) in SIDES.items()
            ],
        )

    @classmethod
    def execute(cls, images: Tensor, rig: CameraRig | None = None, set: int = 1) -> io.NodeOutput:
        """Pick the views; one that the rig lacks blocks only the nodes that ask for it."""
        from ...t2mv_core.cameras import AZIMUTH_OF_NAME, DEFAULT_RIG

        notes, rig = grouping_notes(images, rig), rig or DEFAULT_RIG
        views = choose_set(images, rig, set)
        show_notes(cls, notes)
        outputs = []
        for side in SIDES:
            indices = rig.find_views(AZIMUTH_OF_NAME[side])
            outputs.append(views[indices[0]][None] if indices else blocked(_missing(side, rig)))
        return io.NodeOutput(*outputs)


def _missing(side: str, rig: CameraRig) -> str:
    return (
        f"the rig has no {side} view, only {', '.join(rig.labels())}. Add that azimuth to Create Camera Rig, "
        f"or leave the output '{side}' of Split Views unconnected."
    )
