"""The node that makes empty latents for all views of a rig."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io

from ..common.checks import check_integer, first_problem
from ..sockets import Rig, make_schema
from .checks import MAX_PX, MAX_SETS, MIN_PX, PX_STEP, check_rig, check_size_px

if TYPE_CHECKING:
    from ...t2mv_core.cameras import CameraRig

LATENT_CHANNELS, PX_PER_LATENT = 4, 8
DEFAULT_PX = 768


class T2MVEmptyLatent(io.ComfyNode):
    """Cameras and a size to latents, one per view."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs and outputs."""

        def size(name: str, what: str) -> io.Int.Input:
            return io.Int.Input(
                name,
                default=DEFAULT_PX,
                min=MIN_PX,
                max=MAX_PX,
                step=PX_STEP,
                tooltip=f"{what} of each view in pixels, a multiple of 16. The published MV-Adapter was "
                "trained at 768 x 768.",
            )

        return make_schema(
            node_id="T2MVEmptyLatent",
            display_name="Empty Multiview Latent (T2MV)",
            category="T2MV/native",
            description="Empty latents for a model with MV-Adapter: one per view of the rig, the views of a "
            "set in a row.",
            search_aliases=["empty latent", "multiview latent", "views batch"],
            inputs=[
                Rig.Input("rig", tooltip="The cameras given to Apply MV-Adapter, too."),
                size("width", "Width"),
                size("height", "Height"),
                io.Int.Input(
                    "sets",
                    default=1,
                    min=1,
                    max=MAX_SETS,
                    tooltip="How many sets of views to draw at once; the batch is sets times views.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    "latent",
                    display_name="latent",
                    tooltip="A batch of empty latents: all views of the first set, then of the next.",
                )
            ],
        )

    @classmethod
    def validate_inputs(
        cls, width: int | None = None, height: int | None = None, sets: int | None = None
    ) -> bool | str:
        """Refuse sizes that no MV-Adapter can work with."""
        return first_problem(
            lambda: check_size_px("width", width),
            lambda: check_size_px("height", height),
            lambda: check_integer("sets", sets, 1, MAX_SETS),
        )

    @classmethod
    def execute(cls, rig: CameraRig, width: int, height: int, sets: int) -> io.NodeOutput:
        """Make them, on the device ComfyUI keeps latents on."""
        import comfy.model_management
        import torch

        check_rig(rig)
        check_size_px("width", width)
        check_size_px("height", height)
        check_integer("sets", sets, 1, MAX_SETS)
        size = (sets * rig.num_views, LATENT_CHANNELS, height // PX_PER_LATENT, width // PX_PER_LATENT)
        samples = torch.zeros(size, device=comfy.model_management.intermediate_device())
        return io.NodeOutput({"samples": samples})
