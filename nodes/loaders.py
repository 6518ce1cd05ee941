"""Nodes that load a model, and LoRAs on top of it. Files that are in use already are not read again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io, ui

from .checks import check_choice, check_number, first_problem
from .folders import ADAPTER_FOLDER, find_file, fingerprint, list_files
from .memory import load_once, preferred_dtype
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
from .node_text import show_text
from .sockets import Model, ModelHandle, advanced, make_schema

if TYPE_CHECKING:
    import torch

    from ..t2mv_core.lora import LoraHandle

FLOAT8 = "float8"
PRECISIONS = ["auto", "float32", "bfloat16", "float16", FLOAT8]
AUTO = "auto"
SAMPLERS = [AUTO, "lcm", "ddim", "ddim-trailing"]  # the core's schedule.SAMPLER_NAMES, not imported for speed
MAX_LORA_STRENGTH = 10.0
MAX_FACTS, MAX_FACT_CHARACTERS = 20, 100  # other trainers write whole configurations into their files


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
                        options=SAMPLERS,
                        default=AUTO,
                        optional=True,
                        tooltip="How the model is sampled. 'auto': as its files say, LCM for a UNet with a "
                        "guidance input, else DDIM. Choose 'lcm' for SDXL with an LCM-LoRA or DMD2, "
                        "'ddim-trailing' for SDXL-Turbo, Lightning and Hyper-SD, checkpoints or LoRAs; "
                        "guidance is 1 with all of these.",
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
    ) -> bool | str:
        """Refuse names that ComfyUI's folders do not have, and missing files, before anything is read."""
        return first_problem(
            lambda: check_choice("precision", precision, PRECISIONS, "Choose one of the list."),
            lambda: check_choice("sampler", sampler, SAMPLERS, "Choose one of the list."),
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
    ) -> io.NodeOutput:
        """Load the model, or take the one in use."""
        from ..t2mv_core.bundle import load_bundle
        from ..t2mv_core.memory import with_float8_storage
        from ..t2mv_core.sources import resolve_sources

        check_choice("precision", precision, PRECISIONS, "Choose one of the list.")
        check_choice("sampler", sampler, SAMPLERS, "Choose one of the list.")
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
        # Not a part of the identity: other samplers are light copies over the same weights.
        bundle = residency.owner if sampler == AUTO else residency.owner.sampled_as(sampler)
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


class T2MVLoadLoRA(io.ComfyNode):
    """A model and a LoRA file to a model with that LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return make_schema(
            node_id="T2MVLoadLoRA",
            display_name="Load LoRA (T2MV)",
            category="T2MV/loaders",
            description="Adds a LoRA; several in a row add up. The model that came in is not changed.",
            search_aliases=[
                "lora",
                "reinforcement learning lora",
                "mvc-zigal",
                "adapter weights",
                "lcm-lora",
            ],
            hidden=[io.Hidden.unique_id],
            inputs=[
                Model.Input("model", tooltip="The model, with or without LoRAs."),
                io.Combo.Input(
                    "lora",
                    options=list_files("loras"),
                    tooltip="A safetensors file in models/loras: as written by training.mvczigal, or any "
                    "SDXL LoRA in kohya's or diffusers' layout (LCM-LoRA, styles).",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-MAX_LORA_STRENGTH,
                    max=MAX_LORA_STRENGTH,
                    step=0.05,
                    tooltip="How much of the LoRA is added: 1 as trained, 0 nothing, below 0 the opposite.",
                ),
            ],
            outputs=[
                Model.Output("t2mv_model", display_name="model", tooltip="The model with this LoRA added."),
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip="What was matched, and what the file says of itself.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, lora: str | None = None, strength: float | None = None) -> bool | str:
        """Refuse files that are not in the loras folder, and strengths that are not numbers."""
        return first_problem(
            lambda: check_choice(
                "lora", lora, list_files("loras"), "Put the file into models/loras and refresh."
            ),
            lambda: check_number("strength", strength, -MAX_LORA_STRENGTH, MAX_LORA_STRENGTH),
        )

    @classmethod
    def fingerprint_inputs(cls, lora: str | None = None, **others: Any) -> str:
        """The identity of the file: the node runs again exactly when it changes."""
        return "" if lora is None else fingerprint(find_file("loras", lora))

    @classmethod
    def execute(cls, model: ModelHandle, lora: str, strength: float) -> io.NodeOutput:
        """Add the LoRA; the handle that came in stays as it is."""
        import torch

        from ..t2mv_core.lora import load_lora

        check_number("strength", strength, -MAX_LORA_STRENGTH, MAX_LORA_STRENGTH)
        path = find_file("loras", lora)
        # Outside ComfyUI's inference mode, whose tensors could never be trained or changed in place later.
        with torch.inference_mode(False), torch.no_grad():
            bundle = load_lora(model.bundle, path, strength)
        report = lora_report(lora, path, bundle.loras[-1])
        show_text(cls, _lora_line(bundle.loras[-1]))
        return io.NodeOutput(ModelHandle(bundle, model.residency), report, ui=ui.PreviewText(report))


def _lora_line(handle: LoraHandle) -> str:
    """What decides whether a LoRA is of use, as a line."""
    return f"{handle.num_matched} modules matched, {len(handle.unmatched)} keys not"


def lora_report(lora: str, path: Path, handle: LoraHandle) -> str:
    """What of a LoRA's file was used, what was not and why, and the facts it states of itself."""
    from ..t2mv_core.lora_layouts import describe_unmatched
    from ..t2mv_core.weights import WeightsFile

    keys = ", ".join(handle.unmatched[:5]) + (", …" if len(handle.unmatched) > 5 else "")
    lines = [
        f"{lora} at strength {handle.strength:g}",
        f"layout: {handle.layout}",
        f"matched: {handle.num_matched} modules",
        f"not matched: {len(handle.unmatched)} keys" + (f" ({keys})" if keys else ""),
        *(f"  {line}" for line in describe_unmatched(handle.unmatched)),
    ]
    facts = sorted(WeightsFile(path).metadata.items())
    told = [f"{name}: {value[:MAX_FACT_CHARACTERS]}" for name, value in facts]
    return "\n".join(lines + told[:MAX_FACTS])
