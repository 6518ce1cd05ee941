"""The node that shifts a MODEL's noise schedule as multiview models were trained with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..common.checks import check_choice, check_number, first_problem
from ..sockets import advanced, make_schema

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from torch import nn

OWN_SAMPLING, LCM_SAMPLING = "the model's own", "lcm"
SAMPLINGS = [OWN_SAMPLING, LCM_SAMPLING]
DEFAULT_SCALE = 8.0  # the published MV-Adapter's
MIN_SCALE, MAX_SCALE = 0.01, 1000.0


class T2MVShiftSNR(io.ComfyNode):
    """A MODEL to a MODEL whose noise schedule has more noise, as METHOD section 2 says."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs and outputs."""
        return make_schema(
            node_id="T2MVShiftSNR",
            display_name="Shift SNR (T2MV)",
            category="T2MV/native",
            description="The multiview noise schedule: divides the signal-to-noise ratio, fully at the last "
            "timestep, not at all at the first. MV-Adapter was trained with it; without it views disagree.",
            search_aliases=["snr shift", "noise schedule", "model sampling", "multiview schedule", "lcm"],
            inputs=[
                io.Model.Input("model", tooltip="An SDXL model, with or without the MV-Adapter."),
                io.Combo.Input(
                    "sampling",
                    options=SAMPLINGS,
                    default=OWN_SAMPLING,
                    tooltip="'lcm' for LCM-SDXL and LCM-LoRA, as ComfyUI's ModelSamplingDiscrete does (that "
                    "node is then not needed; after this one it would undo the shift). Otherwise 'the "
                    "model's own'.",
                ),
                advanced(
                    io.Float.Input(
                        "scale",
                        default=DEFAULT_SCALE,
                        min=MIN_SCALE,
                        max=MAX_SCALE,
                        step=0.5,
                        tooltip="Divisor of the signal-to-noise ratio at the last timestep: 8 as MV-Adapter "
                        "was trained, 1 leaves the schedule alone.",
                    )
                ),
            ],
            outputs=[
                io.Model.Output(
                    "shifted_model",
                    display_name="model",
                    tooltip="The model with the shifted schedule; schedulers and samplers follow it.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, sampling: str | None = None, scale: float | None = None) -> bool | str:
        """Refuse an unknown kind of sampling, and scales that are no numbers."""
        return first_problem(
            lambda: check_choice("sampling", sampling, SAMPLINGS, "Choose one of the list."),
            lambda: check_number("scale", scale, MIN_SCALE, MAX_SCALE),
        )

    @classmethod
    def execute(cls, model: ModelPatcher, sampling: str, scale: float) -> io.NodeOutput:
        """Give a clone of the model a schedule of its own."""
        check_choice("sampling", sampling, SAMPLINGS, "Choose one of the list.")
        check_number("scale", scale, MIN_SCALE, MAX_SCALE)
        base = _lcm_sampling(model) if sampling == LCM_SAMPLING else model.get_model_object("model_sampling")
        patched = model.clone()
        patched.add_object_patch("model_sampling", shifted_sampling(base, scale))
        return io.NodeOutput(patched)


def shifted_sampling(model_sampling: nn.Module, scale: float) -> nn.Module:
    """A copy of one of ComfyUI's discrete noise schedules with its SNR shifted.

        log SNR'(t) = log SNR(t) - t/(T-1)·log scale,   SNR = 1/σ²

    Args:
        model_sampling: of all T timesteps, or of a distilled model's every (T/n)-th.
        scale: divisor of the SNR at the last timestep, > 0.

    Raises:
        ValueError: a schedule that is not over SDXL's discrete timesteps.
    """
    import copy

    import torch
    from comfy.model_sampling import ModelSamplingDiscrete, ModelSamplingDiscreteEDM, StableCascadeSampling

    is_discrete = isinstance(model_sampling, ModelSamplingDiscrete)
    if not is_discrete or isinstance(model_sampling, (ModelSamplingDiscreteEDM, StableCascadeSampling)):
        raise ValueError(
            f"This model's noise schedule is {type(model_sampling).__name__}, which has no discrete "
            "timesteps to shift; connect an SDXL model without a ModelSampling node for other models."
        )
    sigmas, num_steps = model_sampling.sigmas.double(), model_sampling.num_timesteps
    stride = num_steps // len(sigmas)
    timesteps = torch.arange(1, len(sigmas) + 1, dtype=torch.float64, device=sigmas.device) * stride - 1
    shifted = copy.deepcopy(model_sampling)
    shifted.set_sigmas(sigmas * scale ** (0.5 * timesteps / (num_steps - 1)))
    return shifted


def _lcm_sampling(model: ModelPatcher) -> Any:
    """ComfyUI's schedule of latent consistency models, as its own node makes it."""
    from comfy_extras.nodes_model_advanced import LCM, ModelSamplingDiscreteDistilled

    class ModelSamplingLCM(ModelSamplingDiscreteDistilled, LCM):
        """Every 20th timestep, and LCM's boundary scalings."""

    return ModelSamplingLCM(model.model.model_config)
