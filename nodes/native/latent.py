"""The node that makes empty latents for all views of a rig."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from comfy_api.latest import io

from ..common.checks import check_integer, first_problem
from ..sockets import Rig, make_schema
from .comfyui import model_management

if TYPE_CHECKING:
    from ...t2mv_core.cameras import CameraRig

MIN_PX, MAX_PX, PX_STEP = 64, 8192, 16
MAX_SETS = 64
LATENT_CHANNELS, PX_PER_LATENT = 4, 8


class T2MVEmptyLatent(io.ComfyNode):
    """A rig and a size to latents, one per view."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs and outputs."""
        return make_schema(
            node_id="T2MVEmptyLatent",
            display_name="Empty Multiview Latent (T2MV)",
            category="T2MV/native",
            description="Makes empty latents for a model with an MV-Adapter: one per view of the rig. The "
            "views of a set follow one another in the batch.",
            search_aliases=["empty latent", "multiview latent", "views batch"],
            inputs=[
                Rig.Input("rig", tooltip="The rig that Apply MV-Adapter has, too."),
                _side("width", "Width"),
                _side("height", "Height"),
                io.Int.Input(
                    "sets",
                    default=1,
                    min=1,
                    max=MAX_SETS,
                    tooltip="Number of sets of views to draw at once; the batch is sets times views.",
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
    def validate_inputs(cls, width: int | None = None, height: int | None = None) -> bool | str:
        """Refuse sides that the MV-Adapter cannot work with."""
        return first_problem(lambda: check_side("width", width), lambda: check_side("height", height))

    @classmethod
    def execute(cls, rig: CameraRig, width: int, height: int, sets: int) -> io.NodeOutput:
        """Make the latents on the device where ComfyUI keeps latents."""
        check_side("width", width)
        check_side("height", height)
        check_integer("sets", sets, 1, MAX_SETS)
        size = (sets * rig.num_views, LATENT_CHANNELS, height // PX_PER_LATENT, width // PX_PER_LATENT)
        return io.NodeOutput({"samples": torch.zeros(size, device=model_management.intermediate_device())})


def check_side(name: str, value: int | None) -> None:
    """Refuse a width or height that is not a multiple of 16 px; None (a linked input) passes.

    Raises:
        ValueError: with the value and the nearest allowed one.
    """
    check_integer(name, value, MIN_PX, MAX_PX)
    if value is not None and value % PX_STEP:
        nearest = max(MIN_PX, round(value / PX_STEP) * PX_STEP)
        raise ValueError(f"{name}={value} must be a multiple of {PX_STEP} px; use {nearest}.")


def _side(name: str, label: str) -> io.Int.Input:
    return io.Int.Input(
        name,
        default=768,
        min=MIN_PX,
        max=MAX_PX,
        step=PX_STEP,
        tooltip=f"{label} of each view in pixels, a multiple of 16. The published MV-Adapter was trained at "
        "768 x 768.",
    )
