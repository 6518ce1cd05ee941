"""The training loop: rollout, advantages, dual step, policy update, record, save."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from t2mv_core.bundle import ModelBundle
from t2mv_core.lora.adapters import trainable_parameters
from t2mv_core.lora.files import save_lora
from t2mv_core.samplers import OnStep, StepEvent, count_evaluations

from ..algorithm.advantages import (
    RewardTable,
    equal_rewards,
    gather_rewards,
    iteration_advantages,
    weighted_mean,
)
from ..algorithm.learner import UpdateStats
from ..algorithm.objectives import OBJECTIVES
from ..algorithm.rollout import Rollout, RolloutSettings, collect
from ..algorithm.scoring import Rewards
from ..config import TrainConfig
from ..data.prompt_sampler import PromptSampler
from ..data.text_cache import warn_of_unread
from ..evaluation.validation import Monitor
from ..models.base_loras import describe_base_loras, refuse_other_base_loras
from ..models.policy import (
    LORA_NAME,
    averaged,
    iteration_updates,
    make_average,
    make_dual,
    make_learner,
    make_optimizer,
    make_policy,
    sampling_settings,
)
from ..models.subjects import Subjects
from .checkpoint import RunState, fits, load_checkpoint, refuse_another_run, save_checkpoint, saved_config
from .console import Display, RunDisplay
from .folder import Recorder, RunFolder
from .processes import process_slots
from .records import iteration_record
from .untrained import measure_untrained

logger = logging.getLogger(__name__)


class SamplingCancelled(Exception):  # noqa: N818 - not an error
    """A stop was asked for while sampling; what is sampled now is sampled again when the run goes on."""


class Trainer:
    """One training run.

    All that changes is in a Checkpoint, and every random draw derives from (seed, iteration, slot), so that a
    resumed run continues bit for bit on the CPU.

    Args:
        config: everything the run depends on.
        bundle: the base model, with base LoRAs or without; a LoRA is added to its UNet.
        rewards: the scorers.
        accelerator: processes and device; none is this process alone on the bundle's device.
        resume: continue from the run folder's saved state when there is one.
        measures: the scorers of held-out evaluations; none: those of the training.
        display: shows the run, and may raise at any step to end it where it is; none: bars on a terminal.

    Raises:
        FileExistsError: the run folder holds a run and `resume` is false.
        ValueError: the saved state does not fit this configuration, or the prompts do not divide among
            processes.
        OSError: the run folder cannot be written.
    """

    def __init__(
        self,
        config: TrainConfig,
        bundle: ModelBundle,
        rewards: Rewards,
        accelerator: Accelerator | None = None,
        resume: bool = False,
        measures: Rewards | None = None,
        display: Display | None = None,
    ) -> None:
        self.config, self.rewards = config, rewards
        self.accelerator = accelerator or Accelerator(cpu=bundle.device.type == "cpu")
        self.slots = process_slots(self.accelerator, config.sampling.prompts_per_iteration)
        self.objective = OBJECTIVES[config.objective]
        self.sampling = sampling_settings(config.sampling)
        self.subjects = Subjects(bundle, config.sampling)
        split = self.subjects.split
        prompts = self.subjects.prompts((*split.train, *split.held_out))
        warn_of_unread(bundle, self.subjects.source, prompts, (measures or rewards).scorers)
        warn_of_unread(bundle, "sampling.negative_prompt", [config.sampling.negative_prompt or ""])
        self.prompts = PromptSampler(split.train, config.run.seed, self.subjects.identities(split.train))
        self.dual = make_dual(config)
        self.policy = make_policy(config, bundle)
        self.base_loras = describe_base_loras(bundle.loras)
        parameters = trainable_parameters(bundle.unet, LORA_NAME)
        self.ema = make_average(config.optim.ema_decay, parameters) if config.optim.ema_decay else None
        self.optimizer = make_optimizer(config.optim, parameters)
        self.learner = make_learner(config, self.policy, self.optimizer, self.accelerator, self.ema)
        self.monitor = Monitor(config, self.policy, measures or rewards, self.subjects)
        self.state = RunState(
            self.policy, self.optimizer, self.ema, self.dual, self.prompts, self.monitor.early_stop
        )
        self.iteration = 0
        self.num_iterations = config.run.epochs * config.run.iterations_per_epoch
        self.is_stopping = self.is_saved = False
        self.warned_of: set[str] = set()  # rewards
        self.recorder: Recorder | None = None  # of the main process
        self.folder = RunFolder(Path(config.run.out_dir))
        with self._locked_folder():  # not into the files of a run that is going on
            self._open_folder(resume)
        self.display = display or RunDisplay(
            self.num_iterations, self.iteration, self.accelerator.is_main_process
        )

    def request_stop(self) -> None:
        """Ask the run to save its state and end as soon as it can; safe to call from a signal handler."""
        self.is_stopping = True

    def run(self) -> bool:
        """Train to the end, or until a stop is asked for.

        Returns:
            Whether the run is over: all iterations are done, or held-out evaluation ended it early.

        Raises:
            NonFiniteError: a reward, loss or gradient is not finite; the last saved state is a good one.
            OSError: the run folder cannot be written.
        """
        with self._locked_folder(), self.display.shown():
            if not self.is_saved:
                self._save()  # before the first record: records without a state are a lost run's
            with suppress(SamplingCancelled):
                self._evaluate()  # the baseline, or what a stop left out
                while not self._is_over() and not self._agree_to_stop():
                    self._advance()
            if not self.is_saved:
                self._save()
            if self.recorder is not None:
                self.recorder.finish(self.iteration)
        return self._is_over()

    def _advance(self) -> None:
        """Do an iteration and report it; one that is cancelled while sampling leaves no trace."""
        prompt_state = self.prompts.state_dict()
        try:
            self._start_dual()
            record, rollout = self._iterate(self.iteration + 1)
        except SamplingCancelled:
            self.prompts.load_state_dict(prompt_state)
            raise
        self.iteration += 1
        self.is_saved = False
        self._report(record, rollout)

    def _iterate(self, iteration: int) -> tuple[dict[str, float], Rollout]:
        """Do one iteration of docs/method.md, section 5 under the constraint of section 6."""
        started = time.monotonic()
        rollout, table = self._collect(iteration)
        collected = time.monotonic()
        self._warn_of_equal_rewards(table)
        weights = self.config.reward
        if self.dual is not None:
            self.dual.step(weighted_mean(table.joint, weights.joint).flatten().tolist())
        advantages = self._advantages(table)
        stats = self._update(iteration, rollout, advantages[list(self.slots)])
        record = {
            "iteration": iteration,
            **iteration_record(self.config, table, advantages, stats, self.dual),
            "rollout_seconds": round(collected - started, 3),
            "update_seconds": round(time.monotonic() - collected, 3),
        }
        return record, rollout

    def _start_dual(self) -> None:
        """Measure where threshold and spread start, unless the run has them or leaves it to the iteration."""
        is_measured = self.config.constraint.threshold_prompts > 0
        if self.dual is None or self.dual.threshold is not None or not is_measured:
            return
        joint_rewards = measure_untrained(
            self.policy,
            self.rewards,
            self.config,
            self.subjects,
            self.accelerator,
            partial(self._begin_sampling, "first threshold"),
        )
        self.dual.observe(joint_rewards)
        if self.accelerator.is_main_process:
            logger.info(
                "The untrained policy's mean joint reward over %d sets of %d prompts is %.4f, the first "
                "threshold; the spread is %.4f.",
                len(joint_rewards),
                min(len(joint_rewards), len(self.prompts.prompts)),
                self.dual.threshold,
                self.dual.spread,
            )
        self._save()

    def _begin_sampling(self, name: str, num_evaluations: int, is_shared: bool = True) -> OnStep:
        """Show a part of the run; return what counts its UNet evaluations and ends it when a stop is due.

        `is_shared` says that all processes sample, equally often: only then can they ask each other whether
        to stop. No process stops alone, for the others would wait for its rewards.
        """
        self.display.phase(name, num_evaluations)
        can_stop = is_shared or self.accelerator.num_processes == 1

        def on_step(_: StepEvent) -> None:
            self.display.advance()
            if can_stop and self._agree_to_stop():
                raise SamplingCancelled

        return on_step

    def _collect(self, iteration: int) -> tuple[Rollout, RewardTable]:
        """Sample this process's share of the iteration; the rewards are everybody's."""
        config = self.config.sampling
        drawn = self.prompts.draw(config.prompts_per_iteration)
        settings = RolloutSettings(
            self.objective.samplers,
            self.sampling,
            config.batch_size,
            self.config.run.seed,
            self.objective.has_own_noise,
        )
        num_batches = -(-len(self.slots) // settings.batch_size)
        evaluations = num_batches * sum(count_evaluations(name, self.sampling) for name in settings.samplers)
        on_step = self._begin_sampling("rollout", evaluations)
        batch = self.subjects.batch([drawn[slot] for slot in self.slots])
        rollout = collect(self.policy, self.rewards, settings, iteration, self.slots, batch, on_step)
        return rollout, gather_rewards(rollout, drawn, self.accelerator)

    def _warn_of_equal_rewards(self, table: RewardTable) -> None:
        """Say once of a reward that all trajectories have alike."""
        for name in equal_rewards(table):
            if name not in self.warned_of:
                logger.warning("%s scores all trajectories alike; nothing is learned from it.", name)
                self.warned_of.add(name)

    def _advantages(self, table: RewardTable) -> Tensor:
        """Return the combined advantages of all trajectories, [B, K, V]."""
        reward, fixed = self.config.reward, self.objective.fixed_lambda
        lambda_ = self.dual.lambda_ if self.dual is not None else fixed or 0.0
        is_per_prompt = reward.normalization == "prompt"
        return iteration_advantages(table, reward.view, reward.joint, lambda_, is_per_prompt)

    def _update(self, iteration: int, rollout: Rollout, advantages: Tensor) -> UpdateStats:
        updates = iteration_updates(self.config, self.slots, iteration)
        self.display.phase("update", sum(len(u.micro_steps) for u in updates))
        return self.learner.apply(rollout, advantages, updates, self.display.advance)

    def _report(self, record: dict[str, float], rollout: Rollout) -> None:
        """Log the iteration, write an epoch's files, save the state and evaluate, each when it is due."""
        is_save_due = self.iteration % self.config.run.save_every == 0
        if self.recorder is not None:
            self.recorder.record(record, rollout)
        if is_save_due:
            self._save()  # an evaluation takes long, and whatever ends it must not cost the iteration
        self._evaluate()
        if self.recorder is not None:
            self.display.report(record)
        if is_save_due and not self.is_saved:
            self._save()

    def _evaluate(self) -> None:
        """Measure on held-out prompts when it is due, before the first iteration too: the baseline."""
        begin = partial(self._begin_sampling, "evaluation", is_shared=False)
        means = self.monitor.measure_when_due(self.iteration, self._averaged(), self.accelerator, begin)
        if means is None:
            return
        self.is_saved = False
        is_best = self.iteration > 0 and self.monitor.early_stop.best_iteration == self.iteration
        if self.recorder is not None:
            self.recorder.record_evaluation(self.iteration, means, is_best)
        if is_best:
            self._save()  # at once: a resumed run deletes a best LoRA that is later than its state

    def _save(self) -> None:
        self.is_saved = True
        if self.accelerator.is_main_process:
            save_checkpoint(self.state.capture(self.iteration, self.base_loras), self.folder.state_path)

    def _save_lora(self, path: Path, facts: Mapping[str, str]) -> None:
        """Write the LoRA, or its average where there is one, with what the file says about itself."""
        general = {
            "base_model": self.policy.bundle.name,
            "solver": self.policy.bundle.schedule.solver_name,
            **self.base_loras,
            "preset": self.config.preset,
            "objective": self.config.objective,
            "step": str(self.iteration),
            "num_steps": str(self.sampling.num_steps),
            "guidance_scale": str(self.sampling.guidance_scale),
            "weights": "trained" if self.ema is None else f"average, decay {self.ema.decay}",
        }
        with self._averaged():
            save_lora(self.policy.bundle.unet, path, {**general, **facts}, LORA_NAME)

    def _averaged(self) -> AbstractContextManager[None]:
        return averaged(self.ema, self.learner.parameters)

    def _locked_folder(self) -> AbstractContextManager[None]:
        return self.folder.locked() if self.accelerator.is_main_process else nullcontext()

    def _open_folder(self, resume: bool) -> None:
        """Resume or refuse a folder with a run in it; begin the record otherwise."""
        folder = self.folder
        checkpoint = load_checkpoint(folder.state_path)
        has_begun = folder.has_records() or (checkpoint is not None and checkpoint.iteration > 0)
        folder.check(resume, has_begun)
        # Where nothing was trained, because memory was short or a setting wrong, a run may begin anew.
        goes_on = has_begun or (resume and fits(folder.config_path, self.config))
        if checkpoint is not None and goes_on:
            refuse_another_run(folder.config_path, self.config)
            refuse_other_base_loras(folder.root, checkpoint.base_loras, self.base_loras)
            self.state.restore(checkpoint, self.config.optim)
            self.iteration, self.is_saved = checkpoint.iteration, True
            logger.info("Resumed %s at iteration %d.%s", folder.root, self.iteration, self._why_over())
        self.accelerator.wait_for_everyone()  # all have compared the old config.yaml before it is replaced
        if self.accelerator.is_main_process:
            trained = saved_config(folder.config_path) if self._is_over() else None
            # what a finished run learned with stays; files may have moved, and evaluations may be new
            config = self.config if trained is None else replace(self.config, optim=trained.optim)
            folder.write_config(config)
            self.recorder = Recorder(self.config, folder, self.accelerator, self.iteration, self._save_lora)

    def _why_over(self) -> str:
        """Return what makes a finished run go on, as a sentence behind another; "" for a run that goes on."""
        if self.monitor.early_stop.is_due:
            return " Evaluation has ended it; a larger evaluation.patience, or 0, makes it go on."
        return " It is finished; more run.epochs make it go on." if self._is_over() else ""

    def _is_over(self) -> bool:
        return self.iteration >= self.num_iterations or self.monitor.early_stop.is_due

    def _agree_to_stop(self) -> bool:
        """Return whether any process was asked to stop; the same answer on all of them."""
        if self.accelerator.num_processes == 1:
            return self.is_stopping
        flag = torch.tensor([float(self.is_stopping)], device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum").item() > 0)
