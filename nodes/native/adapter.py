"""The node that adds an MV-Adapter and cameras to ComfyUI's own SDXL model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..common.checks import Field, first_problem, widgets
from ..common.folders import ADAPTER_FOLDER, find_file, fingerprint, list_files
from ..sockets import Rig, make_schema, output
from .comfyui import ModelPatcher
from .patch import apply_adapter
from .reference import Reference

if TYPE_CHECKING:
    from torch import Tensor

    from ...t2mv_core.cameras import CameraRig

ADAPTER = Field(
    "adapter", None, "MV-Adapter weights for SDXL in models/mvadapter: of text (t2mv) or pictures (i2mv).",
    choices=lambda: list_files(ADAPTER_FOLDER),
    remedy="Put mvadapter_t2mv_sdxl.safetensors (huggingface.co/huanngzh/mv-adapter) into models/mvadapter.",
)  # fmt: skip
VIEW_SCALE = Field(
    "view_scale", 1.0, "Strength of the cameras: 1 as trained, 0 none.", high=10, step=0.05,
    is_advanced=True,
)  # fmt: skip
MV_SCALE = replace(
    VIEW_SCALE, name="mv_scale", tooltip="Strength of the attention between the views: 1 as trained, 0 none."
)

REF_SCALE = replace(
    VIEW_SCALE, name="ref_scale", is_optional=True,
    tooltip="How strongly the views follow the picture, where one is connected: 1 as trained, 0 drops it.",
)  # fmt: skip


class T2MVApplyAdapter(io.ComfyNode):
    """A MODEL, an MV-Adapter, a rig and perhaps a picture to a MODEL that draws all views together."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="T2MVApplyAdapter",
            display_name="Apply MV-Adapter (T2MV)",
            category="T2MV/native",
            description="Adds an MV-Adapter to ComfyUI's SDXL model: every sampler then draws the views of a "
            "rig together, one per latent of the batch. The input model is not changed.",
            is_experimental=True,
            search_aliases=[
                "mv-adapter",
                "multiview sdxl",
                "multiview model patch",
                "consistent views",
                "image to multiview",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="An SDXL model of ComfyUI, from Load Checkpoint or Load Diffusion Model. LoRAs "
                    "may come before or after this node.",
                ),
                ADAPTER.widget(),
                Rig.Input(
                    "rig",
                    tooltip="The cameras, from Create Camera Rig. The latent's batch must be a multiple of "
                    "their number.",
                ),
                *widgets(VIEW_SCALE, MV_SCALE),
                io.Latent.Input(
                    "reference",
                    optional=True,
                    tooltip="For an MV-Adapter of image to multiview: the picture, from Read Reference Image "
                    "and VAE Encode, of the views' size. One for all sets, or one per set.",
                ),
                REF_SCALE.widget(),
            ],
            outputs=[
                output(
                    io.Model, "patched_model", "The model with the adapter. Connect it to Shift SNR.", "model"
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, adapter: str | None = None) -> bool | str:
        """Refuse files that are not in the folder."""
        return first_problem(lambda: ADAPTER.check(adapter))

    @classmethod
    def fingerprint_inputs(cls, adapter: str | None = None, **others: Any) -> str:
        """Return the file's identity, so that the node runs again exactly when the file changes."""
        return "" if adapter is None else fingerprint(find_file(ADAPTER_FOLDER, adapter))

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        adapter: str,
        rig: CameraRig,
        view_scale: float,
        mv_scale: float,
        reference: dict[str, Tensor] | None = None,
        ref_scale: float = 1.0,
    ) -> io.NodeOutput:
        """Patch a clone of the model."""
        for field, value in ((VIEW_SCALE, view_scale), (MV_SCALE, mv_scale), (REF_SCALE, ref_scale)):
            field.check(value)
        path = find_file(ADAPTER_FOLDER, adapter)
        pictures = None if reference is None else Reference(reference["samples"], ref_scale)
        return io.NodeOutput(apply_adapter(model, path, rig, mv_scale, view_scale, pictures))
