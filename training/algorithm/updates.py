"""The plan of an update: the (prompt, step) pairs of each optimizer step, cut into micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from t2mv_core.trajectory import derive_seed


@dataclass(frozen=True)
class MicroStep:
    """One forward and backward pass.

    Attributes:
        prompts: rows of this process's rollout, [b].
        steps: the denoising step of each of them, [b].
    """

    prompts: Tensor
    steps: Tensor


@dataclass(frozen=True)
class Update:
    """One optimizer step.

    Attributes:
        micro_steps: the passes of this process whose gradients accumulate; empty where only others have work.
        num_terms: (prompt, step) pairs of the update over all processes, which divide the summed loss.
    """

    micro_steps: tuple[MicroStep, ...]
    num_terms: int


def step_order(seed: int, slot: int, num_steps: int) -> list[int]:
    """Return the random order of one prompt's denoising steps, the same for both of its trajectories."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "steps", slot))
    return torch.randperm(num_steps, generator=generator).tolist()


def plan_updates(
    num_prompts: int,
    num_steps: int,
    trained_steps: int,
    prompts_per_update: int,
    steps_per_update: int,
    micro_batch: int,
    owned: Sequence[int],
    seed: int,
) -> list[Update]:
    """Cut one pass over an iteration's trajectories into optimizer steps, remainders included.

    An update is a plain mean over its pairs, whatever the micro-batch and the number of processes.

    Args:
        num_prompts: prompts of the iteration over all processes; slots 0 .. num_prompts-1.
        num_steps: T.
        trained_steps: how many of a prompt's steps are used, the first of its random order; T for all.
        prompts_per_update: slots of one update; the last update takes what is left.
        steps_per_update: steps of each prompt in one update; likewise.
        micro_batch: prompts of one pass.
        owned: the slots sampled by this process, in the order of its rollout's rows.
        seed: the pass's seed; fixes every prompt's step order.
    """
    rows = {slot: row for row, slot in enumerate(owned)}
    orders = {slot: step_order(seed, slot, num_steps) for slot in owned}
    updates = []
    for first in range(0, num_prompts, prompts_per_update):
        group = range(first, min(first + prompts_per_update, num_prompts))
        mine = [slot for slot in group if slot in rows]
        chunks = [mine[i : i + micro_batch] for i in range(0, len(mine), micro_batch)]
        for start in range(0, trained_steps, steps_per_update):
            positions = range(start, min(start + steps_per_update, trained_steps))
            micro_steps = tuple(
                MicroStep(torch.tensor([rows[s] for s in chunk]), torch.tensor([orders[s][p] for s in chunk]))
                for chunk in chunks
                for p in positions
            )
            updates.append(Update(micro_steps, len(group) * len(positions)))
    return updates
