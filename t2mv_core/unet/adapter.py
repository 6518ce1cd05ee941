"""The MV-Adapter file: camera encoder and attention weights, in the published key layout.

One flat dict (docs/method.md, section 9): the multiview attention under the UNet's own names
(`down_blocks.1.….attn1.processor.to_q_mv.weight`), the camera encoder's T2IAdapter keys (`adapter.*`) beside
them. The image-to-multiview file has reference attention too (`….attn1.processor.to_q_ref.weight`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..formats.kinds import refuse_quantised
from ..formats.safetensors_io import write_safetensors
from ..formats.strict import WeightsFile, check_fit, shapes_of

if TYPE_CHECKING:
    from diffusers import T2IAdapter, UNet2DConditionModel

CAMERA_CHANNELS = 6
_OTHER_ADAPTERS = {  # word of a published file's name -> what the file is for
    "tg2mv": "the geometry-guided MV-Adapter (text and a mesh to views)",
    "ig2mv": "the geometry-guided MV-Adapter (a picture and a mesh to views)",
    "sd21": "the MV-Adapter of Stable Diffusion 2.1",
    "sd15": "the MV-Adapter of Stable Diffusion 1.5",
}


def create_camera_encoder(unet: UNet2DConditionModel, vae_scale_factor: int) -> T2IAdapter:
    """Create the T2I-Adapter (`full_adapter_xl`) that fits a UNet's block widths; weights newly initialised.

    Args:
        unet: the UNet whose down and mid blocks take the residuals.
        vae_scale_factor: pixels per latent pixel; the encoder reduces by twice that before its first block.
    """
    from diffusers import T2IAdapter

    widths = list(unet.config["block_out_channels"])
    return T2IAdapter(
        in_channels=CAMERA_CHANNELS,
        channels=[*widths, widths[-1]],
        num_res_blocks=2,
        downscale_factor=2 * vae_scale_factor,
        adapter_type="full_adapter_xl",
    )


def multiview_state_dict(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """The multiview and reference projections by published names, `….attn1.processor.to_q_mv.weight` etc.

    LoRAs attached to the UNet are left out: they are no part of the adapter.
    """
    return {
        f"{name}.{key.replace('.base_layer', '')}": tensor
        for name, processor in unet.attn_processors.items()
        if isinstance(processor, nn.Module)  # the others have no weights
        for key, tensor in processor.state_dict().items()
        if ".lora_" not in key
    }


def adapter_state_dict(unet: UNet2DConditionModel, camera_encoder: T2IAdapter) -> dict[str, Tensor]:
    """All weights of the MV-Adapter in the published layout."""
    return {**multiview_state_dict(unet), **camera_encoder.state_dict()}


def save_adapter(unet: UNet2DConditionModel, camera_encoder: T2IAdapter, path: Path) -> None:
    """Write the MV-Adapter file (safetensors), atomically."""
    write_safetensors(adapter_state_dict(unet, camera_encoder), path, {"format": "mv-adapter"})


def has_reference_weights(path: Path) -> bool:
    """Return whether an MV-Adapter file is one of image to multiview, by the names of its weights.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged.
    """
    return any("_ref." in key for key in WeightsFile(path).shapes)


def refuse_other_adapters(file: WeightsFile) -> None:
    """Raise ValueError for an MV-Adapter of another kind than SDXL's of text or pictures.

    By its published name: nothing else tells the geometry-guided ones, whose weights have the same names and
    shapes.
    """
    refuse_quantised(file)
    words = re.split(r"[^a-z0-9]+", file.path.stem.lower())
    kind = next((kind for word, kind in _OTHER_ADAPTERS.items() if word in words), None)
    if kind is not None:
        raise ValueError(
            f"{file.path} is {kind}; only SDXL's of text and of pictures (t2mv, i2mv) can be read here. "
            "Fetch mvadapter_t2mv_sdxl.safetensors of huanngzh/mv-adapter, or name the file otherwise if it "
            "is that one."
        )


def load_adapter(
    unet: UNet2DConditionModel, camera_encoder: T2IAdapter, path: Path, dtype: torch.dtype = torch.float32
) -> None:
    """Give the attentions and the camera encoder the weights of an MV-Adapter file.

    Args:
        unet: with multiview attention installed, and reference attention if the file has it.
        camera_encoder: its camera encoder.
        path: the file.
        dtype: precision of the loaded weights.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged or another kind of adapter, or lacks a weight, has an unknown one, or
            one of another shape.
    """
    file = WeightsFile(path)
    refuse_other_adapters(file)
    check_fit(
        shapes_of(adapter_state_dict(unet, camera_encoder)),
        file.shapes,
        path,
        "this UNet as its MV-Adapter",
        "Use the adapter that was trained for this base model.",
    )
    multiview = multiview_state_dict(unet).keys()
    unet.load_state_dict({name: file.read(name, dtype) for name in multiview}, strict=False, assign=True)
    rest = file.shapes.keys() - multiview
    camera_encoder.load_state_dict({name: file.read(name, dtype) for name in rest}, assign=True)
