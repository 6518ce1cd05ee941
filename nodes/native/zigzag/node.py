"""The node that makes the zigzag SAMPLER, and the form in which ComfyUI runs it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ....t2mv_core.defaults import DEFAULTS
from ...common.checks import Field, check_fields, first_problem, widgets
from ...sampling.inputs import (
    INVERSE_GUIDANCE,
    INVERSE_REF_SCALE,
    INVERSE_VIEW_SCALE,
    ZIGZAG_REPEATS,
    ZIGZAG_STEPS,
)
from ...sockets import make_schema, output
from ..comfyui import KSAMPLER
from .loop import SAMPLERS, ZigzagSettings, sample_zigzag

SAMPLER_NAME = Field(
    "sampler_name", "lcm",
    "ComfyUI's sampler for the steps forward: lcm for LCM models and LoRAs, euler (DDIM without noise) or "
    "euler_ancestral (DDIM with η = 1) for all others.",
    choices=tuple(SAMPLERS),
)  # fmt: skip
# The model is not known before the run, so these have no number for the model's own.
PUBLISHED = DEFAULTS["lcm-sdxl"]
FIELDS = (
    SAMPLER_NAME,
    replace(
        ZIGZAG_STEPS, default=PUBLISHED.zigzag_steps, own=None,
        tooltip="Number of first steps that zigzag, at most the number of steps; 0 is exactly ComfyUI's "
        "sampler.",
    ),
    replace(
        INVERSE_GUIDANCE, default=PUBLISHED.inverse_guidance_scale, own=None, is_advanced=False,
        tooltip="The guider's cfg on the way back; the gap to its cfg on the way forward is what helps. For "
        "models sampled with cfg 1: 0 (needs CFGGuider with a negative conditioning). Behind Embed Guidance: "
        "the embedded guidance on the way back.",
    ),
    replace(
        ZIGZAG_REPEATS,
        tooltip="How often a zigzag step goes back and forward; each time costs two more evaluations.",
    ),
    replace(
        INVERSE_VIEW_SCALE, default=PUBLISHED.inverse_view_scale, own=None,
        tooltip="Scale of the camera features on the way back, for models with an MV-Adapter; others ignore "
        f"it. {PUBLISHED.inverse_view_scale:g} as published; 0 drops the cameras there, which was not tried "
        "with SDXL and LCM-SDXL.",
    ),
    replace(
        INVERSE_REF_SCALE,
        tooltip="Strength of the picture on the way back, for an MV-Adapter of image to multiview; others "
        "ignore it. 0 drops the picture there.",
    ),
)  # fmt: skip


class T2MVCreateZigzagSampler(io.ComfyNode):
    """A SAMPLER whose first steps go forward, back under weaker guidance, and forward again."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="T2MVCreateZigzagSampler",
            display_name="Zigzag Sampler (T2MV)",
            category="T2MV/native",
            description="A sampler for SamplerCustomAdvanced whose first steps go forward, back under weaker "
            "guidance, and forward again (ZMV, Z-Sampling). Works with any model that predicts noise, v or a "
            "flow, with and without multiview.",
            is_experimental=True,
            search_aliases=["zmv", "z-sampling", "zigzag diffusion", "lcm sampler", "self-reflection"],
            inputs=widgets(*FIELDS),
            outputs=[output(io.Sampler, "sampler", "For SamplerCustomAdvanced or SamplerCustom.")],
        )

    @classmethod
    def validate_inputs(cls, sampler_name: str | None = None) -> bool | str:
        """Refuse unknown samplers."""
        return first_problem(lambda: SAMPLER_NAME.check(sampler_name))

    @classmethod
    def execute(cls, sampler_name: str, **numbers: float) -> io.NodeOutput:
        """Make the sampler, which ComfyUI runs later."""
        check_fields(FIELDS, {"sampler_name": sampler_name, **numbers})
        return io.NodeOutput(ZigzagSampler(ZigzagSettings(sampler_name, **numbers)))


class ZigzagSampler(KSAMPLER):
    """A SAMPLER whose progress counts evaluations, zags included."""

    def __init__(self, settings: ZigzagSettings) -> None:
        super().__init__(sample_zigzag, {"settings": settings})

    def sample(
        self, model: Any, sigmas: Tensor, extra_args: Any, callback: Any, *others: Any, **named: Any
    ) -> Tensor:
        """Sample as KSAMPLER does; the callback gets the number of evaluations as the number of steps."""
        settings, num_steps = self.extra_options["settings"], len(sigmas) - 1
        # Two passes under guidance count as one evaluation.
        total = num_steps + 2 * min(settings.zigzag_steps, num_steps) * settings.zigzag_repeats
        counted = callback and (lambda index, denoised, x, _: callback(index, denoised, x, total))
        return super().sample(model, sigmas, extra_args, counted, *others, **named)
