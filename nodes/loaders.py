"""Nodes that load a model, and LoRAs on top of it. Files that are in use already are not read again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io, ui

from .checks import check_choice, check_number, first_problem
from .folders import ADAPTER_FOLDER, find_file, fingerprint, list_diffusers_folders, list_files
from .memory import load_once, preferred_dtype
from .sockets import Model, ModelHandle, advanced, make_schema

if TYPE_CHECKING:
    import torch

    from ..t2mv_core.lora import LoraHandle

PRESETS = {"toybox": "toybox", "toybox teacher": "toybox-teacher"}  # as shown -> as the core knows it
DIFFUSERS_PREFIX = "diffusers/"
OWN_ADAPTER = "the model's own"
PRECISIONS = ["auto", "float32", "bfloat16", "float16"]
MAX_LORA_STRENGTH = 10.0
MAX_FACTS, MAX_FACT_CHARACTERS = 20, 100  # other trainers write whole configurations into their files


def list_models() -> list[str]:
    """Everything Load Model offers."""
    return [*PRESETS, *(DIFFUSERS_PREFIX + name for name in sorted(list_diffusers_folders()))]


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
            search_aliases=["multiview model", "mv-adapter", "toybox", "text to views"],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=list_models(),
                    default="toybox",
                    tooltip="'toybox' is the bundled few-step model (4 steps), 'toybox teacher' the one it "
                    "was distilled from (25 steps). 'diffusers/…' are models in diffusers' folder format in "
                    "models/diffusers.",
                ),
                advanced(
                    io.Combo.Input(
                        "adapter",
                        options=[OWN_ADAPTER, *list_files(ADAPTER_FOLDER)],
                        default=OWN_ADAPTER,
                        tooltip="MV-Adapter weights: those that lie in the model's folder, or a file from "
                        "models/mvadapter. Has no effect on the toybox models.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "precision",
                        options=PRECISIONS,
                        default="auto",
                        tooltip="Number format of the weights. 'auto' is float32 for the toybox models and "
                        "ComfyUI's choice for others. Choose float32 when pictures turn out to be NaN.",
                    )
                ),
            ],
            outputs=[
                Model.Output("t2mv_model", display_name="model", tooltip="The model, for LoRAs and samplers.")
            ],
        )

    @classmethod
    def validate_inputs(
        cls, model: str | None = None, adapter: str | None = None, precision: str | None = None
    ) -> bool | str:
        """Refuse names that ComfyUI's folders do not have, before anything is read."""
        return first_problem(
            lambda: check_choice("model", model, list_models(), "Choose one of the list."),
            lambda: check_choice(
                "adapter", adapter, [OWN_ADAPTER, *list_files(ADAPTER_FOLDER)], "Choose one of the list."
            ),
            lambda: check_choice("precision", precision, PRECISIONS, "Choose one of the list."),
        )

    @classmethod
    def fingerprint_inputs(cls, model: str | None = None, adapter: str | None = None, **others: Any) -> str:
        """The identity of the files: the node runs again exactly when they change."""
        return "|".join(map(fingerprint, _model_paths(model, adapter)))

    @classmethod
    def execute(cls, model: str, adapter: str, precision: str) -> io.NodeOutput:
        """Load the model, or take the one in use."""
        dtype = _dtype(model, precision)
        paths = _model_paths(model, adapter)
        residency = load_once(
            ("model", model, str(dtype), *map(fingerprint, paths)), lambda: _load_bundle(model, paths, dtype)
        )
        return io.NodeOutput(ModelHandle(residency.owner, residency))


def _model_paths(model: str | None, adapter: str | None) -> list[Path]:
    """The folder of a listed model, then the adapter file if one was chosen."""
    from ..t2mv_core.toybox import TOYBOX_DIR

    folders = {**dict.fromkeys(PRESETS, TOYBOX_DIR)}
    folders.update((DIFFUSERS_PREFIX + name, path) for name, path in list_diffusers_folders().items())
    paths = [folders[model]] if model in folders else []
    if adapter not in (None, OWN_ADAPTER) and model not in PRESETS:
        paths.append(find_file(ADAPTER_FOLDER, adapter))
    return paths


def _dtype(model: str, precision: str) -> torch.dtype:
    import torch

    if precision != "auto":
        return getattr(torch, precision)
    return torch.float32 if model in PRESETS else preferred_dtype()


def _load_bundle(model: str, paths: list[Path], dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    from ..t2mv_core.bundle import ModelSources, load_bundle

    if model in PRESETS:
        sources = ModelSources(PRESETS[model])
    else:
        sources = ModelSources(str(paths[0]), adapter=str(paths[1]) if len(paths) > 1 else None)
    bundle = load_bundle(sources, dtype=dtype)
    return bundle, bundle.modules()


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
            search_aliases=["lora", "reinforcement learning lora", "mvc-zigal", "adapter weights"],
            inputs=[
                Model.Input("model", tooltip="The model, with or without LoRAs."),
                io.Combo.Input(
                    "lora",
                    options=list_files("loras"),
                    tooltip="A safetensors file in models/loras, as written by training.mvczigal.",
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
        report = _lora_report(lora, path, bundle.loras[-1])
        return io.NodeOutput(ModelHandle(bundle, model.residency), report, ui=ui.PreviewText(report))


def _lora_report(lora: str, path: Path, handle: LoraHandle) -> str:
    """What of a LoRA's file was used, and the facts it states of itself."""
    from ..t2mv_core.files import read_safetensors

    _, facts = read_safetensors(path)
    unmatched = ", ".join(handle.unmatched[:5]) + (", …" if len(handle.unmatched) > 5 else "")
    lines = [
        f"{lora} at strength {handle.strength:g}",
        f"matched: {handle.num_matched} modules",
        f"not matched: {len(handle.unmatched)} keys" + (f" ({unmatched})" if unmatched else ""),
    ]
    told = [f"{name}: {value[:MAX_FACT_CHARACTERS]}" for name, value in sorted(facts.items())]
    return "\n".join(lines + told[:MAX_FACTS])
