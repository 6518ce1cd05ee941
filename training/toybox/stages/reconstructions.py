"""Renders seen through the VAE.

Generated views come out of the VAE's decoder; scorers and the judge meet its traces already in training.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from t2mv_core.formats.atomic import replaced

from ..data.dataset import Dataset
from ..rewards.reward_data import subset
from .networks import fast_autocast
from .stage import StageConfig

logger = logging.getLogger(__name__)

NUM_SCENES = 900
# Latents a generator makes are a little off; in units of the latents' standard deviation, drawn per view.
MAX_LATENT_NOISE = 0.25
CHUNK_SCENES = 10


def load_reconstructions(config: StageConfig, dataset: Dataset) -> Dataset | None:
    """The first training scenes decoded from their (slightly disturbed) latents; None while there is no VAE.

    Decoded once and kept beside the VAE, so that rewards and judge share them.
    """
    vae_dir, latents_path = config.out_dir / "vae", config.out_dir / "latents.npy"
    if not (vae_dir / "config.json").is_file() or not latents_path.is_file():
        logger.warning("No VAE in %s yet: training on plain renders only.", vae_dir)
        return None
    path = config.out_dir / "reconstructions.npy"
    if not path.is_file():
        count = min(20 if config.quick else NUM_SCENES, len(dataset.scenes))
        _write(_decode(vae_dir, np.load(latents_path, mmap_mode="r")[:count], config), path)
    images: NDArray[np.uint8] = np.load(path)
    return subset(dataset, images[: len(dataset.scenes)])


@torch.inference_mode()
def _decode(vae_dir: Path, latents: NDArray[np.float16], config: StageConfig) -> NDArray[np.uint8]:
    """Scaled latents [N, V, 4, h, w] -> pictures uint8 [N, V, H, W, 3]."""
    from diffusers import AutoencoderKL
    from tqdm import tqdm

    vae = AutoencoderKL.from_pretrained(vae_dir).eval().to(config.device, memory_format=torch.channels_last)
    rng = torch.Generator().manual_seed(config.seed)
    decoded = []
    for start in tqdm(range(0, len(latents), CHUNK_SCENES), desc="reconstruct", mininterval=5.0):
        chunk = torch.from_numpy(np.array(latents[start : start + CHUNK_SCENES])).float()
        amount = MAX_LATENT_NOISE * torch.rand(*chunk.shape[:2], 1, 1, 1, generator=rng) ** 2
        chunk = (chunk + amount * torch.randn(chunk.shape, generator=rng)).flatten(0, 1).to(config.device)
        with fast_autocast(chunk.device.type):
            pixels: Tensor = vae.decode(chunk / vae.config["scaling_factor"]).sample.float()
        pixels = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
        decoded.append(pixels.unflatten(0, (-1, latents.shape[1])).cpu().numpy())
    return np.concatenate(decoded)


def _write(images: NDArray[np.uint8], path: Path) -> None:
    with replaced(path) as temporary, temporary.open("wb") as file:
        np.save(file, images)
