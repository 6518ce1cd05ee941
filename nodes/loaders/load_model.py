"""The node that loads a model. Files that are in use already are not read again."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..common.checks import Field, first_problem, widgets
from ..common.memory import (
    is_vae_apart,
    load_once,
    preferred_dtype,
    preferred_vae_dtype,
    usable_for_training,
)
from ..common.progress import show_notes
from ..sockets import ESSENTIALS, Model, ModelHandle, make_schema, output
from .model_files import BUNDLED, FILES, OWN, ModelChoice, check_model_choice, find_sources, identify

if TYPE_CHECKING:
    import torch

AUTO, FLOAT8 = "auto", "float8"
PRECISION = Field(
    "precision", AUTO,
    "Number format of the weights. 'auto' is float32 for the toybox models and ComfyUI's choice for "
    "others. Choose float32 when pictures turn out to be NaN. 'float8' keeps the UNet in half the memory "
    "of float16 and computes as 'auto' would: other pictures, slower.",
    choices=(AUTO, "float32", "bfloat16", "float16", FLOAT8), is_advanced=True,
)  # fmt: skip
# Its id in workflow files is "sampler". The choices are the core's schedule.SOLVERS, not imported for speed.
SOLVER = Field(
    "sampler", AUTO,
    "The solver of the denoising steps. 'auto': as the model's files say, LCM for a UNet with a guidance "
    "input, else DDIM. Choose 'lcm' for SDXL with an LCM-LoRA or DMD2, 'ddim-trailing' for SDXL-Turbo, "
    "Lightning and Hyper-SD, checkpoints or LoRAs; guidance is 1 with all of these.",
    choices=(AUTO, "lcm", "ddim", "ddim-trailing"), is_optional=True, is_advanced=True,
    more={"display_name": "solver"},
)  # fmt: skip
SEQUENTIAL_GUIDANCE = Field(
    "sequential_guidance", False,
    "Models with two-pass guidance (SDXL, the toybox teacher) run one pass after the other: half the "
    "memory above the weights, a little slower, the same pictures. Few-step models with a guidance input "
    "have one pass and do not change.",
    is_optional=True, is_advanced=True,
)  # fmt: skip
OPTIONS = (PRECISION, SOLVER, SEQUENTIAL_GUIDANCE)


class T2MVLoadModel(io.ComfyNode):
    """A name to a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="T2MVLoadModel",
            display_name="Load Model (T2MV)",
            category="T2MV/loaders",
            description="Loads a model of text or image to multiview. The toybox models come with this pack.",
            essentials_category=ESSENTIALS,
            search_aliases=[
                "multiview model",
                "mv-adapter",
                "toybox",
                "text to views",
                "lcm-sdxl",
                "sdxl",
                "checkpoint",
            ],
            hidden=[io.Hidden.unique_id],
            inputs=widgets(
                FILES["model"],
                FILES["adapter"],
                PRECISION,
                FILES["unet"],
                FILES["vae"],
                FILES["download"],
                SOLVER,
                SEQUENTIAL_GUIDANCE,
            ),
            outputs=[output(Model, "t2mv_model", "The model, for LoRAs and samplers.", "model")],
        )

    @classmethod
    def validate_inputs(
        cls,
        model: str | None = None,
        adapter: str | None = None,
        unet: str | None = OWN,
        vae: str | None = OWN,
        download: bool | None = False,
    ) -> bool | str:
        """Refuse a combination for which files are missing before anything is read."""
        return first_problem(lambda: check_model_choice(ModelChoice(model, adapter, unet, vae, download)))

    @classmethod
    def fingerprint_inputs(
        cls,
        model: str | None = None,
        adapter: str | None = OWN,
        unet: str | None = OWN,
        vae: str | None = OWN,
        **others: Any,
    ) -> str:
        """Return the identity of the files: the node runs again exactly when they change."""
        return "" if model is None else identify(find_sources(ModelChoice(model, adapter, unet, vae)))

    @classmethod
    def execute(
        cls,
        model: str,
        adapter: str,
        precision: str,
        unet: str = OWN,
        vae: str = OWN,
        download: bool = False,
        sampler: str = AUTO,
        sequential_guidance: bool = False,
    ) -> io.NodeOutput:
        """Load the model, or take the one in use."""
        for option, value in zip(OPTIONS, (precision, sampler, sequential_guidance), strict=True):
            option.check(value)
        choice = ModelChoice(model, adapter, unet, vae, download)
        handle = load_handle(choice, precision, sampler, sequential_guidance)
        show_notes(cls, (*handle.bundle.notices, *handle.bundle.schedule.notices), is_logged=True)
        return io.NodeOutput(handle)


def load_handle(
    choice: ModelChoice, precision: str, solver: str = AUTO, has_sequential_guidance: bool = False
) -> ModelHandle:
    """Load a model, or take the one in use; the arguments are the node's.

    Raises:
        ValueError: a name is unknown, or files are missing, with what to fetch.
    """
    from ...t2mv_core.formats.sources import resolve_sources
    from ...t2mv_core.loading import load_bundle, with_float8_storage, with_schedule_of

    check_model_choice(choice)
    sources, (dtype, vae_dtype) = find_sources(choice), _dtypes(choice.model, precision)
    named = None if solver == AUTO else solver
    resolve_sources(sources)  # fetches what is missing, if allowed: the identity is that of the files

    def load() -> tuple[Any, dict[str, Any]]:
        bundle = load_bundle(replace(sources, solver=named), dtype=dtype, vae_dtype=vae_dtype)
        if precision == FLOAT8:
            bundle = with_float8_storage(bundle)
        return bundle, bundle.modules()

    local = replace(sources, allow_download=False)
    identity = ("model", local, str(dtype), str(vae_dtype), precision == FLOAT8, identify(sources))
    residency = load_once(identity, load)
    # Not part of the identity: these are light copies over the same weights.
    with usable_for_training():
        bundle = with_schedule_of(residency.owner, named)
    return ModelHandle(replace(bundle, has_sequential_guidance=has_sequential_guidance), residency)


def _dtypes(model: str | None, precision: str) -> tuple[torch.dtype, torch.dtype]:
    """Return the number formats of the model and of its VAE."""
    import torch

    if precision not in (AUTO, FLOAT8):
        dtype = getattr(torch, precision)
        return dtype, torch.float32 if is_vae_apart() else dtype  # half takes minutes there
    if model in BUNDLED:
        return torch.float32, torch.float32
    return preferred_dtype(), preferred_vae_dtype()
