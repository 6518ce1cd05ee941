"""The node that adds a LoRA to a model, and what both LoRA nodes check and report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io, ui

from ..common.checks import Field, first_problem
from ..common.folders import find_file, fingerprint, list_files
from ..common.memory import usable_for_training
from ..common.progress import show_text
from ..sockets import Model, ModelHandle, make_schema, output

if TYPE_CHECKING:
    from ...t2mv_core.bundle import LoraHandle

LORA = Field(
    "lora", None, "", choices=lambda: list_files("loras"),
    remedy="Put the file into models/loras and refresh.",
)  # fmt: skip
STRENGTH = Field(
    "strength", 1.0, "How much of the LoRA is added: 1 as trained, 0 nothing, below 0 the opposite.",
    -10, 10, step=0.05,
)  # fmt: skip
MAX_FACTS, MAX_FACT_CHARACTERS = 20, 100  # other trainers write whole configurations into their files


class LoRANode(io.ComfyNode):
    """A node with the inputs `lora` and `strength`: what it checks before a run, and when it runs again."""

    @classmethod
    def validate_inputs(cls, lora: str | None = None) -> bool | str:
        """Refuse files that are not in the loras folder."""
        return first_problem(lambda: LORA.check(lora))

    @classmethod
    def fingerprint_inputs(cls, lora: str | None = None, **others: Any) -> str:
        """Return the file's identity, so that the node runs again exactly when it changes."""
        if lora is None:
            return ""
        path = find_file("loras", lora)
        # PEFT's configuration beside it may state the alphas.
        return fingerprint(path) + fingerprint(path.with_name("adapter_config.json"))


class T2MVLoadLoRA(LoRANode):
    """A model and a LoRA file to a model with that LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="T2MVLoadLoRA",
            display_name="Load LoRA (T2MV)",
            category="T2MV/loaders",
            description="Adds a LoRA; several in a row add up. The model that came in is not changed.",
            shows_result=True,
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
                *lora_inputs(
                    "A safetensors file in models/loras: as written by training.mvczigal, or any SDXL LoRA "
                    "in kohya's or diffusers' layout (LCM-LoRA, styles)."
                ),
            ],
            outputs=[
                output(Model, "t2mv_model", "The model with this LoRA added.", "model"),
                report_output(),
            ],
        )

    @classmethod
    def execute(cls, model: ModelHandle, lora: str, strength: float) -> io.NodeOutput:
        """Add the LoRA; the handle that came in stays as it is."""
        from ...t2mv_core.lora.files import load_lora

        STRENGTH.check(strength)
        path = find_file("loras", lora)
        with usable_for_training():
            bundle = load_lora(model.bundle, path, strength)
        return lora_output(cls, ModelHandle(bundle, model.residency), lora, path, bundle.loras[-1])


def lora_inputs(file_tooltip: str) -> list[io.Input]:
    """Return the inputs `lora` and `strength`."""
    return [replace(LORA, tooltip=file_tooltip).widget(), STRENGTH.widget()]


def report_output() -> io.Output:
    """Return the output with the text of `_lora_report`."""
    return output(io.String, "report", "What was matched, and what the file says of itself.")


def lora_output(
    node: type[io.ComfyNode], model: object, lora: str, path: Path, handle: LoraHandle
) -> io.NodeOutput:
    """Return a model and the report on its new LoRA; show on the node whether the LoRA is of use.

    Args:
        node: asks for `io.Hidden.unique_id`.
        model: with the LoRA.
        lora: the file's name as listed.
        path: the file.
        handle: what of it acts.
    """
    from ...t2mv_core.lora.words import describe_lora

    report = _lora_report(lora, path, handle)
    show_text(node, "; ".join(describe_lora(handle)))
    return io.NodeOutput(model, report, ui=ui.PreviewText(report))


def _lora_report(lora: str, path: Path, handle: LoraHandle) -> str:
    """Say what of a LoRA's file was used, what was not and why, and the facts it states of itself."""
    from ...t2mv_core.formats.strict import WeightsFile
    from ...t2mv_core.lora.words import describe_lora

    keys = ", ".join(handle.unmatched[:5]) + (", …" if len(handle.unmatched) > 5 else "")
    lines = [f"{lora} at strength {handle.strength:g}", f"layout: {handle.layout}", *describe_lora(handle)]
    lines += [f"left out: {keys}"] if keys else []
    facts = sorted(WeightsFile(path).metadata.items())[:MAX_FACTS]
    return "\n".join(lines + [f"{name}: {value[:MAX_FACT_CHARACTERS]}" for name, value in facts])
