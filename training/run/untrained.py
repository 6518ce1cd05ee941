"""The first measurement of a constrained run: joint rewards of the policy before anything is learned."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate import Accelerator

from t2mv_core.samplers import OnStep, count_evaluations
from t2mv_core.trajectory import derive_seed

from ..algorithm.advantages import weighted_mean
from ..algorithm.rollout import Policy, RolloutSettings, collect
from ..algorithm.scoring import Rewards
from ..config import TrainConfig
from ..data.prompt_sampler import PromptSampler
from ..models.policy import sampling_settings
from ..models.subjects import Subjects


def measure_untrained(
    policy: Policy,
    rewards: Rewards,
    config: TrainConfig,
    subjects: Subjects,
    accelerator: Accelerator,
    begin: Callable[[int], OnStep],
) -> list[float]:
    """Return the joint rewards of `constraint.threshold_prompts` sets, drawn by standard sampling.

    The processes share the sets; where they do not divide, each draws one more. Of a set only its reward is
    kept, so this takes no more memory than a rollout.

    Args:
        policy: the policy, whose LoRA has no effect yet.
        rewards: the scorers; those of single views do not run.
        config: the run's.
        subjects: those to train on are drawn, pass by pass in an order of their own.
        accelerator: the processes.
        begin: takes the number of UNet evaluations to come; returns what is called after each.
    """
    seed, batch_size = derive_seed(config.run.seed, "untrained"), config.sampling.batch_size
    settings = RolloutSettings(("standard",), sampling_settings(config.sampling), batch_size, seed)
    scorers, weights = Rewards({}, rewards.joint), config.reward.joint
    share = -(-config.constraint.threshold_prompts // accelerator.num_processes)
    drawn = PromptSampler(subjects.split.train, seed).draw(share * accelerator.num_processes)
    requests = list(enumerate(drawn))[accelerator.process_index :: accelerator.num_processes]
    on_step = begin(-(-share // batch_size) * count_evaluations("standard", settings.sampling))
    means = []
    for start in range(0, share, batch_size):
        slots, names = zip(*requests[start : start + batch_size], strict=True)
        rollout = collect(policy, scorers, settings, 0, slots, subjects.batch(names), on_step)
        means.append(weighted_mean(rollout.sets[0].scores.joint, weights))
    return accelerator.gather(torch.cat(means).to(accelerator.device)).tolist()
