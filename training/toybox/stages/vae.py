"""Stage `vae`: the autoencoder, trained on single renders; then all renders as latents."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from t2mv_core.formats.atomic import replaced

from ..data.dataset import load_dataset
from ..model import create_vae
from .networks import fast_autocast
from .stage import Checkpointer, StageConfig, cosine_lr, descend, seed_everything, update_rng

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

logger = logging.getLogger(__name__)

NUM_UPDATES = 2000
BATCH_VIEWS = 16
PEAK_LR = 2e-3
KL_WEIGHT = 1e-6
EDGE_WEIGHT = 0.5


def run(config: StageConfig) -> None:
    """Train the VAE, measure its latents' scale, encode the training renders."""
    seed_everything(config.seed)
    images = load_dataset(config.data_dir).images
    vae = create_vae().to(config.device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=PEAK_LR, betas=(0.9, 0.99), weight_decay=1e-4)
    total = 20 if config.quick else NUM_UPDATES
    checkpointer = Checkpointer(config.out_dir / "vae" / "state.pt", {"vae": vae, "optimizer": optimizer})
    for update in checkpointer.updates(total, "vae"):
        rng = update_rng(config.seed, update)
        for group in optimizer.param_groups:
            group["lr"] = cosine_lr(update, total, PEAK_LR)
        batch = images[
            rng.integers(len(images), size=BATCH_VIEWS), rng.integers(images.shape[1], size=BATCH_VIEWS)
        ]
        pixels = to_model_range(batch).to(config.device, memory_format=torch.channels_last)
        loss = reconstruction_loss(vae, pixels)
        descend(loss, vae.parameters(), optimizer)
    vae.eval()
    set_scaling_factor(vae, images)
    vae.save_pretrained(config.out_dir / "vae")
    encode_dataset(vae, images, config.out_dir / "latents.npy")
    report(vae, config)


def to_model_range(images: np.ndarray) -> Tensor:
    """uint8 [..., H, W, 3] to float [..., 3, H, W] in [-1, 1], which is what the VAE takes."""
    return torch.from_numpy(np.ascontiguousarray(images)).movedim(-1, -3).float() / 127.5 - 1.0


def reconstruction_loss(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """L1 of pixels and of their differences (edges would blur otherwise), plus a slight KL."""
    with fast_autocast(pixels.device.type):
        posterior = vae.encode(pixels).latent_dist
        decoded = vae.decode(posterior.sample()).sample
    decoded = decoded.float()
    error = decoded - pixels
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + EDGE_WEIGHT * edges + KL_WEIGHT * posterior.kl().float().mean()


@torch.no_grad()
def set_scaling_factor(vae: AutoencoderKL, images: np.ndarray, num_scenes: int = 100) -> None:
    """Write 1 / (standard deviation of the latents) into the VAE's configuration, as SDXL's has it."""
    pixels = to_model_range(images[:num_scenes].reshape(-1, *images.shape[2:]))
    latents = torch.cat([vae.encode(chunk.to(vae.device)).latent_dist.mean for chunk in pixels.split(60)])
    vae.register_to_config(scaling_factor=1.0 / float(latents.std()))


@torch.no_grad()
def encode_dataset(vae: AutoencoderKL, images: np.ndarray, path: Path) -> None:
    """Encode all renders (posterior means, scaled) to float16 [N, V, 4, H, W], written atomically."""
    from tqdm import tqdm

    latents = []
    for scenes in tqdm(np.array_split(images, max(1, len(images) // 20)), desc="encode", mininterval=5.0):
        pixels = to_model_range(scenes.reshape(-1, *scenes.shape[2:])).to(vae.device)
        mean = vae.encode(pixels).latent_dist.mean * vae.config["scaling_factor"]
        latents.append(mean.reshape(len(scenes), -1, *mean.shape[1:]).half().cpu().numpy())
    with replaced(path) as temporary, temporary.open("wb") as file:
        np.save(file, np.concatenate(latents))


@torch.no_grad()
def report(vae: AutoencoderKL, config: StageConfig, num_scenes: int = 50) -> None:
    """Measure the reconstruction of held-out renders and write it beside the weights."""
    images = load_dataset(config.test_data_dir).images[:num_scenes]
    pixels = to_model_range(images.reshape(-1, *images.shape[2:])).to(vae.device)
    decoded = torch.cat([vae.decode(vae.encode(x).latent_dist.mean).sample for x in pixels.split(60)]).clamp(
        -1, 1
    )
    mse = F.mse_loss(decoded, pixels) / 4.0  # to the scale of [0, 1]
    figures = {"psnr_db": float(-10.0 * torch.log10(mse)), "scaling_factor": vae.config["scaling_factor"]}
    logger.info("held-out reconstruction: %s", figures)
    (config.out_dir / "vae" / "report.json").write_text(json.dumps(figures, indent=1))
