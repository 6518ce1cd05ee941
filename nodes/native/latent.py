"""The node that makes empty latents for all views of a rig."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from comfy_api.latest import io

from ..common.checks import Field, first_problem, widgets
from ..common.memory import intermediate_device
from ..sockets import Rig, make_schema, output

if TYPE_CHECKING:
    from ...t2mv_core.cameras import CameraRig

PX_STEP = 16
_TOOLTIP = "of each view in pixels, a multiple of 16. The published MV-Adapter was trained at 768 x 768."
WIDTH = Field("width", 768, f"Width {_TOOLTIP}", 64, 8192, step=PX_STEP)
HEIGHT = replace(WIDTH, name="height", tooltip=f"Height {_TOOLTIP}")
SETS = Field("sets", 1, "Number of sets of views to draw at once; the batch is sets times views.", 1, 64)
LATENT_CHANNELS, PX_PER_LATENT = 4, 8


class T2MVEmptyLatent(io.ComfyNode):
    """A rig and a size to latents, one per view."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="T2MVEmptyLatent",
            display_name="Empty Multiview Latent (T2MV)",
            category="T2MV/native",
            description="Makes empty latents for a model with an MV-Adapter: one per view of the rig. The "
            "views of a set follow one another in the batch.",
            is_experimental=True,
            search_aliases=["empty latent", "multiview latent", "views batch"],
            inputs=[
                Rig.Input("rig", tooltip="The rig that Apply MV-Adapter has, too."),
                *widgets(WIDTH, HEIGHT, SETS),
            ],
            outputs=[
                output(
                    io.Latent,
                    "latent",
                    "A batch of empty latents: all views of the first set, then of the next.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, width: int | None = None, height: int | None = None) -> bool | str:
        """Refuse sides that the MV-Adapter cannot work with."""
        return first_problem(lambda: _check_side(WIDTH, width), lambda: _check_side(HEIGHT, height))

    @classmethod
    def execute(cls, rig: CameraRig, width: int, height: int, sets: int) -> io.NodeOutput:
        """Make the latents on the device where ComfyUI keeps latents."""
        _check_side(WIDTH, width)
        _check_side(HEIGHT, height)
        SETS.check(sets)
        size = (sets * rig.num_views, LATENT_CHANNELS, height // PX_PER_LATENT, width // PX_PER_LATENT)
        return io.NodeOutput({"samples": torch.zeros(size, device=intermediate_device())})


def _check_side(field: Field, value: int | None) -> None:
    field.check(value)
    if value is not None and value % PX_STEP:
        nearest = max(int(field.low), round(value / PX_STEP) * PX_STEP)
        raise ValueError(f"{field.name}={value} must be a multiple of {PX_STEP} px; use {nearest}.")
