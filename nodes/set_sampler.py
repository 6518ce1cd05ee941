"""Sets of views, one at a time: a set is the same, bit for bit, whatever else is sampled in the run."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import comfy.model_management as model_management
import torch

from .checks import MAX_SEED
from .memory import check_cancelled

if TYPE_CHECKING:
    from torch import Tensor

    from ..t2mv_core.cameras import CameraRig
    from ..t2mv_core.samplers import SamplingSettings
    from .progress import SamplingProgress
    from .sockets import ModelHandle

logger = logging.getLogger(__name__)

TILE_LATENT_PX = 64  # 512 px with SDXL's VAE


class SetSampler:
    """Samples sets of one model, rig and setting.

    Sets never share a batch: matrix products of other sizes round differently, and memory would grow with the
    number of sets. Six views of SDXL keep a graphics card busy as they are.
    """

    def __init__(
        self,
        model: ModelHandle,
        sampler: str,
        settings: SamplingSettings,
        progress: SamplingProgress,
        rig: CameraRig | None = None,
        negative_prompt: str = "",
    ) -> None:
        """Bring the model to the compute device and encode the cameras.

        Args:
            model: the model, possibly with LoRAs.
            sampler: a name of the core's SAMPLERS.
            settings: for every set.
            progress: told of every UNet evaluation; raises when the user cancels.
            rig: the cameras; None gives the six default views.
            negative_prompt: what two-pass guidance steers away from; "" is the empty condition.
        """
        from ..t2mv_core.cameras import DEFAULT_RIG
        from ..t2mv_core.denoiser import encode_cameras
        from ..t2mv_core.samplers import SAMPLERS

        model.residency.load()
        self._bundle, self._sample, self._settings = model.bundle, SAMPLERS[sampler], settings
        self._progress, self._negative_prompt = progress, negative_prompt or None
        self._cameras = encode_cameras(model.bundle, rig or DEFAULT_RIG)
        self._encoded: tuple[str, Any] = ("", None)

    def __call__(self, prompt: str, seed: int) -> Tensor:
        """Sample the views of one prompt.

        Returns:
            Scaled latents [V, C, h, w], float32, on the CPU.

        Raises:
            ValueError: the model cannot follow the settings, or gave NaN.
        """
        from ..t2mv_core.text import encode_text
        from ..t2mv_core.trajectory import SeededNoise

        if self._encoded[0] != prompt:
            self._encoded = (prompt, encode_text(self._bundle, [prompt], self._negative_prompt))
        condition, noise = self._encoded[1], SeededNoise([seed % (MAX_SEED + 1)])
        trajectory = self._sample(
            self._bundle, condition, self._cameras, noise, self._settings, self._progress
        )
        return trajectory.denoised[0].float().cpu()


def decode_set(model: ModelHandle, latents: Tensor, is_tiled: bool) -> Tensor:
    """Decode scaled latents [V, C, h, w] view by view; in tiles if asked, or if memory runs out otherwise.

    Returns:
        Pictures as ComfyUI keeps them, [V, H, W, 3] float32 in [0, 1] on its intermediate device.
    """
    from ..t2mv_core.images import decode_latents, to_comfy

    latents = latents.to(model.residency.load("vae"))[None]

    def decode(tile_latent_px: int | None) -> Tensor:
        images = decode_latents(model.bundle.vae, latents, 1, tile_latent_px, check_cancelled)[0]
        return to_comfy(images).to(model_management.intermediate_device())

    if not is_tiled:
        try:
            return decode(None)
        except torch.cuda.OutOfMemoryError:
            logger.warning("There is too little memory to decode a view at once; decoding in tiles.")
    # Outside the `except`: there the failed try's tensors would still be held by its traceback.
    return decode(TILE_LATENT_PX)


def comfy_latent(model: ModelHandle, latents: list[Tensor]) -> dict[str, Tensor]:
    """Sets of scaled latents [V, C, h, w] as one ComfyUI LATENT: {"samples": [B·V, C, h, w]}, not scaled."""
    samples = torch.cat(latents) / model.bundle.vae.config["scaling_factor"]
    return {"samples": samples.to(model_management.intermediate_device())}
