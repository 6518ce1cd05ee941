"""What the dual variable does by chance, where training changes nothing."""

from __future__ import annotations

import random

from torch import Tensor

from ..config import TrainConfig
from ..models.policy import make_dual

NUM_REPEATS = 300


def largest_lambdas_by_chance(joint: Tensor, config: TrainConfig, seed: int = 0) -> tuple[float, float]:
    """Return the 5 % and 95 % points of the largest λ of runs whose policy stays the untrained one.

    An iteration's mean joint reward depends on which prompts it draws, and λ rises ten times faster than it
    falls, so it rises without any change of the policy. A λ between the two points says nothing about a
    training.

    Args:
        joint: the untrained policy's joint rewards, [P, S]: prompts and noises.
        config: of the runs, with a constraint.
        seed: of the draws.

    Raises:
        ValueError: the objective has no constraint.
    """
    draw = random.Random(seed)
    sampling, run = config.sampling, config.run
    rows = joint.tolist()
    largest = []
    for _ in range(NUM_REPEATS):
        dual = make_dual(config)
        if dual is None:
            raise ValueError(f"The objective {config.objective} has no constraint, so no lambda.")
        if dual.threshold is None and config.constraint.threshold_prompts:
            dual.observe([draw.choice(draw.choice(rows)) for _ in range(config.constraint.threshold_prompts)])
        reached = dual.lambda_
        for _ in range(run.epochs * run.iterations_per_epoch):
            prompts = [draw.choice(rows) for _ in range(sampling.prompts_per_iteration)]
            dual.step([draw.choice(noises) for noises in prompts for _ in range(2)])  # two trajectories
            reached = max(reached, dual.lambda_)
        largest.append(reached)
    largest.sort()
    return largest[round(0.05 * (NUM_REPEATS - 1))], largest[round(0.95 * (NUM_REPEATS - 1))]
