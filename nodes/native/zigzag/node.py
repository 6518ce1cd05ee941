"""The node that makes the zigzag SAMPLER, and the form in which ComfyUI runs it."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ...common.checks import check_choice, first_problem
from ...sampling.inputs import COUNTS, SCALES, check_sampling_numbers
from ...sockets import advanced, make_schema
from ..comfyui import KSAMPLER
from .loop import SAMPLERS, ZigzagSettings, sample_zigzag


class T2MVCreateZigzagSampler(io.ComfyNode):
    """A SAMPLER whose first steps go forward, back under weaker guidance, and forward again."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs and outputs."""
        return make_schema(
            node_id="T2MVCreateZigzagSampler",
            display_name="Zigzag Sampler (T2MV)",
            category="T2MV/native",
            description="A sampler for SamplerCustomAdvanced whose first steps go forward, back under weaker "
            "guidance, and forward again (ZMV, Z-Sampling). Works with any model that predicts noise, v or a "
            "flow, with and without multiview.",
            search_aliases=["zmv", "z-sampling", "zigzag diffusion", "lcm sampler", "self-reflection"],
            inputs=_inputs(),
            outputs=[
                io.Sampler.Output(
                    "sampler", display_name="sampler", tooltip="For SamplerCustomAdvanced or SamplerCustom."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, sampler_name: str | None = None) -> bool | str:
        """Refuse unknown samplers."""
        return first_problem(lambda: _check_name(sampler_name))

    @classmethod
    def execute(cls, sampler_name: str, **numbers: float) -> io.NodeOutput:
        """Make the sampler, which ComfyUI runs later."""
        _check_name(sampler_name)
        check_sampling_numbers(numbers)
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


def _check_name(sampler_name: str | None) -> None:
    check_choice("sampler_name", sampler_name, list(SAMPLERS), "Choose one of these.")


def _inputs() -> list[io.Input]:
    def count(name: str, tooltip: str) -> io.WidgetInput:
        low, high = COUNTS[name]
        return io.Int.Input(name, default=1, min=low, max=high, tooltip=tooltip)

    def scale(name: str, tooltip: str) -> io.WidgetInput:
        default, high = SCALES[name]
        return io.Float.Input(name, default=default, min=0.0, max=high, step=0.1, tooltip=tooltip)

    return [
        io.Combo.Input(
            "sampler_name",
            options=list(SAMPLERS),
            default="lcm",
            tooltip="ComfyUI's sampler for the steps forward: lcm for LCM models and LoRAs, euler (DDIM "
            "without noise) or euler_ancestral (DDIM with η = 1) for all others.",
        ),
        count(
            "zigzag_steps",
            "Number of first steps that zigzag, at most the number of steps; 0 is exactly ComfyUI's sampler.",
        ),
        scale(
            "inverse_guidance",
            "The guider's cfg on the way back; the gap to its cfg on the way forward is what helps. For "
            "models sampled with cfg 1: 0 (needs CFGGuider with a negative conditioning). Behind Embed "
            "Guidance: the embedded guidance on the way back.",
        ),
        advanced(
            count(
                "zigzag_repeats",
                "How often a zigzag step goes back and forward; each time costs two more evaluations.",
            )
        ),
        advanced(
            scale(
                "inverse_view_scale",
                "Scale of the camera features on the way back, for models with an MV-Adapter; others ignore "
                "it.",
            )
        ),
    ]
