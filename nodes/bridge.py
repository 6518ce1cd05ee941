"""The node that makes a T2MV_MODEL of what ComfyUI has loaded, without a second copy of the weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from .checks import check_choice, first_problem
from .folders import ADAPTER_FOLDER, find_file, fingerprint, list_files
from .loaders import AUTO, SAMPLERS
from .sockets import Model, ModelHandle, advanced, make_schema

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP, VAE

    from .bridge_residency import BridgeResidency

MODEL_NAME = "ComfyUI's model"
_REMEDY = "Put mvadapter_t2mv_sdxl.safetensors (huggingface.co/huanngzh/mv-adapter) into models/mvadapter."


class T2MVModelFromComfy(io.ComfyNode):
    """MODEL, CLIP, VAE and an MV-Adapter file to a T2MV_MODEL over the same weights."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return make_schema(
            node_id="T2MVModelFromComfy",
            display_name="Model from ComfyUI (T2MV)",
            category="T2MV/loaders",
            description="Makes a model for the T2MV samplers of an SDXL model that ComfyUI has loaded, "
            "without a second copy of its weights. ComfyUI's LoRAs act on it.",
            search_aliases=[
                "bridge",
                "checkpoint to t2mv",
                "model clip vae",
                "share weights",
                "sdxl multiview",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="An SDXL model from Load Checkpoint or Load Diffusion Model, LoRAs included. "
                    "Shift SNR or ModelSamplingDiscrete with 'lcm' makes it a few-step model; other patches "
                    "are refused.",
                ),
                io.Clip.Input("clip", tooltip="SDXL's two text encoders, LoRAs included."),
                io.Vae.Input("vae", tooltip="SDXL's VAE, from Load Checkpoint or Load VAE."),
                io.Combo.Input(
                    "adapter",
                    options=list_files(ADAPTER_FOLDER),
                    tooltip="MV-Adapter weights (text to multiview, SDXL) in models/mvadapter.",
                ),
                advanced(
                    io.Combo.Input(
                        "sampler",
                        options=SAMPLERS,
                        default=AUTO,
                        optional=True,
                        tooltip="How it is sampled. 'auto': as the MODEL says, LCM behind Shift SNR or "
                        "ModelSamplingDiscrete with 'lcm', else DDIM. Choose 'ddim-trailing' for SDXL-Turbo, "
                        "Lightning and Hyper-SD.",
                    )
                ),
            ],
            outputs=[
                Model.Output(
                    "t2mv_model",
                    display_name="model",
                    tooltip="The model, for Load LoRA (T2MV) and the samplers under T2MV/sampling.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, adapter: str | None = None, sampler: str | None = AUTO) -> bool | str:
        """Refuse files that are not in the folder, and unknown samplers."""
        return first_problem(
            lambda: check_choice("adapter", adapter, list_files(ADAPTER_FOLDER), _REMEDY),
            lambda: check_choice("sampler", sampler, SAMPLERS, "Choose one of the list."),
        )

    @classmethod
    def fingerprint_inputs(cls, adapter: str | None = None, **others: Any) -> str:
        """The identity of the file: the node runs again exactly when it changes."""
        return "" if adapter is None else fingerprint(find_file(ADAPTER_FOLDER, adapter))

    @classmethod
    def execute(
        cls, model: ModelPatcher, clip: CLIP, vae: VAE, adapter: str, sampler: str = AUTO
    ) -> io.NodeOutput:
        """Check what came, then put our modules over it, or take those in use."""
        check_choice("sampler", sampler, SAMPLERS, "Choose one of the list.")
        residency = bridge(model, clip, vae, find_file(ADAPTER_FOLDER, adapter))
        bundle = residency.owner if sampler == AUTO else residency.owner.sampled_as(sampler)
        return io.NodeOutput(ModelHandle(bundle, residency))


def bridge(model: ModelPatcher, clip: CLIP, vae: VAE, adapter: Path) -> BridgeResidency:
    """A model over ComfyUI's weights, under ComfyUI's memory management; shared while in use.

    Args:
        model: MODEL of an SDXL.
        clip: its two text encoders.
        vae: its VAE.
        adapter: the MV-Adapter's file, the only weights that are read.

    Raises:
        FileNotFoundError: no adapter file.
        ValueError: one of the three cannot be used so, or they do not belong together; see `bridge_checks`.
    """
    from ..t2mv_core.borrowed import borrow_bundle
    from .bridge_checks import check_clip, check_model, check_vae
    from .bridge_residency import BridgeResidency, Lender
    from .memory import share

    sampler = check_model(model)
    check_clip(clip)
    check_vae(vae)
    encoders = clip.cond_stage_model
    lenders = [
        Lender(model, {"unet": model.model.diffusion_model.state_dict}),
        Lender(clip.patcher, {
            "text_encoder": lambda: _without_projection(encoders.clip_l.transformer.state_dict()),
            "text_encoder_2": encoders.clip_g.transformer.state_dict,
        }),
        Lender(vae.patcher, {"vae": vae.first_stage_model.state_dict}),
    ]  # fmt: skip

    def make() -> BridgeResidency:
        tensors = {name: read() for lender in lenders for name, read in lender.tensors.items()}
        return BridgeResidency(*borrow_bundle(tensors, adapter, sampler, MODEL_NAME), lenders)

    # The residency holds the three, so their ids stand for them as long as it is in use.
    owners = [(id(lender.patcher.model), lender.patcher.patches_uuid) for lender in lenders]
    return share(("bridge", *owners, sampler, fingerprint(adapter)), make)


def _without_projection(tensors: dict[str, Any]) -> dict[str, Any]:
    """SDXL's first text encoder has none; ComfyUI's class for it does."""
    return {key: tensor for key, tensor in tensors.items() if not key.startswith("text_projection.")}
