"""The turntable node: all views in angular order, as an animation and as a sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io, ui

from ..common.checks import check_choice, check_number, first_problem
from ..common.outputs import FOLDERS, check_prefix, save_output, workflow_exif
from ..sockets import Rig, advanced, make_schema
from .contact_sheet import choose_set
from .split import MAX_SETS

if TYPE_CHECKING:
    from torch import Tensor

    from ...t2mv_core.cameras import CameraRig

MIN_FPS, MAX_FPS = 0.1, 60.0


class T2MVCreateTurntable(io.ComfyNode):
    """A batch of views to an animated WEBP and a sequence in angular order."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return make_schema(
            node_id="T2MVCreateTurntable",
            display_name="Create Turntable (T2MV)",
            category="T2MV/view",
            description="Turns the object: all views in angular order, as animated WEBP and as sequence.",
            search_aliases=["animated webp", "turn around", "360", "spin", "orbit video", "save animation"],
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            inputs=[
                io.Image.Input("images", tooltip="Views of one or more sets, one set after the other."),
                Rig.Input(
                    "rig",
                    optional=True,
                    tooltip="The cameras the views were made with. Without it: the six default views.",
                ),
                *_options(),
            ],
            outputs=[
                io.Image.Output(
                    "frames",
                    display_name="frames",
                    tooltip="The set's views once around, by azimuth from 0 to 360 degrees, for video nodes.",
                )
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        frames_per_second: float | None = None,
        filename_prefix: str | None = None,
        folder: str | None = None,
    ) -> bool | str:
        """Refuse names that leave the folder, and impossible speeds, before the run."""
        return first_problem(lambda: _check(frames_per_second, filename_prefix, folder))

    @classmethod
    def execute(
        cls,
        images: Tensor,
        rig: CameraRig | None = None,
        frames_per_second: float = 4.0,
        filename_prefix: str = "T2MV/turntable",
        folder: str = "output",
        set: int = 1,
        ping_pong: bool = False,
    ) -> io.NodeOutput:
        """Write the animation and show it on the node."""
        from ...t2mv_core.cameras import DEFAULT_RIG
        from ...t2mv_core.images import encode_webp, from_comfy

        _check(frames_per_second, filename_prefix, folder)
        rig = rig or DEFAULT_RIG
        frames = choose_set(images, rig, set)[rig.angular_order()]
        there_and_back = [*range(len(frames)), *range(len(frames) - 2, 0, -1)]
        shown = frames[there_and_back] if ping_pong else frames
        content = encode_webp(from_comfy(shown), frames_per_second, workflow_exif(cls.hidden))
        height, width = frames.shape[1:3]
        saved = save_output(content, filename_prefix, ".webp", folder, (width, height))
        return io.NodeOutput(frames, ui=ui.SavedImages([saved], is_animated=len(shown) > 1))


def _options() -> list[io.Input]:
    """The inputs with a widget, none of them required."""
    return [
        io.Float.Input(
            "frames_per_second",
            default=4.0,
            min=MIN_FPS,
            max=MAX_FPS,
            step=0.5,
            optional=True,
            tooltip="Speed of the animation: views per second.",
        ),
        io.String.Input(
            "filename_prefix",
            default="T2MV/turntable",
            optional=True,
            tooltip="Name of the file inside ComfyUI's folder, with subfolders if wished; a number and .webp "
            "are added.",
        ),
        io.Combo.Input(
            "folder",
            options=list(FOLDERS),
            default="output",
            optional=True,
            tooltip="'output' keeps the animation; 'temp' only shows it and is emptied by ComfyUI.",
        ),
        io.Int.Input(
            "set",
            default=1,
            min=1,
            max=MAX_SETS,
            optional=True,
            tooltip="Which set, when several prompts or seeds are in the batch; counted from 1.",
        ),
        advanced(
            io.Boolean.Input(
                "ping_pong",
                default=False,
                optional=True,
                tooltip="Play the animation there and back: for views that do not go all the way around.",
            )
        ),
    ]


def _check(fps: float | None, prefix: str | None, folder: str | None) -> None:
    check_number("frames_per_second", fps, MIN_FPS, MAX_FPS)
    check_prefix("filename_prefix", prefix)
    check_choice("folder", folder, list(FOLDERS), "Choose one of them.")
