"""The training loop: rollout, advantages, dual step, policy update, record, save."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from t2mv_core.bundle import ModelBundle
from t2mv_core.lora import lora_state_dict, save_lora, trainable_parameters
from t2mv_core.samplers import StepEvent, count_evaluations

from .checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from .config import TrainConfig, config_to_dict
from .learner import Learner, UpdateStats
from .metrics import MetricsLog, console_line
from .objectives import OBJECTIVES, combine_advantages, normalize_advantages
from .prompts import PromptSampler, load_prompts
from .rollout import Rewards, Rollout, RolloutSettings, collect
from .runfolder import RunFolder
from .setup import (
    LORA_NAME,
    iteration_updates,
    make_dual,
    make_optimizer,
    make_policy,
    restore_lora,
    sampling_settings,
)

logger = logging.getLogger(__name__)


class RolloutCancelled(Exception):  # noqa: N818 - not an error
    """A stop was asked for while sampling; nothing of the iteration has been learned from."""


class Trainer:
    """One training run.

    State: the LoRA and its optimizer, the dual variable, the prompt sampler and the number of iterations
    done. All of it is in the run folder's `last/`, and every random draw derives from (seed, iteration,
    slot), so that a resumed run continues bit for bit on the CPU.

    Args:
        config: everything the run depends on.
        bundle: the base model; a LoRA is added to its UNet.
        rewards: the two scorers.
        accelerator: processes and device; none is this process alone on the bundle's device.
        resume: continue from the run folder's saved state when there is one.

    Raises:
        FileExistsError: the run folder holds a run and `resume` is false.
        ValueError: the saved state does not fit this configuration, or the prompts do not divide among
            processes.
    """

    def __init__(
        self,
        config: TrainConfig,
        bundle: ModelBundle,
        rewards: Rewards,
        accelerator: Accelerator | None = None,
        resume: bool = False,
    ) -> None:
        self.config = config
        self.rewards = rewards
        self.accelerator = accelerator or Accelerator(cpu=bundle.device.type == "cpu")
        self.slots = self._own_slots()
        self.objective = OBJECTIVES[config.objective]
        self.sampling = sampling_settings(config.sampling)
        self.prompts = PromptSampler(load_prompts(config.sampling.prompts), config.run.seed)
        self.dual = make_dual(config.constraint)
        self.policy = make_policy(config, bundle)
        parameters = trainable_parameters(bundle.unet, LORA_NAME)
        self.optimizer = make_optimizer(config.optim, parameters)
        optim = config.optim
        self.learner = Learner(
            self.policy, parameters, self.optimizer, self.accelerator, optim.clip_range, optim.max_grad_norm
        )
        self.iteration = 0
        self.num_iterations = config.run.epochs * config.run.iterations_per_epoch
        self.is_stopping = False
        self.folder = RunFolder(Path(config.run.out_dir))
        self._open_folder(resume)

    def request_stop(self) -> None:
        """Ask the run to save its state and end as soon as it can; safe to call from a signal handler."""
        self.is_stopping = True

    def run(self) -> bool:
        """Train to the end, or until a stop is asked for.

        Returns:
            Whether all iterations are done.

        Raises:
            NonFiniteError: a reward, loss or gradient is not finite; `last/` holds the last saved good state.
            OSError: the run folder cannot be written.
        """
        started, done_before = time.monotonic(), self.iteration
        while self.iteration < self.num_iterations and not self._agree_to_stop():
            prompt_state = self.prompts.state_dict()
            try:
                record, rollout = self._iterate(self.iteration + 1)
            except RolloutCancelled:
                self.prompts.load_state_dict(prompt_state)
                break
            self.iteration += 1
            pace = (time.monotonic() - started) / (self.iteration - done_before)
            self._report(record, rollout, pace * (self.num_iterations - self.iteration))
            del rollout  # two iterations' trajectories need not be in memory together
        if self.iteration % self.config.run.save_every:
            self._save()
        return self.iteration >= self.num_iterations

    def _iterate(self, iteration: int) -> tuple[dict[str, float], Rollout]:
        """One iteration of METHOD.md section 5 under the constraint of section 6."""
        started = time.monotonic()
        rollout = self._collect(iteration)
        view, joint = self._gather_rewards(rollout)
        collected = time.monotonic()
        self.dual.step(float(joint.double().mean()))
        gap, gap_mean = self._advantage_gap(rollout, view, joint)
        stats = self._update(iteration, rollout, gap)
        record = {
            "iteration": iteration,
            **asdict(stats),
            "view_reward_standard": float(view[:, 0].double().mean()),
            "view_reward_zmv": float(view[:, 1].double().mean()),
            "joint_reward_standard": float(joint[:, 0].double().mean()),
            "joint_reward_zmv": float(joint[:, 1].double().mean()),
            "advantage_gap": gap_mean,
            "lambda": self.dual.lambda_,
            "threshold": self.dual.threshold,
            "rollout_seconds": round(collected - started, 3),
            "update_seconds": round(time.monotonic() - collected, 3),
        }
        return record, rollout

    def _collect(self, iteration: int) -> Rollout:
        config = self.config.sampling
        drawn = self.prompts.draw(config.prompts_per_iteration)
        settings = RolloutSettings(
            self.objective.samplers,
            self.sampling,
            config.batch_size,
            self.config.run.seed,
            config.negative_prompt,
        )
        num_batches = -(-len(self.slots) // settings.batch_size)
        evaluations = num_batches * sum(count_evaluations(name, self.sampling) for name in settings.samplers)
        with self._progress(evaluations, f"iteration {iteration}: rollout") as progress:

            def on_step(_: StepEvent) -> None:
                progress.update()
                # One of several processes must not leave alone: the others would wait for its rewards.
                if self.is_stopping and self.accelerator.num_processes == 1:
                    raise RolloutCancelled

            requests = [(slot, drawn[slot]) for slot in self.slots]
            return collect(self.policy, self.rewards, settings, iteration, requests, on_step)

    def _gather_rewards(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """View rewards [B, 2, V] and joint rewards [B, 2] of all processes, on the CPU."""
        view = torch.stack([scored.scores.view for scored in rollout.sets], dim=1)
        joint = torch.stack([scored.scores.joint for scored in rollout.sets], dim=1)
        device = self.accelerator.device
        return self.accelerator.gather(view.to(device)).cpu(), self.accelerator.gather(joint.to(device)).cpu()

    def _advantage_gap(self, rollout: Rollout, view: Tensor, joint: Tensor) -> tuple[Tensor, float]:
        """First minus second set's combined advantage, [B, V] of this process; its mean over all."""
        lambda_ = self.dual.lambda_ if self.objective.fixed_lambda is None else self.objective.fixed_lambda

        def advantage(view_reward: Tensor, joint_reward: Tensor) -> Tensor:
            return combine_advantages(
                normalize_advantages(view_reward, view), normalize_advantages(joint_reward, joint), lambda_
            )

        first, second = (advantage(scored.scores.view, scored.scores.joint) for scored in rollout.sets)
        everywhere = advantage(view[:, 0], joint[:, 0]) - advantage(view[:, 1], joint[:, 1])
        return first - second, float(everywhere.double().mean())

    def _update(self, iteration: int, rollout: Rollout, gap: Tensor) -> UpdateStats:
        updates = iteration_updates(self.config, self.slots, iteration)
        with self._progress(
            sum(len(u.micro_steps) for u in updates), f"iteration {iteration}: update"
        ) as progress:
            return self.learner.apply(rollout, gap, updates, self.sampling, progress.update)

    def _report(self, record: Mapping[str, float], rollout: Rollout, seconds_left: float) -> None:
        """Log the iteration; at the end of an epoch write its files; save the state when it is due."""
        run = self.config.run
        if self.accelerator.is_main_process:
            self.metrics.append(record)
            logger.info("%s", console_line(record, self.num_iterations, seconds_left))
            if self.iteration % run.iterations_per_epoch == 0:
                epoch = self.iteration // run.iterations_per_epoch
                save_lora(
                    self.policy.bundle.unet, self.folder.lora_path(epoch), self._lora_metadata(), LORA_NAME
                )
                self.folder.write_curves()
                self.folder.write_sheet(epoch, rollout, run.sheet_prompts)
        if self.iteration % run.save_every == 0:
            self._save()

    def _lora_metadata(self) -> dict[str, str]:
        """What a LoRA file says about itself; reward means are the standard sampler's, last epoch."""
        means = self.metrics.means(self.config.run.iterations_per_epoch)
        return {
            "rank": str(self.config.model.lora_rank),
            "alpha": str(self.config.model.lora_alpha),
            "base_model": self.policy.bundle.name,
            "preset": self.config.preset,
            "objective": self.config.objective,
            "step": str(self.iteration),
            "num_steps": str(self.sampling.num_steps),
            "guidance_scale": str(self.sampling.guidance_scale),
            "view_reward_mean": str(means.get("view_reward_standard", "")),
            "joint_reward_mean": str(means.get("joint_reward_standard", "")),
        }

    def _save(self) -> None:
        if not self.accelerator.is_main_process:
            return
        checkpoint = Checkpoint(
            self.iteration,
            lora_state_dict(self.policy.bundle.unet, LORA_NAME),
            self._lora_metadata(),
            self.optimizer.state_dict(),
            self.dual.state_dict(),
            self.prompts.state_dict(),
        )
        save_checkpoint(self.folder.root, checkpoint)

    def _open_folder(self, resume: bool) -> None:
        """Resume or refuse a folder with a run in it; begin the record otherwise."""
        with self.accelerator.main_process_first():  # loading may finish a swap that a kill interrupted
            checkpoint = load_checkpoint(self.folder.root)
        if checkpoint is not None and not resume:
            raise FileExistsError(
                f"{self.folder.root} holds a run at iteration {checkpoint.iteration}; continue it with "
                "--resume auto, or choose another run.out_dir."
            )
        if checkpoint is not None:
            self._restore(checkpoint)
        if self.accelerator.is_main_process:
            self.folder.write_config(config_to_dict(self.config))
            self.metrics = MetricsLog(self.folder.metrics_path, self.iteration)

    def _restore(self, checkpoint: Checkpoint) -> None:
        restore_lora(self.policy, checkpoint.lora)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        self.dual.load_state_dict(checkpoint.dual)
        self.prompts.load_state_dict(checkpoint.prompts)
        self.iteration = checkpoint.iteration
        logger.info("Resumed %s at iteration %d.", self.folder.root, self.iteration)

    def _own_slots(self) -> range:
        count, processes = self.config.sampling.prompts_per_iteration, self.accelerator.num_processes
        if count % processes:
            raise ValueError(
                f"sampling.prompts_per_iteration={count} does not divide among {processes} processes; "
                f"use a multiple of {processes}."
            )
        return range(self.accelerator.process_index, count, processes)

    def _agree_to_stop(self) -> bool:
        """Whether any process was asked to stop; the same answer on all of them."""
        flag = torch.tensor([float(self.is_stopping)], device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum").item() > 0)

    def _progress(self, total: int, label: str) -> tqdm:
        is_hidden = not (self.accelerator.is_main_process and sys.stderr.isatty())
        return tqdm(total=total, desc=label, leave=False, disable=is_hidden)
