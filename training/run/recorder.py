"""What the main process writes while a run goes on: metrics, trackers, LoRA files, pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext

from accelerate import Accelerator

from t2mv_core.lora.files import save_lora

from ..algorithm.rollout import Policy, Rollout
from ..config import TrainConfig, config_to_dict
from ..models.policy import LORA_NAME
from .ema import LoraEma
from .environment import write_environment
from .folder import RunFolder
from .metrics import MetricsLog

TRACKER_FOLDER = "trackers"


class Recorder:
    """Writes a run's record into its folder; one per run, on the main process.

    Args:
        config: the run's.
        folder: where.
        policy: whose LoRA is written.
        ema: the LoRA's moving average; where there is one, LoRA files hold it.
        accelerator: its trackers get the metrics too.
        iteration: iterations done; a resumed run's later records are computed again, so they go.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        policy: Policy,
        ema: LoraEma | None,
        accelerator: Accelerator,
        iteration: int,
    ) -> None:
        self.config, self.folder, self.policy, self.ema = config, folder, policy, ema
        self.accelerator = accelerator
        folder.write_config(config_to_dict(config))
        write_environment(folder.root / "environment.json")
        self.metrics = MetricsLog(folder.metrics_path, iteration)
        # A run that was killed before its first save also measures its start again.
        earlier = folder.read_evaluations() if iteration else []
        kept = [record for record in earlier if record["iteration"] <= iteration]
        folder.write_evaluations(kept)
        self.evaluations = kept
        self._start_trackers(iteration)

    def record(
        self,
        iteration: int,
        record: Mapping[str, float],
        rollout: Rollout,
        facts: Mapping[str, str],
    ) -> None:
        """Log an iteration; at the end of an epoch write LoRA, curves and samples.

        Raises:
            OSError: the folder cannot be written, or the disk is full; `last/` is as it was.
        """
        run = self.config.run
        self.metrics.append(record)
        self.accelerator.log(dict(record), step=iteration)
        if iteration % run.iterations_per_epoch == 0:
            epoch = iteration // run.iterations_per_epoch
            self._write_lora(self.folder.lora_path(epoch).name, facts)
            self.folder.prune_loras(run.keep_loras)
            self.folder.write_curves()
            self.folder.write_sheet(epoch, rollout, run.sheet_prompts)

    def record_evaluation(
        self, iteration: int, found: Mapping[str, float], facts: Mapping[str, str], is_best: bool
    ) -> None:
        """Log what was measured on held-out prompts; keep the LoRA when it is the best so far.

        Raises:
            OSError: as `record`.
        """
        self.evaluations = [*self.evaluations, {"iteration": iteration, **found}]
        self.accelerator.log({f"evaluation/{name}": value for name, value in found.items()}, step=iteration)
        if is_best:
            measure = self.config.evaluation.stop_measure or ""
            self._write_lora("best.safetensors", {**facts, f"evaluation_{measure}": str(found[measure])})
        self.folder.write_evaluations(self.evaluations)

    def finish(self, facts: Mapping[str, str]) -> None:
        """Close the trackers; draw the curves of what was done since the last epoch."""
        for tracker in self.accelerator.trackers:
            tracker.finish()
        if int(facts["step"]) % self.config.run.iterations_per_epoch:
            self.folder.write_curves()

    def _write_lora(self, name: str, facts: Mapping[str, str]) -> None:
        """One LoRA file; reward means in its metadata are the standard sampler's over the last epoch."""
        means = self.metrics.means(self.config.run.iterations_per_epoch)
        rewards = {
            f"{role}_reward_mean": str(means.get(f"{role}_reward_standard", "")) for role in ("view", "joint")
        }
        with self.ema.applied() if self.ema is not None else nullcontext():
            save_lora(
                self.policy.bundle.unet, self.folder.root / "lora" / name, {**facts, **rewards}, LORA_NAME
            )

    def _start_trackers(self, iteration: int) -> None:
        if not self.accelerator.log_with:
            return
        settings = {
            f"{section}.{key}" if isinstance(values, dict) else section: json.dumps(value)
            for section, values in config_to_dict(self.config).items()
            for key, value in (values.items() if isinstance(values, dict) else [("", values)])
        }
        # A resumed run writes some iterations again: TensorBoard is to show the later ones.
        self.accelerator.init_trackers(
            TRACKER_FOLDER, settings, {"tensorboard": {"purge_step": iteration + 1}}
        )
