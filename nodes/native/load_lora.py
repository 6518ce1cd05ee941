"""The node that adds a LoRA to a native model, its multiview parts included."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io, ui

from ..common.checks import check_number
from ..common.folders import find_file, fingerprint, list_files
from ..loaders.load_lora import MAX_LORA_STRENGTH, lora_problem, lora_report, strength_input
from ..sockets import make_schema

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


class T2MVLoadLoRANative(io.ComfyNode):
    """A MODEL and a LoRA file to a MODEL with that LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs and outputs."""
        return make_schema(
            node_id="T2MVLoadLoRANative",
            display_name="Load LoRA, native (T2MV)",
            category="T2MV/native",
            description="Adds a LoRA to ComfyUI's model and to the MV-Adapter on it: what this pack trains. "
            "LoRAs without multiview parts may as well come through ComfyUI's own nodes.",
            search_aliases=["lora", "multiview lora", "mvc-zigal", "reinforcement learning lora"],
            inputs=[
                io.Model.Input("model", tooltip="A model from Apply MV-Adapter, with or without LoRAs."),
                io.Combo.Input(
                    "lora",
                    options=list_files("loras"),
                    tooltip="A safetensors file in models/loras: as written by training.mvczigal, or any "
                    "SDXL LoRA. Parts for the text encoders are left out; ComfyUI's Load LoRA has them.",
                ),
                strength_input(),
            ],
            outputs=[
                io.Model.Output(
                    "patched_model", display_name="model", tooltip="The model with this LoRA added."
                ),
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
    def execute(cls, model: ModelPatcher, lora: str, strength: float) -> io.NodeOutput:
        """Add the LoRA to a clone of the model."""
        from .lora import add_native_lora

        check_number("strength", strength, -MAX_LORA_STRENGTH, MAX_LORA_STRENGTH)
        path = find_file("loras", lora)
        patched, handle = add_native_lora(model, path, strength)
        report = lora_report(lora, path, handle)
        return io.NodeOutput(patched, report, ui=ui.PreviewText(report))
