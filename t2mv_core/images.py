"""Pictures: latents to pixels, ComfyUI's layout, and contact sheets that people look at."""

from __future__ import annotations

import copy
import functools
import logging
import unicodedata
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor

from .toybox.silhouettes import BACKGROUND

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from PIL import Image, ImageFont

    Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

logger = logging.getLogger(__name__)

_MAX_LABEL_CHARACTERS = 500
_LABEL_SIZES = (0.65, 0.5)  # of a label's line
_FONT_FILES = (
    # Accents, Greek, Cyrillic: Linux, Windows, macOS.
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "arial.ttf", "Arial.ttf",
    # Chinese, Japanese, Korean: Linux, Windows, macOS.
    "NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "NotoSansSC-Regular.otf",
    "SourceHanSansSC-Regular.otf", "wqy-zenhei.ttc", "wqy-microhei.ttc",
    "DroidSansFallbackFull.ttf", "DroidSansFallback.ttf",
    "msyh.ttc", "msyh.ttf", "simsun.ttc", "YuGothM.ttc", "malgun.ttf",
    "PingFang.ttc", "Hiragino Sans GB.ttc", "STHeiti Light.ttc", "AppleSDGothicNeo.ttc", "Arial Unicode.ttf",
)  # fmt: skip
"""Looked for in the system's font folders, as PIL's font draws little more than ASCII."""


@torch.no_grad()
def decode_latents(
    vae: AutoencoderKL,
    latents: Tensor,
    chunk_size: int = 6,
    before_chunk: Callable[[], None] | None = None,
) -> Tensor:
    """Decode scaled latents, a few views at a time.

    From the first chunk that overflows in half precision on, as SDXL's own VAE does in float16, a copy of the
    VAE decodes in float32.

    Args:
        vae: its configuration holds the scaling factor; it is not changed.
        latents: [B, V, C, h, w].
        chunk_size: views decoded at once; memory grows with it. Pictures decoded in chunks of another size
            differ by rounding only.
        before_chunk: called before every chunk; may raise to cancel.

    Returns:
        Pictures [B, V, 3, H, W] in [0, 1], float32, on the latents' device.

    Raises:
        ValueError: the decoder's output holds NaN or infinity, even in float32.
    """
    decoder, pictures = vae, []
    for chunk in rearrange(latents, "b v c h w -> (b v) c h w").split(chunk_size):
        if before_chunk is not None:
            before_chunk()
        pixels = _decode(decoder, chunk)
        if decoder.dtype != torch.float32 and not bool(pixels.isfinite().all()):
            logger.warning(
                "The VAE decoded to NaN or infinity in %s (SDXL's own VAE does that in float16); decoding "
                "again in float32. madebyollin/sdxl-vae-fp16-fix, or a VAE in float32, needs no second try.",
                vae.dtype,
            )
            # A copy: the model is shared, and may be decoding for somebody else in half precision.
            decoder = copy.deepcopy(vae).float()
            pixels = _decode(decoder, chunk)
        if not bool(pixels.isfinite().all()):
            raise ValueError(
                "The VAE decoded to NaN or infinity even in float32: its weights are damaged, or the latents "
                "are far out of range. Fetch the file again; for SDXL take madebyollin/sdxl-vae-fp16-fix."
            )
        pictures.append((pixels / 2 + 0.5).clamp(0, 1))
    return rearrange(torch.cat(pictures), "(b v) c h w -> b v c h w", v=latents.shape[1])


def _decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    unscaled = latents.to(vae.device, vae.dtype) / vae.config["scaling_factor"]
    return vae.decode(unscaled, return_dict=False)[0].to(latents.device, torch.float32)


def to_comfy(images: Tensor) -> Tensor:
    """Convert [n, 3, H, W] to ComfyUI's IMAGE [n, H, W, 3], both in [0, 1]; float32 on the CPU."""
    return images.detach().float().cpu().movedim(1, -1).contiguous()


def from_comfy(images: Tensor) -> Tensor:
    """Convert ComfyUI's IMAGE [n, H, W, 3 or 4] to [n, 3, H, W].

    What is transparent becomes the grey that the toybox and MV-Adapter draw around an object. Alpha is
    straight, as background removers and Join Image with Alpha give it.
    """
    if images.ndim != 4 or images.shape[-1] not in (3, 4):
        raise ValueError(f"Pictures must be [n, height, width, 3 or 4], not {tuple(images.shape)}.")
    if images.shape[-1] == 4:
        images = torch.lerp(images.new_tensor(BACKGROUND), images[..., :3], images[..., 3:].clamp(0, 1))
    return images.movedim(-1, 1).contiguous()


def contact_sheet(
    images: Tensor,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    cell_px: int = 128,
) -> Image.Image:
    """Draw all pictures into one: a row per prompt, a column per view.

    Args:
        images: [B, V, 3, H, W] in [0, 1].
        row_labels: B texts above the rows, or none.
        column_labels: V texts at the top, or none; an empty one gives its room to the one before. Texts that
            are too long lose their first words ("front-right 45°" its side), in rows the last ones.
        cell_px: height of a cell, pixels; labels grow with it from 192 px on.
    """
    from PIL import Image

    rows, columns = images.shape[:2]
    cell_width = round(cell_px * images.shape[4] / images.shape[3])
    line = max(16, cell_px // 12)
    header, label = (line if column_labels else 0), (line if row_labels else 0)
    sheet = Image.new("RGB", (columns * cell_width, header + rows * (cell_px + label)), "white")
    starts = [column for column, text in enumerate(column_labels) if text]
    for start, end in pairwise([*starts, columns]):
        sheet.paste(_label(column_labels[start], (end - start) * cell_width, line), (start * cell_width, 0))
    pixels = _to_bytes(images.flatten(0, 1)).unflatten(0, (rows, columns)).numpy()
    for row in range(rows):
        top = header + row * (cell_px + label)
        if row_labels:
            sheet.paste(_label(row_labels[row], sheet.width, line, keeps_start=True), (0, top))
        for column in range(columns):
            picture = Image.fromarray(pixels[row, column])
            resized = picture.resize((cell_width, cell_px), Image.Resampling.LANCZOS)
            sheet.paste(resized, (column * cell_width, top + label))
    return sheet


def label_font(text: str, size_px: float) -> tuple[str, Font]:
    """Choose the font that draws most of a line: PIL's, or one of the system's for what PIL's lacks.

    Returns:
        The text as the font can draw it, and the font. A character that no font has appears as its letter
        without accents, or else as its code, such as U+7EA2.
    """
    from PIL import ImageFont

    fonts = [ImageFont.load_default(size=size_px)]
    if _undrawable(text, fonts[0]):
        fonts += [font.font_variant(size=size_px) for font in _system_fonts(_FONT_FILES)]
    font = min(fonts, key=lambda font: len(_undrawable(text, font)))
    undrawable = _undrawable(text, font)
    if not undrawable:
        return text, font
    spelled = "".join(_spell(character, font) if character in undrawable else character for character in text)
    return " ".join(spelled.split()), font


def _spell(character: str, font: Font) -> str:
    letters = "".join(c for c in unicodedata.normalize("NFKD", character) if not unicodedata.combining(c))
    return f" U+{ord(character):04X} " if not letters or _undrawable(letters, font) else letters


def _undrawable(text: str, font: Font) -> set[str]:
    """Return the characters for which a font has only its sign for unknown ones, mostly an empty box."""

    def drawn(character: str) -> tuple[tuple[int, int], bytes]:
        mask = font.getmask(character)
        return mask.size, bytes(mask)

    unknown = drawn("\U0010ffff")
    return {c for c in set(text) if not c.isspace() and drawn(c) == unknown}


@functools.cache
def _system_fonts(names: tuple[str, ...]) -> list[ImageFont.FreeTypeFont]:
    """Load the fonts of this machine among files of these names."""
    from PIL import ImageFont

    fonts = []
    for name in names:
        try:
            fonts.append(ImageFont.truetype(name))  # PIL knows where each system keeps them
        except OSError:
            continue
    return fonts


def _to_bytes(images: Tensor) -> Tensor:
    """Convert [n, 3, H, W] in [0, 1] to [n, H, W, 3] uint8 on the CPU."""
    return (images.detach().float().cpu().clamp(0, 1) * 255).round().byte().movedim(1, -1).contiguous()


def _label(text: str, width: int, height: int, keeps_start: bool = False) -> Image.Image:
    """Draw a line of text on white that fits its width: words are left out, then it is smaller."""
    from PIL import Image, ImageDraw

    strip = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(strip)
    margin = min(3, width // 16)
    choices = []
    for share in _LABEL_SIZES:
        drawable, font = label_font(text[:_MAX_LABEL_CHARACTERS], share * height)
        words = drawable.split(" ")
        for n in range(len(words)):
            kept = [*words[: len(words) - n], "…"] if keeps_start and n else words[n:]
            choices.append((" ".join(kept), font))
    fitting = (choice for choice in choices if draw.textlength(*choice) <= width - 2 * margin)
    shown, font = next(fitting, choices[-1])
    while keeps_start and len(shown) > 1 and draw.textlength(shown, font) > width - 2 * margin:
        shown = shown[:-2] + "…"  # Chinese has no spaces to break at
    draw.text((margin, height // 2), shown, fill="black", font=font, anchor="lm")
    return strip
