"""Pictures: latents to pixels and back, ComfyUI's layout, and contact sheets that people look at."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor

from .tiles import decode_tiled

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from PIL import Image

logger = logging.getLogger(__name__)


@torch.no_grad()
def decode_latents(
    vae: AutoencoderKL,
    latents: Tensor,
    chunk_size: int = 6,
    tile_latent_px: int | None = None,
    before_chunk: Callable[[], None] | None = None,
) -> Tensor:
    """Decode scaled latents, a few views at a time.

    A chunk that overflows in half precision, as SDXL's own VAE does in float16, is decoded again in float32.

    Args:
        vae: its configuration holds the scaling factor; it is not changed.
        latents: [B, V, C, h, w].
        chunk_size: views decoded at once; memory grows with it. Pictures decoded in chunks of another size
            differ by rounding only.
        tile_latent_px: decode in tiles of this side; None decodes pictures at once.
        before_chunk: called before every chunk; may raise to cancel.

    Returns:
        Pictures [B, V, 3, H, W] in [0, 1], float32, on the latents' device.

    Raises:
        ValueError: the decoder's output holds NaN or infinity, even in float32.
    """
    flat = rearrange(latents, "b v c h w -> (b v) c h w")
    pictures = []
    for chunk in flat.split(chunk_size):
        if before_chunk is not None:
            before_chunk()
        pictures.append(_decode_finite(vae, chunk, tile_latent_px))
    pixels = torch.cat(pictures)
    return rearrange((pixels / 2 + 0.5).clamp(0, 1), "(b v) c h w -> b v c h w", v=latents.shape[1])


def _decode_finite(vae: AutoencoderKL, latents: Tensor, tile_latent_px: int | None) -> Tensor:
    """Pictures [n, 3, H, W] around [-1, 1], float32; in float32 from the start where less is too little."""
    pixels = _decode(vae, latents, tile_latent_px)
    if vae.dtype != torch.float32 and not bool(pixels.isfinite().all()):
        logger.warning(
            "The VAE decoded to NaN or infinity in %s (SDXL's own VAE does that in float16); decoding again "
            "in float32. With madebyollin/sdxl-vae-fp16-fix, or a VAE in float32, this takes no second try.",
            vae.dtype,
        )
        # A copy: the model is shared, and may be decoding for somebody else in half precision.
        pixels = _decode(copy.deepcopy(vae).float(), latents, tile_latent_px)
    if not bool(pixels.isfinite().all()):
        raise ValueError(
            "The VAE decoded to NaN or infinity even in float32: its weights are damaged, or the latents are "
            "far out of range. Fetch the VAE's file again; for SDXL take madebyollin/sdxl-vae-fp16-fix."
        )
    return pixels


def _decode(vae: AutoencoderKL, latents: Tensor, tile_latent_px: int | None) -> Tensor:
    def decode(part: Tensor) -> Tensor:
        return vae.decode(part, return_dict=False)[0]

    unscaled = latents.to(vae.dtype) / vae.config["scaling_factor"]
    pixels = decode_tiled(decode, unscaled, tile_latent_px) if tile_latent_px else decode(unscaled)
    return pixels.float()


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
