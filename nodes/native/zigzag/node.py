"""The node that makes ComfyUI's own samplers zigzag, for any MODEL."""

from __future__ import annotations

from comfy_api.latest import io

from ...common.checks import check_choice, first_problem
from ...sampling.inputs import COUNTS, MAX_STEPS, SCALES, check_sampling_numbers
from ...sockets import advanced, make_schema
from .loop import SAMPLERS, ZigzagSampler, ZigzagSettings


class T2MVCreateZigzagSampler(io.ComfyNode):
    """A SAMPLER that goes forth, back under weaker guidance, and forth again."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return make_schema(
            node_id="T2MVCreateZigzagSampler",
            display_name="Zigzag Sampler (T2MV)",
            category="T2MV/native",
            description="A sampler for SamplerCustomAdvanced whose first steps go forth, back under weaker "
            "guidance, and forth again (ZMV, Z-Sampling). Works with any model that predicts noise, v or a "
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
    def validate_inputs(
        cls,
        sampler_name: str | None = None,
        zigzag_steps: int | None = None,
        zigzag_repeats: int | None = None,
        inverse_guidance: float | None = None,
        inverse_view_scale: float | None = None,
    ) -> bool | str:
        """Refuse unusable names and numbers before the run."""
        numbers = {
            "zigzag_steps": zigzag_steps,
            "zigzag_repeats": zigzag_repeats,
            "inverse_guidance": inverse_guidance,
            "inverse_view_scale": inverse_view_scale,
        }
        return first_problem(lambda: _check_name(sampler_name), lambda: check_sampling_numbers(numbers))

    @classmethod
    def execute(cls, sampler_name: str, **numbers: float) -> io.NodeOutput:
        """Make the sampler; it runs later, in ComfyUI's hands."""
        _check_name(sampler_name)
        check_sampling_numbers(numbers)
        return io.NodeOutput(ZigzagSampler(ZigzagSettings(sampler_name, **numbers)))


def _check_name(sampler_name: str | None) -> None:
    check_choice("sampler_name", sampler_name, list(SAMPLERS), "Choose one of these.")


def _inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "sampler_name",
            options=list(SAMPLERS),
            default="lcm",
            tooltip="ComfyUI's sampler for the way forth: lcm for LCM models and LoRAs; euler (DDIM without "
            "noise) or euler_ancestral (DDIM with η = 1) for all others.",
        ),
        io.Int.Input(
            "zigzag_steps",
            default=1,
            min=COUNTS["zigzag_steps"][0],
            max=MAX_STEPS,
            tooltip="How many of the first steps are zigzags; 0 is exactly ComfyUI's sampler. At most the "
            "number of steps.",
        ),
        io.Float.Input(
            "inverse_guidance",
            default=SCALES["inverse_guidance"][0],
            min=0.0,
            max=SCALES["inverse_guidance"][1],
            step=0.1,
            tooltip="The guider's cfg on the way back; the gap to its own cfg is what helps. For models that "
            "are sampled with cfg 1: 0 (needs CFGGuider with a negative conditioning). Behind Embed "
            "Guidance: the embedded guidance on the way back.",
        ),
        advanced(
            io.Int.Input(
                "zigzag_repeats",
                default=1,
                min=COUNTS["zigzag_repeats"][0],
                max=COUNTS["zigzag_repeats"][1],
                tooltip="How often a zigzag step goes back and forth; each costs two more evaluations.",
            )
        ),
        advanced(
            io.Float.Input(
                "inverse_view_scale",
                default=SCALES["inverse_view_scale"][0],
                min=0.0,
                max=SCALES["inverse_view_scale"][1],
                step=0.1,
                tooltip="Scale of the camera features on the way back, for models with an MV-Adapter; others "
                "ignore it.",
            )
        ),
    ]
