"""The node that cuts an object out of a picture and frames it as image-to-multiview models saw it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from comfy_api.latest import io, ui

from ..common.checks import MAX_PROMPTS, Field
from ..common.memory import intermediate_device
from ..common.progress import show_notes
from ..sockets import make_schema, output

if TYPE_CHECKING:
    from torch import Tensor

EXAMPLE = Path(__file__).parents[2] / "example_workflows" / "input" / "duck.png"
"""A pink duck, a pair that the toybox's training left out, from 30° (training/toybox/data/renderer.py)."""
SIZE = Field(
    "size", 768,
    "Width and height in pixels. The samplers resize to the model's views; Apply MV-Adapter needs the views' "
    "own size, which is 768 for SDXL.",
    32, 2048, step=16,
)  # fmt: skip


class T2MVReadImage(io.ComfyNode):
    """Pictures with transparency to framed pictures on grey."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="T2MVReadImage",
            display_name="Read Reference Image (T2MV)",
            category="T2MV/sampling",
            description="Cuts an object out of a picture by its transparency and sets it on grey, 90 % of a "
            "square frame: what a sampler's 'reference' takes.",
            shows_result=True,
            search_aliases=["image to multiview", "reference", "crop by alpha", "center object", "i2mv"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="From Load Image. Several pictures are for several prompt lines. Without a "
                    "picture: the example that comes with this pack.",
                ),
                SIZE.widget(),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Load Image's mask: white where nothing is. Remove Background's is the other way "
                    "round: put Invert Mask behind it. Without a mask: the picture's own alpha.",
                ),
            ],
            outputs=[
                output(
                    io.Image, "reference",
                    "The framed pictures, for a sampler, or through VAE Encode for Apply MV-Adapter.",
                )
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, size: int, image: Tensor | None = None, mask: Tensor | None = None) -> io.NodeOutput:
        """Cut out, frame and show."""
        SIZE.check(size)
        pictures = _example(mask) if image is None else with_alpha(image, mask)
        show_notes(cls, picture_notes(pictures))
        framed = torch.stack([_frame(pictures, index, size) for index in range(len(pictures))])
        framed = framed.movedim(1, -1).to(intermediate_device())
        return io.NodeOutput(framed, ui=ui.PreviewImage(framed, cls=cls))


def with_alpha(image: Tensor, mask: Tensor | None) -> Tensor:
    """Join ComfyUI's pictures [n, H, W, 3 or 4] and masks (1 - alpha) [n, H, W] to [n, 4, H, W] in [0, 1].

    Raises:
        ValueError: there are too many pictures, they are too large, or the masks are not theirs.
    """
    from ...t2mv_core.reference_picture import MAX_PX

    count, height, width, channels = image.shape
    if count > MAX_PROMPTS:
        raise ValueError(
            f"{count} pictures are too many for one run; at most {MAX_PROMPTS} are read, one per prompt "
            "line. Load Image gives every picture of an animated file: Image From Batch picks one."
        )
    if max(height, width) > MAX_PX:
        raise ValueError(
            f"The picture has {width}x{height} px; at most {MAX_PX} px a side are read. Scale the file down, "
            "to 2000 px, say."
        )
    if mask is None or not bool(mask.any()):  # Load Image's is small and black for a file without alpha
        alpha = image[..., 3] if channels == 4 else torch.ones(count, height, width)
    elif mask.shape != image.shape[:3]:
        raise ValueError(
            f"{len(mask)} masks of {mask.shape[-1]}x{mask.shape[-2]} px were given for {count} pictures of "
            f"{width}x{height}; connect the mask of the node that the picture comes from."
        )
    else:
        alpha = 1 - mask
    # In steps of a file's alpha: a background remover's mask is nowhere exactly 0.
    alpha = (alpha.float().cpu() * 255).round() / 255
    return torch.cat([image[..., :3].float().cpu(), alpha[..., None]], dim=-1).movedim(-1, 1).clamp(0, 1)


def picture_notes(pictures: Tensor) -> list[str]:
    """Say what may be meant otherwise: several pictures, and a mask the wrong way round."""
    notes = []
    if len(pictures) > 1:
        notes.append(
            f"{len(pictures)} pictures: the sampler takes one per prompt line. Load Image gives every "
            "picture of an animated file; Image From Batch picks one."
        )
    border = pictures[:, 3, [0, -1]].mean()
    if float(border) > 0.5:
        notes.append("The picture's border is opaque. If what you see is the background, use Invert Mask.")
    return notes


def _example(mask: Tensor | None) -> Tensor:
    from ...t2mv_core.reference_picture import read_picture

    if mask is not None:
        raise ValueError("A mask is connected, but no picture; connect both outputs of Load Image.")
    return read_picture(EXAMPLE)[None]


def _frame(pictures: Tensor, index: int, size: int) -> Tensor:
    from ...t2mv_core.reference_picture import frame_picture

    picture = pictures[index]
    try:
        if bool((picture[3] == 1).all()):
            raise ValueError(
                f"Nothing in the picture is transparent, so nothing says where the object is. {_cure()}"
            )
        return frame_picture(picture, size)
    except ValueError as error:
        if len(pictures) == 1:
            raise
        raise ValueError(f"Picture {index + 1} of {len(pictures)}: {error}") from error


def _cure() -> str:
    """Say how this ComfyUI removes a background; it has nodes for it since 2026."""
    if hasattr(io, "BackgroundRemoval"):
        return (
            "Connect the picture to Remove Background (with Load Background Removal Model), and its mask "
            "through Invert Mask to 'mask'."
        )
    return (
        "This ComfyUI has no node that removes a background: remove it with another program and load the "
        "object as a PNG with transparency, or use a newer ComfyUI's Remove Background and Invert Mask."
    )
