"""Pictures: latents to pixels and back, ComfyUI's layout, and contact sheets that people look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from PIL import Image


@torch.no_grad()
def decode_latents(vae: AutoencoderKL, latents: Tensor, chunk_size: int = 6) -> Tensor:
    """Decode scaled latents, a few views at a time.

    Args:
        vae: its configuration holds the scaling factor.
        latents: [B, V, C, h, w].
        chunk_size: views decoded at once; memory grows with it, the result does not depend on it.

    Returns:
        Pictures [B, V, 3, H, W] in [0, 1], float32, on the latents' device.

    Raises:
        ValueError: the decoder's output holds NaN or infinity.
    """
    flat = rearrange(latents, "b v c h w -> (b v) c h w").to(vae.dtype) / vae.config["scaling_factor"]
    pixels = torch.cat([vae.decode(chunk, return_dict=False)[0] for chunk in flat.split(chunk_size)]).float()
    if not bool(pixels.isfinite().all()):
        raise ValueError(
            f"The VAE decoded to NaN or infinity in {vae.dtype}; SDXL's own VAE does that in float16: use "
            "madebyollin/sdxl-vae-fp16-fix, or load the VAE in float32."
        )
    return rearrange((pixels / 2 + 0.5).clamp(0, 1), "(b v) c h w -> b v c h w", v=latents.shape[1])


@torch.no_grad()
def encode_images(vae: AutoencoderKL, images: Tensor, chunk_size: int = 6) -> Tensor:
    """Encode pictures [n, 3, H, W] in [0, 1] to scaled latents [n, C, h, w] (posterior means)."""
    pixels = images.to(vae.device, vae.dtype) * 2 - 1
    means = [vae.encode(chunk).latent_dist.mean for chunk in pixels.split(chunk_size)]
    return torch.cat(means) * vae.config["scaling_factor"]


def to_comfy(images: Tensor) -> Tensor:
    """[n, 3, H, W] to ComfyUI's IMAGE [n, H, W, 3], both in [0, 1]; float32 on the CPU."""
    return images.detach().float().cpu().movedim(1, -1).contiguous()


def from_comfy(images: Tensor) -> Tensor:
    """ComfyUI's IMAGE [n, H, W, 3 or 4] to [n, 3, H, W]; an alpha channel is dropped.

    Raises:
        ValueError: not a batch of pictures.
    """
    if images.ndim != 4 or images.shape[-1] not in (3, 4):
        raise ValueError(f"Pictures must be [n, height, width, 3], not {tuple(images.shape)}.")
    return images[..., :3].movedim(-1, 1).contiguous()


def contact_sheet(
    images: Tensor,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    cell_px: int = 128,
) -> Image.Image:
    """One picture of all pictures: a row per prompt, a column per view.

    Args:
        images: [B, V, 3, H, W] in [0, 1].
        row_labels: B texts above the rows, or none.
        column_labels: V texts at the top, or none.
        cell_px: height of a cell, pixels.

    Returns:
        RGB picture.
    """
    from PIL import Image, ImageDraw

    rows, columns = images.shape[:2]
    cell_width = round(cell_px * images.shape[4] / images.shape[3])
    header, label = (16 if column_labels else 0), (16 if row_labels else 0)
    sheet = Image.new("RGB", (columns * cell_width, header + rows * (cell_px + label)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, text in enumerate(column_labels):
        draw.text((column * cell_width + 3, 2), text, fill="black")
    pixels = (images.detach().float().cpu().clamp(0, 1) * 255).round().byte().movedim(2, -1).numpy()
    for row in range(rows):
        top = header + row * (cell_px + label)
        if row_labels:
            draw.text((3, top + 2), row_labels[row], fill="black")
        for column in range(columns):
            picture = Image.fromarray(pixels[row, column])
            resized = picture.resize((cell_width, cell_px), Image.Resampling.LANCZOS)
            sheet.paste(resized, (column * cell_width, top + label))
    return sheet
