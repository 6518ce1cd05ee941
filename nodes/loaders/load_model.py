"""The node that loads a model. Files that are in use already are not read again."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..common.checks import check_boolean, check_choice, first_problem
from ..common.folders import ADAPTER_FOLDER, list_files
from ..common.memory import load_once, preferred_dtype
from ..sockets import Model, ModelHandle, advanced, make_schema
from .model_files import (
    BUNDLED,
    OWN,
    UNET_FOLDER,
    VAE_FOLDER,
    ModelChoice,
    check_model_choice,
    find_sources,
    identify,
    list_models,
)

if TYPE_CHECKING:
    import torch

FLOAT8 = "float8"
PRECISIONS = ["auto", "float32", "bfloat16", "float16", FLOAT8]
AUTO = "auto"
SOLVERS = [AUTO, "lcm", "ddim", "ddim-trailing"]  # the core's schedule.SOLVERS, not imported for speed


class T2MVLoadModel(io.ComfyNode):
    """A name to a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return make_schema(
            node_id="T2MVLoadModel",
            display_name="Load Model (T2MV)",
            category="T2MV/loaders",
            description="Loads a text-to-multiview model. The toybox models come with this pack.",
            search_aliases=[
                "multiview model",
                "mv-adapter",
                "toybox",
                "text to views",
                "lcm-sdxl",
                "sdxl",
                "checkpoint",
            ],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=list_models(),
                    default="toybox",
                    tooltip="'toybox' is the bundled few-step model (4 steps), 'toybox teacher' the one it "
                    "was distilled from (25 steps). 'LCM-SDXL' (8 steps) and 'SDXL' are the published "
                    "weights, looked for in ComfyUI's folders. 'diffusers/…' are models in diffusers' folder "
                    "format in models/diffusers, 'checkpoints/…' single-file SDXL checkpoints in "
                    "models/checkpoints.",
                ),
                _part_input(
                    "adapter",
                    ADAPTER_FOLDER,
                    "MV-Adapter weights: those that lie with the model, for SDXL models "
                    "mvadapter_t2mv_sdxl.safetensors, or another file from models/mvadapter. Has no effect "
                    "on the toybox models.",
                ),
                advanced(
                    io.Combo.Input(
                        "precision",
                        options=PRECISIONS,
                        default="auto",
                        tooltip="Number format of the weights. 'auto' is float32 for the toybox models and "
                        "ComfyUI's choice for others. Choose float32 when pictures turn out to be NaN. "
                        "'float8' keeps the UNet in half the memory of float16 and computes as 'auto' would: "
                        "other pictures, slower.",
                    )
                ),
                _part_input(
                    "unet",
                    UNET_FOLDER,
                    "Another UNet than the model's, from models/diffusion_models, in diffusers' or the "
                    "original layout: LCM-SDXL's, for example, which needs few steps.",
                    optional=True,
                ),
                _part_input(
                    "vae",
                    VAE_FOLDER,
                    "Another VAE than the model's, from models/vae: for SDXL in float16 choose "
                    "sdxl-vae-fp16-fix, the original one gives black pictures there.",
                    optional=True,
                ),
                advanced(
                    io.Boolean.Input(
                        "download",
                        default=False,
                        optional=True,
                        tooltip="Whether files of LCM-SDXL and SDXL that are neither in ComfyUI's folders "
                        "nor in the Hugging Face cache may be fetched (8 GB). Off: nothing touches the "
                        "network.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "sampler",
                        options=SOLVERS,
                        default=AUTO,
                        optional=True,
                        tooltip="How the model is sampled. 'auto': as its files say, LCM for a UNet with a "
                        "guidance input, else DDIM. Choose 'lcm' for SDXL with an LCM-LoRA or DMD2, "
                        "'ddim-trailing' for SDXL-Turbo, Lightning and Hyper-SD, checkpoints or LoRAs; "
                        "guidance is 1 with all of these.",
                    )
                ),
                advanced(
                    io.Boolean.Input(
                        "sequential_guidance",
                        default=False,
                        optional=True,
                        tooltip="Models with two-pass guidance (SDXL, the toybox teacher) run one pass after "
                        "the other: half the memory above the weights, a little slower, the same pictures. "
                        "Few-step models with a guidance input have one pass and do not change.",
                    )
                ),
            ],
            outputs=[
                Model.Output("t2mv_model", display_name="model", tooltip="The model, for LoRAs and samplers.")
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        model: str | None = None,
        adapter: str | None = None,
        precision: str | None = None,
        unet: str | None = OWN,
        vae: str | None = OWN,
        download: bool | None = False,
        sampler: str | None = AUTO,
        sequential_guidance: bool | None = False,
    ) -> bool | str:
        """Refuse names that ComfyUI's folders do not have, and missing files, before anything is read."""
        return first_problem(
            lambda: check_choice("precision", precision, PRECISIONS, "Choose one of the list."),
            lambda: check_choice("sampler", sampler, SOLVERS, "Choose one of the list."),
            lambda: check_boolean("sequential_guidance", sequential_guidance),
            lambda: check_model_choice(ModelChoice(model, adapter, unet, vae, download)),
        )

    @classmethod
    def fingerprint_inputs(
        cls,
        model: str | None = None,
        adapter: str | None = OWN,
        unet: str | None = OWN,
        vae: str | None = OWN,
        **others: Any,
    ) -> str:
        """The identity of the files: the node runs again exactly when they change."""
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
        from ...t2mv_core.bundle import MemorySettings
        from ...t2mv_core.formats.sources import resolve_sources
        from ...t2mv_core.loading import load_bundle, with_float8_storage

        check_choice("precision", precision, PRECISIONS, "Choose one of the list.")
        check_choice("sampler", sampler, SOLVERS, "Choose one of the list.")
        check_boolean("sequential_guidance", sequential_guidance)
        choice = ModelChoice(model, adapter, unet, vae, download)
        check_model_choice(choice)
        sources, dtype = find_sources(choice), _dtype(model, precision)
        resolve_sources(
            sources
        )  # fetches what is missing, if that is allowed: the identity is that of the files

        def load() -> tuple[Any, dict[str, Any]]:
            bundle = load_bundle(sources, dtype=dtype)
            if precision == FLOAT8:
                bundle = with_float8_storage(bundle)
            return bundle, bundle.modules()

        residency = load_once(
            (
                "model",
                replace(sources, allow_download=False),
                str(dtype),
                precision == FLOAT8,
                identify(sources),
            ),
            load,
        )
        # Not part of the identity: these are light copies over the same weights.
        bundle = residency.owner if sampler == AUTO else residency.owner.with_solver(sampler)
        bundle = replace(bundle, memory=MemorySettings(sequential_guidance))
        return io.NodeOutput(ModelHandle(bundle, residency))


def _part_input(name: str, folder: str, tooltip: str, optional: bool = False) -> io.WidgetInput:
    """A choice between the model's own part and the files of a folder."""
    options = [OWN, *list_files(folder)]
    return advanced(io.Combo.Input(name, options=options, default=OWN, optional=optional, tooltip=tooltip))


def _dtype(model: str, precision: str) -> torch.dtype:
    import torch

    if precision not in ("auto", FLOAT8):
        return getattr(torch, precision)
    if model in BUNDLED:
        return torch.float32
    preferred = preferred_dtype()
    return preferred if preferred.itemsize > 1 else torch.bfloat16  # fp8 is for ComfyUI's own layers
