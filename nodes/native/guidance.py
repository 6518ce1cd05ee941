"""The node that gives a latent consistency UNet its guidance input, which ComfyUI leaves out on loading."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..common.checks import check_choice, check_number, first_problem
from ..common.folders import find_file, fingerprint, list_files
from ..loaders.model_files import UNET_FOLDER
from ..sockets import make_schema

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from torch import Tensor

PROJECTION_NAMES = ("time_embedding.cond_proj.weight", "time_embed.cond_proj.weight")
MIN_GUIDANCE, MAX_GUIDANCE = 1.0, 100.0
GUIDANCE_KEY = "t2mv_guidance"
EMBEDDED_GUIDANCE_OPTION = "t2mv_embedded_guidance"
"""In `transformer_options`: a guidance for this evaluation instead of the node's."""
_TIMESTEPS = "t2mv_timesteps"
_REMEDY = "Put the UNet into models/diffusion_models and refresh."


class T2MVEmbedGuidance(io.ComfyNode):
    """MODEL of a latent consistency UNet, and a guidance, to a MODEL that is guided in one pass."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs and outputs."""
        return make_schema(
            node_id="T2MVEmbedGuidance",
            display_name="Embed Guidance (T2MV)",
            category="T2MV/native",
            description="For LCM-SDXL: guidance enters its UNet as a number instead of a second pass. "
            "ComfyUI loads that UNet without this input; this node gives it back. Sample with cfg 1.",
            search_aliases=["lcm-sdxl", "guidance embedding", "latent consistency", "w embedding"],
            inputs=[
                io.Model.Input("model", tooltip="LCM-SDXL's UNet from Load Diffusion Model, patched or not."),
                io.Combo.Input(
                    "unet",
                    options=list_files(UNET_FOLDER),
                    tooltip="The same file in models/diffusion_models that Load Diffusion Model has.",
                ),
                io.Float.Input(
                    "guidance",
                    default=7.0,
                    min=MIN_GUIDANCE,
                    max=MAX_GUIDANCE,
                    step=0.5,
                    tooltip="How strictly the text is followed; the sampler's cfg stays 1.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    "guided_model", display_name="model", tooltip="The model with its guidance input."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, unet: str | None = None, guidance: float | None = None) -> bool | str:
        """Refuse files that are not in the folder, and guidance out of range."""
        return first_problem(
            lambda: check_choice("unet", unet, list_files(UNET_FOLDER), _REMEDY),
            lambda: check_number("guidance", guidance, MIN_GUIDANCE, MAX_GUIDANCE),
        )

    @classmethod
    def fingerprint_inputs(cls, unet: str | None = None, **others: Any) -> str:
        """The identity of the file: the node runs again exactly when it changes."""
        return "" if unet is None else fingerprint(find_file(UNET_FOLDER, unet))

    @classmethod
    def execute(cls, model: ModelPatcher, unet: str, guidance: float) -> io.NodeOutput:
        """Read the one weight and patch a clone of the model."""
        check_number("guidance", guidance, MIN_GUIDANCE, MAX_GUIDANCE)
        return io.NodeOutput(embed_guidance(model, find_file(UNET_FOLDER, unet), guidance))


def embed_guidance(model: ModelPatcher, path: Path, guidance: float) -> ModelPatcher:
    """A clone of the model whose time embedding knows the guidance, as the UNet of the file was trained.

    Args:
        model: ComfyUI's, of that UNet.
        path: the UNet's file, for the weight that ComfyUI left out.
        guidance: w, >= 1.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file has no guidance input, or one of another width than the model's.
    """
    import torch
    from comfy.patcher_extension import WrappersMP

    from ...t2mv_core.formats.strict import WeightsFile
    from .loading import check_unet

    width = check_unet(model).model_channels
    file = WeightsFile(path)
    name = next((name for name in PROJECTION_NAMES if name in file.shapes), None)
    if name is None:
        raise ValueError(
            f"{path.name} has no guidance input (time_embedding.cond_proj): it is no latent consistency "
            "UNet. Leave this node out and set the sampler's cfg instead."
        )
    rows = file.shapes[name][0]
    if rows != width:
        raise ValueError(
            f"{path.name} was made for a UNet of width {rows}, this model has {width}; choose the file that "
            "Load Diffusion Model has."
        )
    with torch.inference_mode(False), torch.no_grad():
        projection = file.read(name, torch.float32)
    patched = model.clone()
    patched.set_model_emb_patch(_embedding_patch(model, projection, guidance))
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, GUIDANCE_KEY, _keep_timesteps)
    return patched


def _keep_timesteps(
    executor: Any,
    x: Tensor,
    timesteps: Tensor,
    context: Tensor,
    y: Tensor,
    control: Any,
    transformer_options: dict[str, Any],
    **kwargs: Any,
) -> Tensor:
    """Wrap the UNet's call: patches of the embedding are not told of the timesteps otherwise."""
    transformer_options[_TIMESTEPS] = timesteps
    return executor(x, timesteps, context, y, control, transformer_options, **kwargs)


def _embedding_patch(model: ModelPatcher, projection: Tensor, guidance: float) -> Callable[..., Tensor]:
    """An `emb_patch` that computes the time embedding again, the guidance added before its first layer."""
    from comfy.ldm.modules.diffusionmodules.util import timestep_embedding

    from ...t2mv_core.denoiser import guidance_embedding

    unet = model.model.diffusion_model

    def patch(emb: Tensor, model_channels: int, options: dict[str, Any]) -> Tensor:
        asked = projection.new_tensor([float(options.get(EMBEDDED_GUIDANCE_OPTION, guidance))])
        offset = guidance_embedding(asked, projection.shape[1]) @ projection.T
        timesteps = timestep_embedding(options[_TIMESTEPS], model_channels, repeat_only=False)
        return unet.time_embed(timesteps.to(emb.dtype) + offset.to(emb.device, emb.dtype))

    return patch
