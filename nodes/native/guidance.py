"""The node that restores the guidance input of a latent consistency UNet, which ComfyUI leaves out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..common.checks import Field, first_problem, widgets
from ..common.folders import find_file, fingerprint, list_files
from ..common.memory import usable_for_training
from ..loaders.model_files import UNET_FOLDER
from ..sockets import make_schema, output
from .comfyui import ModelPatcher, WrappersMP, check_unet, timestep_embedding

PROJECTION_NAMES = ("time_embedding.cond_proj.weight", "time_embed.cond_proj.weight")
GUIDANCE_KEY = "t2mv_guidance"
EMBEDDED_GUIDANCE_OPTION = "t2mv_embedded_guidance"
"""In `transformer_options`: a guidance for one evaluation instead of the node's."""
_EMBEDDING = "t2mv_guided_embedding"
UNET = Field(
    "unet", None, "The file in models/diffusion_models that Load Diffusion Model has, too.",
    choices=lambda: list_files(UNET_FOLDER), remedy="Put the UNet into models/diffusion_models and refresh.",
)  # fmt: skip
GUIDANCE = Field(
    "guidance", 7.0, "How strictly the picture follows the text. The sampler's cfg stays 1.", 1, 100, step=0.5
)


class T2MVEmbedGuidance(io.ComfyNode):
    """A MODEL of a latent consistency UNet to a MODEL that needs one pass per guided step."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="T2MVEmbedGuidance",
            display_name="Embed Guidance (T2MV)",
            category="T2MV/native",
            description="For LCM-SDXL, whose UNet takes guidance as a number instead of a second pass. "
            "ComfyUI loads the UNet without this input; the node restores it. Sample with cfg 1.",
            is_experimental=True,
            search_aliases=["lcm-sdxl", "guidance embedding", "latent consistency", "w embedding"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="LCM-SDXL's UNet from Load Diffusion Model, with or without an MV-Adapter.",
                ),
                *widgets(UNET, GUIDANCE),
            ],
            outputs=[output(io.Model, "guided_model", "The model with its guidance input.", "model")],
        )

    @classmethod
    def validate_inputs(cls, unet: str | None = None) -> bool | str:
        """Refuse files that are not in the folder."""
        return first_problem(lambda: UNET.check(unet))

    @classmethod
    def fingerprint_inputs(cls, unet: str | None = None, **others: Any) -> str:
        """Return the file's identity, so that the node runs again exactly when the file changes."""
        return "" if unet is None else fingerprint(find_file(UNET_FOLDER, unet))

    @classmethod
    def execute(cls, model: ModelPatcher, unet: str, guidance: float) -> io.NodeOutput:
        """Read the one weight and patch a clone of the model."""
        GUIDANCE.check(guidance)
        return io.NodeOutput(embed_guidance(model, find_file(UNET_FOLDER, unet), guidance))


def embed_guidance(model: ModelPatcher, path: Path, guidance: float) -> ModelPatcher:
    """Return a clone of the model whose time embedding contains the guidance.

    Args:
        model: ComfyUI's, of the UNet in `path`.
        path: the UNet's file, for the weight that ComfyUI left out.
        guidance: w, >= 1.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file has no guidance input, or one of another width than the model's.
    """
    from ...t2mv_core.formats.strict import WeightsFile

    unet, file = check_unet(model), WeightsFile(path)
    name = next((name for name in PROJECTION_NAMES if name in file.shapes), None)
    if name is None:
        raise ValueError(
            f"{path.name} has no guidance input (time_embedding.cond_proj), so it is no latent consistency "
            "UNet. Remove this node and set the sampler's cfg instead."
        )
    width = file.shapes[name][0]
    if width != unet.model_channels:
        raise ValueError(
            f"{path.name} is for a UNet of width {width}, this model has {unet.model_channels}. Choose the "
            "file that Load Diffusion Model has."
        )
    with usable_for_training():
        projection = file.read(name, torch.float32)
    patched = model.clone()
    patched.set_model_emb_patch(lambda emb, channels, options: options[_EMBEDDING].to(emb.dtype))
    wrapper = _embedding_wrapper(projection, guidance)
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, GUIDANCE_KEY, wrapper)
    return patched


def _embedding_wrapper(projection: Tensor, guidance: float) -> Callable[..., Tensor]:
    """Return a wrapper of a UNet's evaluation that computes the time embedding anew, with guidance in it.

    It asks the UNet that is evaluated: on several GPUs ComfyUI evaluates copies of it with the same hooks.
    """
    from ...t2mv_core.denoiser import guidance_embedding

    def embed(executor: Any, x: Tensor, timesteps: Tensor, *others: Any, **named: Any) -> Tensor:
        _context, _y, _control, options = others
        scale = projection.new_tensor([float(options.get(EMBEDDED_GUIDANCE_OPTION, guidance))])
        offset = guidance_embedding(scale, projection.shape[1]) @ projection.T
        unet = executor.class_obj
        embedding = timestep_embedding(timesteps, unet.model_channels, repeat_only=False)
        options[_EMBEDDING] = unet.time_embed(embedding.to(x.dtype) + offset.to(x.device, x.dtype))
        return executor(x, timesteps, *others, **named)

    return embed
