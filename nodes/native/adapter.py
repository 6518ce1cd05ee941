"""The node that adds an MV-Adapter and cameras to ComfyUI's own SDXL model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..common.checks import check_choice, check_number, first_problem
from ..common.folders import ADAPTER_FOLDER, find_file, fingerprint, list_files
from ..sockets import Rig, advanced, make_schema
from .comfyui import ModelPatcher
from .patch import apply_adapter

if TYPE_CHECKING:
    from ...t2mv_core.cameras import CameraRig

MAX_SCALE = 10.0
_REMEDY = "Put mvadapter_t2mv_sdxl.safetensors (huggingface.co/huanngzh/mv-adapter) into models/mvadapter."


class T2MVApplyAdapter(io.ComfyNode):
    """A MODEL, an MV-Adapter file and a rig to a MODEL that draws all views of an object together."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs and outputs."""
        return make_schema(
            node_id="T2MVApplyAdapter",
            display_name="Apply MV-Adapter (T2MV)",
            category="T2MV/native",
            description="Adds an MV-Adapter to ComfyUI's SDXL model: every sampler then draws the views of a "
            "rig together, one per latent of the batch. The input model is not changed.",
            search_aliases=["mv-adapter", "multiview sdxl", "multiview model patch", "consistent views"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="An SDXL model of ComfyUI, from Load Checkpoint or Load Diffusion Model. LoRAs "
                    "may come before or after this node.",
                ),
                io.Combo.Input(
                    "adapter",
                    options=list_files(ADAPTER_FOLDER),
                    tooltip="MV-Adapter weights (text to multiview, SDXL) in models/mvadapter.",
                ),
                Rig.Input(
                    "rig",
                    tooltip="The cameras, from Create Camera Rig. The latent's batch must be a multiple of "
                    "their number.",
                ),
                _scale("view_scale", "Strength of the cameras"),
                _scale("mv_scale", "Strength of the attention between the views"),
            ],
            outputs=[
                io.Model.Output(
                    "patched_model",
                    display_name="model",
                    tooltip="The model with the adapter. Connect it to Shift SNR.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, adapter: str | None = None) -> bool | str:
        """Refuse files that are not in the folder."""
        return first_problem(lambda: check_choice("adapter", adapter, list_files(ADAPTER_FOLDER), _REMEDY))

    @classmethod
    def fingerprint_inputs(cls, adapter: str | None = None, **others: Any) -> str:
        """Return the file's identity, so that the node runs again exactly when the file changes."""
        return "" if adapter is None else fingerprint(find_file(ADAPTER_FOLDER, adapter))

    @classmethod
    def execute(
        cls, model: ModelPatcher, adapter: str, rig: CameraRig, view_scale: float, mv_scale: float
    ) -> io.NodeOutput:
        """Patch a clone of the model."""
        check_number("view_scale", view_scale, 0.0, MAX_SCALE)
        check_number("mv_scale", mv_scale, 0.0, MAX_SCALE)
        path = find_file(ADAPTER_FOLDER, adapter)
        return io.NodeOutput(apply_adapter(model, path, rig, mv_scale, view_scale))


def _scale(name: str, label: str) -> io.WidgetInput:
    tooltip = f"{label}: 1 as trained, 0 none."
    return advanced(io.Float.Input(name, default=1.0, min=0.0, max=MAX_SCALE, step=0.05, tooltip=tooltip))
