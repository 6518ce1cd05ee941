"""How base, adapter and image adapter are trained: AdamW, warm-up, plateau and decay, a running average."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from .networks import create_average
from .stage import Checkpointer, StageConfig, Stateful, descend, trapezoid_lr, update_rng

logger = logging.getLogger(__name__)

LossOfUpdate = Callable[[int, int, np.random.Generator], Tensor]
"""(update, updates in all, its random generator) -> loss."""
QUICK_UPDATES = 4


def fit(
    config: StageConfig,
    name: str,
    learned: nn.Module,
    seed: int,
    num_updates: int,
    peak_lr: float,
    loss_of_update: LossOfUpdate,
) -> nn.Module:
    """Train a module's parameters and return their running average; the state is kept in `<name>/state.pt`.

    Args:
        config: of the run; `quick` makes it QUICK_UPDATES updates.
        name: of the stage.
        learned: all of its parameters are trained.
        seed: with the number of the update, of `loss_of_update`'s generator.
        num_updates: in all.
        peak_lr: learning rate of the plateau.
        loss_of_update: computes the loss of one update.
    """
    average = create_average(learned)
    optimizer = torch.optim.AdamW(learned.parameters(), lr=peak_lr, betas=(0.9, 0.99), weight_decay=0.01)
    total = QUICK_UPDATES if config.quick else num_updates
    parts: dict[str, Stateful] = {"learned": learned, "average": average, "optimizer": optimizer}
    checkpointer = Checkpointer(config.out_dir / name / "state.pt", parts)
    losses: list[float] = []
    for update in checkpointer.updates(total, name):
        for group in optimizer.param_groups:
            group["lr"] = trapezoid_lr(update, total, peak_lr)
        loss = loss_of_update(update, total, update_rng(seed, update))
        descend(loss, learned.parameters(), optimizer)
        average.update_parameters(learned)
        losses.append(loss.item())
        if update % 50 == 49:
            logger.info("update %d: loss %.4f", update + 1, float(np.mean(losses[-50:])))
    module: nn.Module = average.module
    return module
