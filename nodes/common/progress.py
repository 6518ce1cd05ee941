"""What a running node shows: its bar, previews, and a text."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from comfy.utils import ProgressBar

from .memory import check_cancelled

if TYPE_CHECKING:
    from comfy_api.latest import io
    from PIL.Image import Image
    from torch import Tensor

    from ...t2mv_core.samplers import StepEvent
    from ..sockets import ModelHandle

# A preview must cost far less than an evaluation: the toybox's VAE (2 MB) does, SDXL's (160 MB) does not.
MAX_PREVIEW_VAE_BYTES = 32 * 2**20
PREVIEW_PX = 512
PREVIEW_CELL_PX = 96

logger = logging.getLogger(__name__)
_noted = set[str | None]()
"""Ids of the nodes that the page shows notes on."""


def show_text(node: type[io.ComfyNode], text: str) -> None:
    """Show a text on the running node, which must ask for `io.Hidden.unique_id`.

    `ui.PreviewText` alone reaches API clients, but ComfyUI's page (1.27) draws it on Preview Any only.
    """
    if node.hidden is not None:
        show_text_on(node.hidden.unique_id, text)


def show_notes(node: type[io.ComfyNode], notes: Sequence[str], is_logged: bool = False) -> None:
    """Show what a user should know of a run on a node that has no text otherwise.

    With nothing to say there is no text, so that the node stays as it is, but an earlier run's goes away.

    Args:
        node: asks for `io.Hidden.unique_id`.
        notes: sentences.
        is_logged: the core has logged them already.
    """
    for note in () if is_logged else notes:
        logger.warning("%s: %s", node.__name__, note)
    node_id = node.hidden and node.hidden.unique_id
    if notes:
        _noted.add(node_id)
        show_text(node, "\n".join(notes))
    elif node_id in _noted:
        _noted.discard(node_id)
        show_text(node, " ")  # the page ignores an empty text


def show_text_on(node_id: str | None, text: str) -> None:
    """Show a text on a node while it runs; None shows none."""
    from server import PromptServer

    if node_id is not None:
        # Of whoever queued the workflow: without it, on every open page that has a node of this number.
        PromptServer.instance.send_progress_text(text, node_id, PromptServer.instance.client_id)


class SamplingProgress:
    """The sampler's `on_step`: moves the bar, shows a contact sheet of all views, raises when cancelled."""

    def __init__(self, model: ModelHandle, total: int) -> None:
        """Prepare a bar of `total` units: UNet evaluations of all sets of the run, and what else is done."""
        self._model, self.done = model, 0
        self._bar = ProgressBar(total)

    def __call__(self, event: StepEvent) -> None:
        """Report one UNet evaluation."""
        check_cancelled()
        self.advance(preview_sheet(self._model, event.denoised))

    def advance(self, sheet: Image | None = None) -> None:
        """Report another unit of work, one score for example."""
        check_cancelled()
        self.done += 1
        self._bar.update_absolute(self.done, preview=sheet and ("JPEG", sheet, PREVIEW_PX))


def has_decoded_previews(model: ModelHandle) -> bool:
    """Return whether the model's VAE is small enough to decode a preview at every evaluation."""
    return model.residency.size_bytes("vae") <= MAX_PREVIEW_VAE_BYTES


def show_result(node: type[io.ComfyNode], picture: Tensor) -> None:
    """Show a node's own picture [1, H, W, 3] once; the node must ask for `io.Hidden.unique_id`.

    ComfyUI's page leaves the last preview on a node. The classic design shows it instead of the node's own
    picture, so it must be that picture. The new design shows both, so the page must drop the preview: it
    does so, after a moment, when it learns that the node starts.
    """
    from PIL import Image

    pixels = (picture[0] * 255).round().byte().cpu().numpy()
    height, width = pixels.shape[:2]
    ProgressBar(1).update_absolute(1, preview=("JPEG", Image.fromarray(pixels), max(height, width)))
    if node.hidden is not None:
        _announce_start(node.hidden.unique_id)


def _announce_start(node_id: str) -> None:
    """Tell ComfyUI's page that a running node starts, as if it had not run before."""
    from comfy_execution.progress import get_progress_state
    from server import PromptServer

    progress, server = get_progress_state(), PromptServer.instance
    server.send_sync("progress_state", {"prompt_id": progress.prompt_id, "nodes": {}}, server.client_id)
    progress.start_progress(node_id)


def preview_sheet(model: ModelHandle, denoised: Tensor) -> Image:
    """Draw latents [B, V, C, H, W] small, two rows per prompt: decoded if cheap, else approximated."""
    from ...t2mv_core.images import contact_sheet, decode_latents

    is_cheap = has_decoded_previews(model)
    images = decode_latents(model.bundle.vae, denoised) if is_cheap else approximate_images(denoised)
    if images.shape[1] % 2:
        white = torch.ones_like(images[:, :1])
        images = torch.cat([images, white], dim=1)  # makes the rows even
    halves = images.unflatten(1, (2, -1)).flatten(0, 1)
    return contact_sheet(halves, cell_px=PREVIEW_CELL_PX)


def approximate_images(latents: Tensor) -> Tensor:
    """Map SDXL latents [B, V, 4, H, W] to small pictures [B, V, 3, H, W] in [0, 1], as ComfyUI's previews."""
    from comfy.latent_formats import SDXL

    latent_format = SDXL()
    factors = torch.tensor(latent_format.latent_rgb_factors, device=latents.device)
    bias = torch.tensor(latent_format.latent_rgb_factors_bias, device=latents.device)
    rgb = torch.einsum("bvchw,cr->bvrhw", latents.float(), factors) + bias[:, None, None]
    return ((rgb + 1) / 2).clamp(0, 1)
