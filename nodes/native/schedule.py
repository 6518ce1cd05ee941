"""The node that shifts a MODEL's noise schedule, and the kinds of ComfyUI's noise schedules."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..common.checks import Field, first_problem, widgets
from ..sockets import make_schema, output
from .comfyui import ModelPatcher, lcm_sampling, model_sampling

if TYPE_CHECKING:
    from .zigzag.sigma_space import Family

OWN_SAMPLING, LCM_SAMPLING = "the model's own", "lcm"
SAMPLING = Field(
    "sampling", OWN_SAMPLING,
    "'lcm' for LCM-SDXL and LCM-LoRA; it replaces ComfyUI's ModelSamplingDiscrete, which would undo the "
    "shift behind this node. 'the model's own' for all others.",
    choices=(OWN_SAMPLING, LCM_SAMPLING),
)  # fmt: skip
SCALE = Field(
    "scale", 8.0,
    "Divisor of the signal-to-noise ratio at the last timestep: 8 as MV-Adapter was trained, 1 for no "
    "change.",
    0.01, 1000, step=0.5, is_advanced=True,
)  # fmt: skip


class T2MVShiftSNR(io.ComfyNode):
    """A MODEL to a MODEL whose noise schedule has more noise (docs/method.md, section 2)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="T2MVShiftSNR",
            display_name="Shift SNR (T2MV)",
            category="T2MV/native",
            description="The noise schedule that MV-Adapter was trained with: divides the signal-to-noise "
            "ratio, fully at the last timestep, not at all at the first. Without it the views disagree.",
            is_experimental=True,
            search_aliases=["snr shift", "noise schedule", "model sampling", "multiview schedule", "lcm"],
            inputs=[
                io.Model.Input("model", tooltip="An SDXL model, with or without an MV-Adapter."),
                *widgets(SAMPLING, SCALE),
            ],
            outputs=[
                output(
                    io.Model,
                    "shifted_model",
                    "The model with the shifted schedule, for schedulers and samplers.",
                    "model",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, sampling: str | None = None) -> bool | str:
        """Refuse an unknown kind of sampling."""
        return first_problem(lambda: SAMPLING.check(sampling))

    @classmethod
    def execute(cls, model: ModelPatcher, sampling: str, scale: float) -> io.NodeOutput:
        """Set the shifted schedule on a clone of the model."""
        SAMPLING.check(sampling)
        SCALE.check(scale)
        base = lcm_sampling(model) if sampling == LCM_SAMPLING else model.get_model_object("model_sampling")
        patched = model.clone()
        patched.add_object_patch("model_sampling", shift_sampling(base, scale))
        return io.NodeOutput(patched)


def shift_sampling(base: Any, scale: float) -> torch.nn.Module:
    """Return a copy of one of ComfyUI's discrete noise schedules with its SNR shifted.

        log SNR'(t) = log SNR(t) - t/(T-1)·log scale,   SNR = 1/σ²

    Args:
        base: schedule of all T timesteps, or of a distilled model's every (T/n)-th.
        scale: divisor of the SNR at the last timestep, > 0.

    Raises:
        ValueError: a schedule that is not over SDXL's discrete timesteps.
    """
    kinds = model_sampling
    others = (kinds.ModelSamplingDiscreteEDM, kinds.StableCascadeSampling)
    if not isinstance(base, kinds.ModelSamplingDiscrete) or isinstance(base, others):
        raise ValueError(
            f"This model's noise schedule is {type(base).__name__}, which has no discrete timesteps to "
            "shift. Connect an SDXL model without a ModelSampling node for other models."
        )
    sigmas, num_steps = base.sigmas.cpu().double(), base.num_timesteps  # Apple's devices have no float64
    stride = num_steps // len(sigmas)
    timesteps = torch.arange(1, len(sigmas) + 1, dtype=torch.float64) * stride - 1
    shifted = copy.deepcopy(base)
    if not isinstance(base, _OwnSigmas):
        for name in ("sigmas", "log_sigmas"):
            delattr(shifted, name)
        shifted.__class__ = type(type(base).__name__, (_OwnSigmas, type(base)), {})
    shifted.set_sigmas(sigmas * scale ** (0.5 * timesteps / (num_steps - 1)))
    return shifted


class _OwnSigmas:
    """Sigmas that are no buffers, for a schedule among the object patches of a model.

    A dynamic patcher saves buffers when it loads a model and restores them by name at the next load: by then
    another branch's schedule may have that name, and would get this one's sigmas (ComfyUI issue 16490).
    """

    def set_sigmas(self, sigmas: Tensor) -> None:
        """Set the schedule as ComfyUI's method of this name does."""
        self.sigmas, self.log_sigmas = sigmas.float(), sigmas.log().float()

    def register_buffer(self, *args: Any, **named: Any) -> None:
        """Ignore the buffers of another schedule, which a patcher puts back by name."""


def read_family(base: Any) -> Family:
    """Return what the network of a model with this "model_sampling" predicts, for a zag.

    Raises:
        ValueError: a kind of model whose zag has not been derived.
    """
    kinds = model_sampling
    names = [kind.__name__ for kind in type(base).__mro__ if kind.__module__ == kinds.__name__]
    # By name, because older ComfyUIs lack some: they inherit from EPS or CONST and predict something else.
    if not any(name in ("EDM", "X0") or name.startswith("IMG_TO_IMG") for name in names):
        if isinstance(base, kinds.CONST):
            return "flow"
        if isinstance(base, kinds.EPS):
            return "velocity" if isinstance(base, kinds.V_PREDICTION) else "noise"
    raise ValueError(
        f"The zigzag sampler cannot go back with this kind of model ({', '.join(names) or 'unknown'}). It "
        "works with models that predict noise, v or a flow (SD, SDXL, SD3, Flux, …). Use zigzag_steps=0 or "
        "another sampler."
    )
