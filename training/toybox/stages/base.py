"""Stage `base`: the UNet and the text encoders on single views with captions, as SDXL learned pictures.

Nothing knows of cameras. Half of the captions name the side that the picture shows ("a red mug, back view"),
as captions on the web do: what a model knows of sides before its adapter comes is from such words.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from t2mv_core.schedule import NoiseSchedule
from t2mv_core.scheduler_config import schedule_from_config

from ..data.captions import caption, view_caption
from ..data.dataset import load_dataset
from ..data.scenes import Scene
from .fitting import fit
from .networks import TEACHER_SCHEDULER, SingleViewNetworks, fast_autocast, load_average
from .stage import StageConfig, seed_everything

NUM_UPDATES = 4000
BATCH_VIEWS = 48
PEAK_LR = 1e-3
DROP_CAPTION = 0.12  # share of views trained without text, for classifier-free guidance
NAME_SIDE = 0.5
PURE_NOISE = 0.25
PURE_NOISE_FROM = 2500
"""From this update on, that share of the pictures starts from pure noise, as sampling does. What leaks into
the noisiest state tells the side; without pure noise the model would read it there, and not from
words or cameras."""

MISLED_FROM = 500  # below, too much is drawn to be drawn anew


def run(config: StageConfig) -> None:
    """Train the base; state and running average are kept in `base/state.pt`."""
    seed_everything(config.seed)
    latents = np.load(config.out_dir / "latents.npy", mmap_mode="r")
    scenes = load_dataset(config.data_dir).scenes
    networks = SingleViewNetworks().to(config.device)
    networks.unet.to(memory_format=torch.channels_last)
    schedule = schedule_from_config(TEACHER_SCHEDULER)

    def loss_of_update(update: int, total: int, rng: np.random.Generator) -> Tensor:
        picked = rng.integers(len(scenes), size=BATCH_VIEWS)
        views = rng.integers(latents.shape[1], size=BATCH_VIEWS)
        captions = draw_captions([scenes[i] for i in picked], views.tolist(), rng)
        clean = torch.from_numpy(latents[picked, views]).float().to(config.device)
        pure_noise = PURE_NOISE if update >= PURE_NOISE_FROM else 0.0
        noisy, noise, timestep, alpha_bar = add_noise(schedule, clean, rng, pure_noise=pure_noise)
        with fast_autocast(config.device):
            predicted = networks.predict(noisy, timestep, networks.encode(captions))
        return denoising_loss(predicted, noise, alpha_bar)

    fit(config, "base", networks, config.seed, NUM_UPDATES, PEAK_LR, loss_of_update)


def load_base(config: StageConfig) -> SingleViewNetworks:
    """The base's running average, frozen.

    Raises:
        FileNotFoundError: the `base` stage has not run.
    """
    networks = load_average(SingleViewNetworks(), config.out_dir / "base")
    return networks.to(config.device).eval().requires_grad_(False)


def draw_captions(scenes: Sequence[Scene], views: Iterable[int], rng: np.random.Generator) -> list[str]:
    """A random true caption of each view, often with its side, now and then none."""
    captions = []
    for scene, view in zip(scenes, views, strict=True):
        text = caption(scene, rng)
        text = view_caption(text, view) if rng.random() < NAME_SIDE else text
        captions.append("" if rng.random() < DROP_CAPTION else text)
    return captions


def add_noise(
    schedule: NoiseSchedule,
    clean: Tensor,
    rng: np.random.Generator,
    high_noise: float = 1.0,
    pure_noise: float = 0.0,
    shown: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_t = √ᾱ·x_0 + √(1-ᾱ)·ε at a random timestep for each entry of the batch.

    A share of the entries has pure noise x_t at the last timestep instead, and the state may show something
    else than x_0. ε is what leads from the state to x_0 in every case: ε = (x_t - √ᾱ·x_0) / √(1-ᾱ).

    Args:
        schedule: with ᾱ.
        clean: x_0, [B, ...].
        rng: draws timesteps, u^(1/high_noise)·T with uniform u; noise comes from torch's generator.
        high_noise: above 1 the noisiest timesteps are drawn more often.
        pure_noise: probability of an entry to have pure noise.
        shown: in the place of x_0 in states of timestep MISLED_FROM and above, [B, ...]; none is x_0 itself.

    Returns:
        x_t, ε, t [B], ᾱ [B, 1, ...].
    """
    fraction = rng.random(len(clean)) ** (1 / high_noise)
    is_pure = torch.from_numpy(rng.random(len(clean)) < pure_noise)
    timestep = torch.from_numpy((fraction * schedule.num_train_steps).astype(np.int64))
    timestep[is_pure] = schedule.num_train_steps - 1
    alpha_bar = schedule.alpha_bar_at(timestep).float().to(clean.device)
    alpha_bar = alpha_bar.reshape(-1, *[1] * (clean.ndim - 1))
    noise = torch.randn_like(clean)
    is_late = (timestep < MISLED_FROM).to(clean.device).reshape(alpha_bar.shape)
    shown = clean if shown is None else torch.where(is_late, clean, shown)
    noisy = alpha_bar.sqrt() * shown + (1 - alpha_bar).sqrt() * noise
    noisy = torch.where(is_pure.to(clean.device).reshape(alpha_bar.shape), noise, noisy)
    implied = (noisy - alpha_bar.sqrt() * clean) / (1 - alpha_bar).sqrt()
    return noisy, implied, timestep, alpha_bar


def denoising_loss(predicted: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """Noise-prediction loss weighted as velocity prediction, mean (ε_θ - ε)² / ᾱ_t.

    Unweighted, the noisiest steps, which decide the colours, count for little. With 1/ᾱ the loss is that of
    v = √ᾱ·ε - √(1-ᾱ)·x_0 (Salimans & Ho, arXiv:2202.00512).
    """
    return ((predicted.float() - noise).square() / alpha_bar).mean()
