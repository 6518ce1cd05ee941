"""Stage `adapter`: multiview attention and camera encoder on the frozen base, as MV-Adapter on SDXL."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from t2mv_core.scheduler_config import schedule_from_config

from ..data.captions import caption
from ..data.dataset import load_dataset
from .base import DROP_CAPTION, add_noise, denoising_loss, load_base
from .fitting import fit
from .networks import TEACHER_SCHEDULER, MultiviewNetworks, fast_autocast, load_average
from .stage import StageConfig, seed_everything

NUM_UPDATES = 3000
BATCH_VIEWS = 48
# Views of a scene in one update, in turn: fewer give more scenes and captions for the same time.
NARROW_VIEWS = (2, 3, 6)
WIDE_SHARE = 0.15  # the last updates always see all views
PEAK_LR = 3e-3
HIGH_NOISE = 2.0  # MV-Adapter, too, trains at more noise than SDXL: there the views are decided
PURE_NOISE = 0.4  # see the base
WRONG_SIDES = 0.2
"""Share of the sets whose noisy states show the scene's views in another order than the cameras: a drawing
that begins on a wrong side is to be turned by its cameras. Noised renders alone never show that."""


def run(config: StageConfig) -> None:
    """Train the adapter; state and running average are kept in `adapter/state.pt`."""
    seed_everything(config.seed + 3)
    latents = np.load(config.out_dir / "latents.npy", mmap_mode="r")
    scenes = load_dataset(config.data_dir).scenes
    networks = MultiviewNetworks().to(config.device)
    networks.put_in(load_base(config))
    networks.start_adapter()
    networks.requires_grad_(False)
    learned = nn.ParameterList(networks.adapter_parameters()).requires_grad_(True)
    schedule = schedule_from_config(TEACHER_SCHEDULER)

    def loss_of_update(update: int, total: int, rng: np.random.Generator) -> Tensor:
        views = draw_views(update, total, latents.shape[1], rng)
        picked = rng.integers(len(scenes), size=BATCH_VIEWS // len(views))
        captions = ["" if rng.random() < DROP_CAPTION else caption(scenes[i], rng) for i in picked]
        clean = torch.from_numpy(latents[picked][:, views]).float().to(config.device)
        shown = shuffle_views(latents[picked], clean, views, rng)
        noisy, noise, timestep, alpha_bar = add_noise(schedule, clean, rng, HIGH_NOISE, PURE_NOISE, shown)
        with fast_autocast(config.device):
            with torch.no_grad():
                condition = networks.encode(captions)
            predicted = networks.predict_views(noisy, timestep, condition, networks.cameras(views))
        return denoising_loss(predicted, noise, alpha_bar)

    fit(config, "adapter", learned, config.seed + 3, NUM_UPDATES, PEAK_LR, loss_of_update)


def load_teacher(config: StageConfig) -> MultiviewNetworks:
    """The base with the adapter's running average, frozen.

    Raises:
        FileNotFoundError: the `base` or the `adapter` stage has not run.
    """
    networks = MultiviewNetworks()
    networks.put_in(load_base(config))
    load_adapter_into(networks, config)
    return networks.to(config.device).eval().requires_grad_(False)


def load_adapter_into(networks: MultiviewNetworks, config: StageConfig) -> None:
    """Give networks the adapter's running average.

    Raises:
        FileNotFoundError: the `adapter` stage has not run.
    """
    trained = load_average(nn.ParameterList(networks.adapter_parameters()), config.out_dir / "adapter")
    for parameter, value in zip(networks.adapter_parameters(), trained, strict=True):
        parameter.data.copy_(value.data)


def shuffle_views(
    latents: NDArray[np.float16], clean: Tensor, views: list[int], rng: np.random.Generator
) -> Tensor:
    """`clean` [B, V, ...], but a share of its sets has other views of the scene [B, all views, ...]."""
    shown = clean.clone()
    for row in np.flatnonzero(rng.random(len(clean)) < WRONG_SIDES):
        others = rng.permutation(latents.shape[1])[: len(views)]
        shown[row] = torch.from_numpy(latents[row, others]).float().to(clean.device)
    return shown


def draw_views(update: int, total: int, num_views: int, rng: np.random.Generator) -> list[int]:
    """Which views of its scenes an update sees: 2, 3 or all, chosen anew each time; at the end always all."""
    count = NARROW_VIEWS[update % len(NARROW_VIEWS)] if update < (1 - WIDE_SHARE) * total else num_views
    return sorted(rng.choice(num_views, size=count, replace=False).tolist())
