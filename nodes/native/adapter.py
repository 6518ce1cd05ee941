"""The node that gives ComfyUI's own SDXL model its multiview attention and cameras."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..common.checks import check_choice, check_number, first_problem
from ..common.folders import ADAPTER_FOLDER, find_file, fingerprint, list_files
from ..sockets import Rig, advanced, make_schema
from .checks import MAX_SCALE, check_rig

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

    from ...t2mv_core.cameras import CameraRig

_REMEDY = "Put mvadapter_t2mv_sdxl.safetensors (huggingface.co/huanngzh/mv-adapter) into models/mvadapter."


class T2MVApplyAdapter(io.ComfyNode):
    """MODEL, MV-Adapter file and cameras to a MODEL that draws all views of an object together."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs and outputs."""
        return make_schema(
            node_id="T2MVApplyAdapter",
            display_name="Apply MV-Adapter (T2MV)",
            category="T2MV/native",
            description="Patches ComfyUI's SDXL model with an MV-Adapter: every sampler then draws the views "
            "of a rig together, one per latent of the batch. The model that came in is not changed.",
            search_aliases=["mv-adapter", "multiview sdxl", "multiview model patch", "consistent views"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="An SDXL model of ComfyUI, from Load Checkpoint or Load Diffusion Model; "
                    "LoRAs may come before or after.",
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
                advanced(
                    io.Float.Input(
                        "view_scale",
                        default=1.0,
                        min=0.0,
                        max=MAX_SCALE,
                        step=0.05,
                        tooltip="How strongly the cameras act: 1 as trained, 0 not at all.",
                    )
                ),
                advanced(
                    io.Float.Input(
                        "mv_scale",
                        default=1.0,
                        min=0.0,
                        max=MAX_SCALE,
                        step=0.05,
                        tooltip="How strongly the views look at each other: 1 as trained, 0 not at all.",
                    )
                ),
            ],
            outputs=[
                io.Model.Output(
                    "patched_model",
                    display_name="model",
                    tooltip="The model with the adapter, for any sampler and for Shift SNR.",
                )
            ],
        )

    @classmethod
    def validate_inputs(
        cls, adapter: str | None = None, view_scale: float | None = None, mv_scale: float | None = None
    ) -> bool | str:
        """Refuse files that are not in the folder, and scales that are no numbers."""
        return first_problem(
            lambda: check_choice("adapter", adapter, list_files(ADAPTER_FOLDER), _REMEDY),
            lambda: check_number("view_scale", view_scale, 0.0, MAX_SCALE),
            lambda: check_number("mv_scale", mv_scale, 0.0, MAX_SCALE),
        )

    @classmethod
    def fingerprint_inputs(cls, adapter: str | None = None, **others: Any) -> str:
        """The identity of the file: the node runs again exactly when it changes."""
        return "" if adapter is None else fingerprint(find_file(ADAPTER_FOLDER, adapter))

    @classmethod
    def execute(
        cls, model: ModelPatcher, adapter: str, rig: CameraRig, view_scale: float, mv_scale: float
    ) -> io.NodeOutput:
        """Load the adapter's weights, or take those in use, and patch a clone of the model."""
        from .loading import load_native_adapter
        from .patch import AdapterSettings, apply_adapter, refuse_second_adapter

        check_number("view_scale", view_scale, 0.0, MAX_SCALE)
        check_number("mv_scale", mv_scale, 0.0, MAX_SCALE)
        check_rig(rig)
        refuse_second_adapter(model)
        weights = load_native_adapter(model, find_file(ADAPTER_FOLDER, adapter))
        return io.NodeOutput(apply_adapter(model, weights, rig, AdapterSettings(mv_scale, view_scale)))
