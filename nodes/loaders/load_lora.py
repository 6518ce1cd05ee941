"""The node that adds a LoRA to a model, and what both LoRA nodes check and report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io, ui

from ..common.checks import check_choice, check_number, first_problem
from ..common.folders import find_file, fingerprint, list_files
from ..common.progress import show_text
from ..sockets import Model, ModelHandle, make_schema

if TYPE_CHECKING:
    from ...t2mv_core.bundle import LoraHandle

MAX_LORA_STRENGTH = 10.0
MAX_FACTS, MAX_FACT_CHARACTERS = 20, 100  # other trainers write whole configurations into their files


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
                strength_input(),
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
        return lora_problem(lora, strength)

    @classmethod
    def fingerprint_inputs(cls, lora: str | None = None, **others: Any) -> str:
        """The identity of the file: the node runs again exactly when it changes."""
        return "" if lora is None else fingerprint(find_file("loras", lora))

    @classmethod
    def execute(cls, model: ModelHandle, lora: str, strength: float) -> io.NodeOutput:
        """Add the LoRA; the handle that came in stays as it is."""
        import torch

        from ...t2mv_core.lora.files import load_lora

        check_number("strength", strength, -MAX_LORA_STRENGTH, MAX_LORA_STRENGTH)
        path = find_file("loras", lora)
        # Outside ComfyUI's inference mode, whose tensors could never be trained or changed in place later.
        with torch.inference_mode(False), torch.no_grad():
            bundle = load_lora(model.bundle, path, strength)
        report = lora_report(lora, path, bundle.loras[-1])
        show_text(cls, _lora_line(bundle.loras[-1]))
        return io.NodeOutput(ModelHandle(bundle, model.residency), report, ui=ui.PreviewText(report))


def lora_problem(lora: str | None, strength: float | None) -> bool | str:
    """What `validate_inputs` answers: True, or the first thing that is wrong; None is a linked input."""
    return first_problem(
        lambda: check_choice(
            "lora", lora, list_files("loras"), "Put the file into models/loras and refresh."
        ),
        lambda: check_number("strength", strength, -MAX_LORA_STRENGTH, MAX_LORA_STRENGTH),
    )


def strength_input() -> io.WidgetInput:
    """How much of a LoRA is added."""
    return io.Float.Input(
        "strength",
        default=1.0,
        min=-MAX_LORA_STRENGTH,
        max=MAX_LORA_STRENGTH,
        step=0.05,
        tooltip="How much of the LoRA is added: 1 as trained, 0 nothing, below 0 the opposite.",
    )


def _lora_line(handle: LoraHandle) -> str:
    """What decides whether a LoRA is of use, as a line."""
    return f"{handle.num_matched} modules matched, {len(handle.unmatched)} keys not"


def lora_report(lora: str, path: Path, handle: LoraHandle) -> str:
    """What of a LoRA's file was used, what was not and why, and the facts it states of itself."""
    from ...t2mv_core.formats.strict import WeightsFile
    from ...t2mv_core.lora.layouts import describe_unmatched

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
