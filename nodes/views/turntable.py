"""The turntable node: all views in angular order, as an animation and as a sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io, ui

from ..common.checks import Field, first_problem, widgets
from ..common.outputs import FOLDERS, check_prefix
from ..common.progress import show_notes
from ..sockets import make_schema, output
from .contact_sheet import SET, choose_set, grouping_notes, view_inputs

if TYPE_CHECKING:
    from torch import Tensor

    from ...t2mv_core.cameras import CameraRig

FRAMES_PER_SECOND = Field(
    "frames_per_second", 4.0, "Speed of the animation: views per second.", 0.1, 60.0, step=0.5,
    is_optional=True,
)  # fmt: skip
PREFIX = Field(
    "filename_prefix", "T2MV/turntable",
    "Name of the file inside ComfyUI's folder, with subfolders if wished; a number and .webp are added.",
    is_optional=True,
)  # fmt: skip
FOLDER = Field(
    "folder", FOLDERS[0], "'output' keeps the animation; 'temp' only shows it and is emptied by ComfyUI.",
    choices=FOLDERS, is_optional=True,
)  # fmt: skip
PING_PONG = Field(
    "ping_pong", False, "Play the animation there and back: for views that do not go all the way around.",
    is_optional=True, is_advanced=True,
)  # fmt: skip


class T2MVCreateTurntable(io.ComfyNode):
    """A batch of views to an animated WEBP and a sequence in angular order."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="T2MVCreateTurntable",
            display_name="Create Turntable (T2MV)",
            category="T2MV/view",
            description="Turns the object: all views in angular order, as animated WEBP and as sequence.",
            shows_result=True,
            search_aliases=["animated webp", "turn around", "360", "spin", "orbit video", "save animation"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            inputs=[*view_inputs(), *widgets(FRAMES_PER_SECOND, PREFIX, FOLDER, SET, PING_PONG)],
            outputs=[
                output(
                    io.Image,
                    "frames",
                    "The set's views once around, by azimuth from 0 to 360 degrees, for video nodes.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        """Refuse names that leave the folder before the run."""
        return first_problem(lambda: check_prefix("filename_prefix", filename_prefix))

    @classmethod
    def execute(
        cls,
        images: Tensor,
        rig: CameraRig | None = None,
        frames_per_second: float = FRAMES_PER_SECOND.default,
        filename_prefix: str = PREFIX.default,
        folder: str = FOLDER.default,
        set: int = 1,
        ping_pong: bool = False,
    ) -> io.NodeOutput:
        """Write the animation and show it on the node."""
        from ...t2mv_core.cameras import DEFAULT_RIG

        FRAMES_PER_SECOND.check(frames_per_second)
        check_prefix("filename_prefix", filename_prefix)
        FOLDER.check(folder)
        notes, rig = grouping_notes(images, rig), rig or DEFAULT_RIG
        frames = choose_set(images, rig, set)[rig.angular_order()]
        show_notes(cls, notes)
        there_and_back = [*range(len(frames)), *range(len(frames) - 2, 0, -1)]
        shown = frames[there_and_back] if ping_pong else frames
        saved = ui.ImageSaveHelper.save_animated_webp(
            shown,
            filename_prefix.replace("\\", "/"),  # a workflow from Windows means a folder
            io.FolderType(folder),
            cls=cls,
            fps=frames_per_second,
            lossless=False,
            quality=90,
            method=4,
        )
        return io.NodeOutput(frames, ui=ui.SavedImages([saved], is_animated=len(shown) > 1))
