"""Held-out evaluation while training: measures the LoRA as it is, and says when to stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from t2mv_core.samplers import OnStep, count_evaluations
from t2mv_core.toybox.judge import Judge, load_judge

from ..algorithm.rollout import Policy
from ..algorithm.scoring import Rewards
from ..config import EvaluationConfig, TrainConfig
from ..data.prompts import PromptSplit, load_held_out
from ..data.text_cache import warn_of_unread
from ..models.policy import sampling_settings
from ..models.rewards import measure_names
from ..models.subjects import Subjects
from .early_stop import EarlyStop
from .measure import Instruments, Variant, is_judged, make_questions, measure_policy, spread
from .report import applicable

SEED = 7_000_000
"""Of the evaluation's noise; equal in every evaluation, so that differences are the LoRA's."""


def check_stop_measure(config: TrainConfig) -> None:
    """Refuse a watched reward that the evaluation will not measure; the judge's measures always pass.

    Raises:
        ValueError: names what will be measured.
    """
    measure = config.evaluation.stop_measure
    if measure is None or not measure.startswith(("view_reward", "joint_reward")):
        return
    measures: list[str] = []
    for role in ("view", "joint"):
        learned, measuring = getattr(config.reward, role), getattr(config.evaluation, role)
        only = frozenset(measuring) - frozenset(learned)
        measures += measure_names(role, dict.fromkeys((*learned, *measuring)), only).values()
    if measure not in measures:
        raise ValueError(
            f"evaluation.stop_measure={measure} will not be measured; the rewards' measures are "
            f"{', '.join(measures)}."
        )


def choose_held_out(config: EvaluationConfig, split: PromptSplit) -> Sequence[str]:
    """Return the prompts of held-out evaluations: those of the configuration, or those the split holds out.

    Raises:
        ValueError: there are none, and evaluations are asked for.
        FileNotFoundError: neither a set nor a file.
    """
    if not config.every:
        return ()
    prompts = split.held_out if config.prompts is None else load_held_out(config.prompts, split.train)
    if not prompts:
        raise ValueError(
            "There are no held-out prompts to evaluate on; set evaluation.prompts or sampling.held_out_share."
        )
    return prompts


class Monitor:
    """Measures standard sampling on held-out prompts every `evaluation.every` iterations.

    Args:
        config: the run's; nothing is done when `evaluation.every` is 0.
        policy: the policy in training.
        rewards: the scorers that measure.
        subjects: the run's prompts or pictures; those held out are used when no others are named.

    Raises:
        ValueError, FileNotFoundError: evaluation prompts that cannot be used.
    """

    def __init__(
        self,
        config: TrainConfig,
        policy: Policy,
        rewards: Rewards,
        subjects: Subjects,
    ) -> None:
        self.config = config.evaluation
        self.policy, self.subjects = policy, subjects
        self.variant = Variant("training", "standard", sampling_settings(config.sampling))
        asked: tuple[str, ...] = ()
        if self.config.every:
            prompts = choose_held_out(self.config, subjects.split)
            if (source := self.config.prompts) is not None:
                warn_of_unread(policy.bundle, source, prompts, rewards.scorers)
            asked = spread(prompts, self.config.num_prompts)
            asked_prompts, pictures = subjects.prompts(asked), subjects.pictures(asked)
            questions = make_questions(config.sampling, asked_prompts, (SEED,), pictures)
            self.questions = replace(questions, num_kept=1)
            learned = {*config.reward.view, *config.reward.joint}
            only_measuring = frozenset({*rewards.view, *rewards.joint} - learned)
            self.instruments = Instruments(rewards, self._judge(), only_measuring=only_measuring)
            watched = self.config.stop_measure or ""
            if watched.startswith("judge_") and self.instruments.judge is None:
                raise ValueError(
                    f"evaluation.stop_measure={watched} is measured by the judge, which knows only the "
                    "toybox's objects from the default cameras; watch a reward."
                )
        identities = subjects.identities(asked)  # not names: a picture may be replaced under its name
        self.early_stop = EarlyStop(self.config.stop_measure, self.config.patience, identities)

    def measure_when_due(
        self,
        iteration: int,
        averaged: AbstractContextManager[None],
        accelerator: Accelerator,
        begin: Callable[[int], OnStep],
    ) -> dict[str, float] | None:
        """Return the means over the held-out prompts; None when not due, or measured already.

        The main process measures, all take note: they must agree when to stop. A measure that no prompt has,
        such as the judge's part colour, is left out.

        Args:
            iteration: iterations done.
            averaged: within it the policy is the one to measure.
            accelerator: the processes.
            begin: takes the number of UNet evaluations to come; returns what is called after each.

        Raises:
            ValueError: the stop measure is not among what was measured.
            NonFiniteError: a reward is not finite.
        """
        if not self.config.every or iteration % self.config.every:
            return None
        if self.early_stop.last_iteration == iteration:
            return None
        shared: list[dict[str, float] | None] = [None]
        if accelerator.is_main_process:
            with averaged:
                shared = [self._measure(begin)]
        if accelerator.num_processes > 1:
            broadcast_object_list(shared)
        means = shared[0]
        assert means is not None  # the main process measured
        self.early_stop.update(iteration, means)
        return means

    def _measure(self, begin: Callable[[int], OnStep]) -> dict[str, float]:
        evaluations = count_evaluations(self.variant.sampler, self.variant.settings)
        on_step = begin(self.questions.num_batches * evaluations)
        measurement = measure_policy(
            self.policy,
            self.instruments,
            self.variant,
            self.questions,
            self.subjects.conditions,
            on_step,
        )
        return {name: float(values.nanmean()) for name, values in applicable(measurement.values).items()}

    def _judge(self) -> Judge | None:
        if self.questions.specs is None or not is_judged(self.policy.bundle):
            return None
        return load_judge().to(self.policy.bundle.device)
