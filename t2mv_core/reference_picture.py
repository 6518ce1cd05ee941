"""The user's picture of an object, cut out and framed as the image-to-multiview adapter was trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .toybox.silhouettes import BACKGROUND

if TYPE_CHECKING:
    from PIL import Image

OBJECT_SHARE = 0.9
"""The object's longer side, as a share of the frame's (MV-Adapter, arXiv:2412.03632)."""
GENERIC_PROMPT = "high quality"
"""The prompt of a picture that comes without words (MV-Adapter's)."""
MAX_PX = 8192
"""Of a file's side: a larger one would take more than a gigabyte of memory."""
_FORMATS = ("PNG", "WEBP")
_PNG_DEPTH_AT = 24  # bits per channel: the byte behind signature, chunk head, width and height
_CUT_OUT = "Remove the background, and save the object as a PNG with transparency."


def read_picture(path: Path) -> Tensor:
    """Read a picture with transparency.

    Args:
        path: a PNG or WEBP file.

    Returns:
        Colours and straight alpha, [4, H, W] in [0, 1].

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, too large, animated, of another format, has more than 8 bits per
            channel, which Pillow would cut off, or no transparency.
    """
    with _open(path) as picture:
        _check_header(path, picture)
        if not picture.has_transparency_data:
            raise ValueError(f"{path} has no transparency: object and background are one. {_CUT_OUT}")
        return _pixels(path, picture, "RGBA")


def read_framed(path: Path, image_px: int) -> Tensor:
    """Read a square picture that `frame_picture` made, without transparency, at another size if need be.

    Returns:
        [3, image_px, image_px] in [0, 1].

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, too large, animated, of another format or has more than 8 bits per
            channel; or the picture is not square, or has transparency, so that it is not framed yet.
    """
    with _open(path) as picture:
        _check_header(path, picture)
        width, height = picture.size
        if width != height:
            raise ValueError(f"{path} has {width}x{height} px; a framed picture is square.")
        if picture.has_transparency_data:
            raise ValueError(
                f"{path} has transparency, so it is not framed yet; leave out "
                '"framed", or lay it on grey and save it without transparency.'
            )
        framed = _pixels(path, picture, "RGB")[None]
    if width != image_px:
        framed = F.interpolate(framed, (image_px, image_px), mode="bicubic", antialias=True).clamp(0, 1)
    return framed[0]


def _pixels(path: Path, picture: Image.Image, mode: str) -> Tensor:
    """Return an opened picture upright, [channels, H, W] in [0, 1]."""
    import numpy as np
    from PIL import ImageOps

    try:
        upright = np.array(ImageOps.exif_transpose(picture).convert(mode))
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); save it again.") from error
    return torch.from_numpy(upright).movedim(-1, 0).float() / 255


def frame_picture(picture: Tensor, image_px: int) -> Tensor:
    """Cut out an object and set it into the middle of a square frame on grey.

    Alpha's bounding box is cut out and resized, so that its longer side is 90 % of the frame's.

    Args:
        picture: colours and straight alpha, [4, H, W] in [0, 1].
        image_px: side of the frame, pixels.

    Returns:
        [3, image_px, image_px] in [0, 1].

    Raises:
        ValueError: there is no alpha, everything is transparent, or nothing is.
    """
    if picture.ndim != 3 or picture.shape[0] != 4:
        raise ValueError(f"The picture must be [4, height, width], not {tuple(picture.shape)}. {_CUT_OUT}")
    alpha = picture[3]
    if not bool((alpha > 0).any()):
        raise ValueError("The picture is transparent everywhere: there is no object. Choose another one.")
    if bool((alpha == 1).all()):
        raise ValueError(f"Nothing in the picture is transparent: object and background are one. {_CUT_OUT}")
    cut = picture[:, _extent(alpha.amax(dim=1)), _extent(alpha.amax(dim=0))]
    opaque = torch.lerp(cut.new_tensor(BACKGROUND), cut[:3], cut[3:])
    scale = OBJECT_SHARE * image_px / max(opaque.shape[1:])
    height, width = (max(1, round(scale * side)) for side in opaque.shape[1:])
    resized = F.interpolate(opaque[None], (height, width), mode="bicubic", antialias=True)[0].clamp(0, 1)
    frame = picture.new_full((3, image_px, image_px), BACKGROUND)
    top, left = (image_px - height) // 2, (image_px - width) // 2
    frame[:, top : top + height, left : left + width] = resized
    return frame


def _extent(profile: Tensor) -> slice:
    """Return the range from the first to the last number above 0."""
    places = profile.nonzero()
    return slice(int(places[0]), int(places[-1]) + 1)


def _open(path: Path) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    if not path.is_file():
        raise FileNotFoundError(f"There is no picture at {path}; check the name and the folder.")
    try:
        return Image.open(path)
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is no picture, or it is damaged; save it again as a PNG.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(_too_large(path)) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); save it again.") from error


def _too_large(path: Path) -> str:
    return f"{path} has more than {MAX_PX} px a side; scale it down, to 2000 px, say."


def _check_header(path: Path, picture: Image.Image) -> None:
    if max(picture.size) > MAX_PX:
        raise ValueError(_too_large(path))
    if picture.format not in _FORMATS:
        raise ValueError(f"{path} is a {picture.format} file; only PNG and WEBP are read. Save it as a PNG.")
    if getattr(picture, "is_animated", False):
        raise ValueError(f"{path} is animated; save one of its pictures by itself.")
    with path.open("rb") as file:
        head = file.read(_PNG_DEPTH_AT + 1)
    if picture.format == "PNG" and head[_PNG_DEPTH_AT] > 8:
        raise ValueError(f"{path} has {head[_PNG_DEPTH_AT]} bits per channel; save it with 8.")
