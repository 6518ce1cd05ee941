"""Sets of views, one at a time: a set is the same, bit for bit, whatever else is sampled in the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..common.checks import MAX_SEED
from ..common.memory import check_cancelled, intermediate_device
from ..common.progress import has_decoded_previews

if TYPE_CHECKING:
    from torch import Tensor

    from ...t2mv_core.cameras import CameraRig
    from ...t2mv_core.samplers import SamplingSettings
    from ..common.progress import SamplingProgress
    from ..sockets import ModelHandle


class SetSampler:
    """Samples sets of one model, rig and setting.

    The parts of the model come to the compute device one after the other, as their work does: text encoders,
    camera encoder, UNet, and the VAE at last; on a small card ComfyUI sends away what has done its work.

    Sets never share a batch: matrix products of other sizes round differently, and memory would grow with the
    number of sets. Six views of SDXL keep a graphics card busy as they are.
    """

    def __init__(
        self,
        model: ModelHandle,
        sampler: str,
        settings: SamplingSettings,
        progress: SamplingProgress,
        prompts: Sequence[str],
        rig: CameraRig | None = None,
        negative_prompt: str = "",
    ) -> None:
        """Encode all prompts and the cameras, then bring the UNet to the compute device.

        Args:
            model: the model, possibly with LoRAs.
            sampler: a name of the core's SAMPLERS.
            settings: for every set.
            progress: told of every UNet evaluation; raises when the user cancels.
            prompts: every prompt that will be sampled.
            rig: the cameras; None gives the six default views.
            negative_prompt: what two-pass guidance steers away from; "" is the empty condition.
        """
        from ...t2mv_core.cameras import DEFAULT_RIG
        from ...t2mv_core.denoiser import encode_cameras
        from ...t2mv_core.samplers import SAMPLERS
        from ...t2mv_core.text import encode_text

        self._bundle, self._sample, self._settings = model.bundle, SAMPLERS[sampler], settings
        self._progress, self._residency = progress, model.residency
        model.residency.load("text_encoder", "text_encoder_2")
        self._conditions = {
            prompt: encode_text(self._bundle, [prompt], negative_prompt or None)
            for prompt in dict.fromkeys(prompts)
        }
        check_cancelled()
        model.residency.load("camera_encoder")
        self._cameras = encode_cameras(model.bundle, rig or DEFAULT_RIG)
        self._parts = ("unet", *(["vae"] if has_decoded_previews(model) else []))
        device = model.residency.load(*self._parts)
        # ComfyUI may keep text encoders of its own on another device than the UNet.
        self._conditions = {prompt: condition.to(device) for prompt, condition in self._conditions.items()}

    def __call__(self, prompt: str, seed: int) -> Tensor:
        """Sample the views of one of the prompts.

        Returns:
            Scaled latents [V, C, h, w], float32, on the CPU.

        Raises:
            ValueError: the model cannot follow the settings, or gave NaN.
        """
        from ...t2mv_core.trajectory import SeededNoise

        done = self._progress.done

        def sample(_: torch.device) -> Tensor:
            self._progress.done = done  # a second try, out of memory, counts anew
            noise = SeededNoise([seed % (MAX_SEED + 1)])
            trajectory = self._sample(
                self._bundle, self._conditions[prompt], self._cameras, noise, self._settings, self._progress
            )
            return trajectory.denoised[0].float().cpu()

        return self._residency.run(sample, *self._parts)


def decode_set(model: ModelHandle, latents: Tensor) -> Tensor:
    """Decode scaled latents [V, C, h, w] view by view, which takes the memory of one view.

    Returns:
        Pictures as ComfyUI keeps them, [V, H, W, 3] float32 in [0, 1] on its intermediate device.
    """
    from ...t2mv_core.images import decode_latents, to_comfy

    def decode(device: torch.device) -> Tensor:
        views = latents.to(device)[None]
        return decode_latents(model.bundle.vae, views, chunk_size=1, before_chunk=check_cancelled)[0]

    return to_comfy(model.residency.run(decode, "vae")).to(intermediate_device())


def comfy_latent(model: ModelHandle, latents: list[Tensor]) -> dict[str, Tensor]:
    """Sets of scaled latents [V, C, h, w] as one ComfyUI LATENT: {"samples": [B·V, C, h, w]}, not scaled."""
    samples = torch.cat(latents) / model.bundle.vae.config["scaling_factor"]
    return {"samples": samples.to(intermediate_device())}
