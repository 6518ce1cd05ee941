"""The run folder: where everything of a run lies, and what the main process writes there."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from filelock import FileLock, Timeout

from t2mv_core.formats.atomic import replaced
from t2mv_core.formats.safetensors_io import open_safetensors

from ..algorithm.rollout import Rollout
from ..config import TrainConfig, config_to_dict, flat_settings
from ..evaluation.choice import PREFIX, choice_facts
from .curves import draw_curves
from .environment import write_environment
from .metrics import append_record, check_names, drop_records, read_metrics

logger = logging.getLogger(__name__)

TRACKER_FOLDER = "trackers"


class RunFolder:
    """Paths of a run; docs/training.md, "The run folder", says what lies there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config_path = root / "config.yaml"
        self.metrics_path = root / "metrics.jsonl"
        self.evaluations_path = root / "evaluations.jsonl"
        self.curves_path = root / "curves.png"
        self.state_path = root / "last.pt"

    def lora_path(self, epoch: int) -> Path:
        """Return where the LoRA lies as it was after an epoch, from 1."""
        return self.root / "lora" / f"epoch_{epoch:04d}.safetensors"

    @property
    def best_lora_path(self) -> Path:
        """Return where the LoRA of the best evaluation lies, if one was better than no LoRA."""
        return self.root / "lora" / "best.safetensors"

    def newest_lora(self) -> Path | None:
        """Return the LoRA of the last epoch that wrote one."""
        return next(reversed(self.epoch_loras()), None)

    def epoch_loras(self) -> list[Path]:
        """Return the epochs' LoRAs, oldest first, without copies under other names."""
        paths = (self.root / "lora").glob("epoch_*.safetensors")
        return sorted((path for path in paths if path.stem.removeprefix("epoch_").isdecimal()), key=_epoch)

    def sheet_path(self, epoch: int) -> Path:
        """Return where samples of the last iteration of an epoch lie."""
        return self.root / "samples" / f"epoch_{epoch:04d}.png"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training in this folder; the lock ends with the process, however it ends.

        Raises:
            FileExistsError: another process has it.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.root / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise FileExistsError(
                f"Another process is training in {self.root}; wait for it, or choose another name "
                "(run.out_dir)."
            ) from error
        except (OSError, NotImplementedError) as error:  # some network drives know no locks
            logger.info("%s cannot be locked (%s); start no second process there.", self.root, error)
        try:
            yield
        finally:
            lock.release()

    def has_records(self) -> bool:
        """Return whether an iteration was done; until then a run may begin anew with other settings."""
        return bool(read_metrics(self.metrics_path))

    def check(self, resume: bool, has_begun: bool | None = None) -> None:
        """Refuse a folder with a run that is not to go on, or cannot.

        Args:
            resume: whether a run is to go on.
            has_begun: whether the folder holds a run that trained; None: as its records say.

        Raises:
            FileExistsError: it holds such a run.
        """
        if not (self.has_records() if has_begun is None else has_begun):
            return
        if not self.state_path.is_file():
            raise FileExistsError(
                f"{self.root} holds a run whose saved state {self.state_path.name} is gone; put it back, or "
                "choose another name (run.out_dir)."
            )
        if not resume:
            raise FileExistsError(
                f"{self.root} holds a run; continue it with resume (--resume auto), or choose another name "
                "(run.out_dir)."
            )

    def write_config(self, config: TrainConfig) -> None:
        """Write config.yaml."""
        import yaml

        with replaced(self.config_path) as temporary:
            text = yaml.safe_dump(config_to_dict(config), sort_keys=False, allow_unicode=True)
            temporary.write_text(text, encoding="utf-8")

    def sweep(self) -> None:
        """Delete what a kill left half-written; nobody else may be writing."""
        for folder in (self.root, self.root / "lora", self.root / "samples"):
            for path in folder.glob(".*.tmp"):
                path.unlink()

    def drop_loras_after(self, iteration: int, iterations_per_epoch: int) -> None:
        """Delete LoRAs of later iterations, which a run killed before it saved its state does again."""
        for path in self.epoch_loras():
            if _epoch(path) * iterations_per_epoch > iteration:
                path.unlink()
        best = self.best_lora_path
        if best.is_file() and int((open_safetensors(best).metadata() or {}).get("step", 0)) > iteration:
            logger.warning("%s is later than the saved state; it is removed.", best)
            best.unlink()

    def prune_loras(self, count: int | None) -> None:
        """Delete all but the newest `count` epoch files; None keeps all."""
        if count is not None:
            for path in self.epoch_loras()[:-count]:
                path.unlink()


class Recorder:
    """Writes a run's record into its folder; one per run, on the main process.

    Args:
        config: the run's.
        folder: the run folder.
        accelerator: its trackers get the metrics too.
        iteration: iterations done; later records are dropped, a resumed run computes them again.
        save_lora: writes a LoRA file with the given facts, beside those that every file has.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        accelerator: Accelerator,
        iteration: int,
        save_lora: Callable[[Path, Mapping[str, str]], None],
    ) -> None:
        self.config, self.folder, self.accelerator, self.save_lora = config, folder, accelerator, save_lora
        folder.sweep()
        folder.drop_loras_after(iteration, config.run.iterations_per_epoch)
        write_environment(folder.root / "environment.json")
        for path in (folder.metrics_path, folder.evaluations_path):
            drop_records(path, iteration)
        if accelerator.log_with:
            settings = {key: json.dumps(value) for key, value in flat_settings(config).items()}
            # A resumed run writes some iterations again: TensorBoard is to show the later ones.
            options = {"tensorboard": {"purge_step": iteration + 1}}
            accelerator.init_trackers(TRACKER_FOLDER, settings, options)

    def record(self, record: Mapping[str, float], rollout: Rollout) -> None:
        """Log an iteration; at the end of an epoch write LoRA, curves and samples.

        Raises:
            OSError: the folder cannot be written, or the disk is full; the saved state is as it was.
        """
        run, iteration = self.config.run, int(record["iteration"])
        check_names(record)
        append_record(self.folder.metrics_path, record)
        self.accelerator.log(dict(record), step=iteration)
        if iteration % run.iterations_per_epoch == 0:
            epoch = iteration // run.iterations_per_epoch
            self.save_lora(self.folder.lora_path(epoch), self._reward_means())
            self.folder.prune_loras(run.keep_loras)
            draw_curves(read_metrics(self.folder.metrics_path), self.folder.curves_path)
            write_sheet(rollout, run.sheet_prompts, self.folder.sheet_path(epoch))

    def record_evaluation(self, iteration: int, means: Mapping[str, float], is_best: bool) -> None:
        """Log what was measured on held-out prompts; keep the LoRA when it is the best so far.

        Raises:
            OSError: as `record`.
        """
        self.accelerator.log({f"evaluation/{name}": value for name, value in means.items()}, step=iteration)
        if is_best:
            measure = self.config.evaluation.stop_measure or ""
            facts = {**self._reward_means(), f"{PREFIX}{measure}": str(means[measure])}
            facts |= choice_facts(self.config)
            self.save_lora(self.folder.best_lora_path, facts)
        path = self.folder.evaluations_path
        # A kill between this line and the next saved state makes the resumed run measure it once more.
        if all(record["iteration"] != iteration for record in read_metrics(path)):
            append_record(path, {"iteration": iteration, **means})

    def finish(self, iteration: int) -> None:
        """Close the trackers; draw the curves of what was done since the last epoch."""
        for tracker in self.accelerator.trackers:
            tracker.finish()
        if iteration % self.config.run.iterations_per_epoch:
            draw_curves(read_metrics(self.folder.metrics_path), self.folder.curves_path)

    def _reward_means(self) -> dict[str, str]:
        """Return the standard sampler's mean rewards over the last epoch, as facts of a LoRA file."""
        records = read_metrics(self.folder.metrics_path)[-self.config.run.iterations_per_epoch :]
        facts = {}
        for role in ("view", "joint"):
            values = [r[name] for r in records if (name := f"{role}_reward_standard") in r]
            facts[f"{role}_reward_mean"] = str(sum(values) / len(values)) if values else ""
        return facts


def write_sheet(rollout: Rollout, num_prompts: int, path: Path) -> None:
    """Save the pictures of a rollout's first prompts: a row per set, the sets of a prompt together."""
    from t2mv_core.images import contact_sheet

    count = min(num_prompts, len(rollout.prompts))
    if not count:
        return
    images = torch.stack([scored.images[:count] for scored in rollout.sets], dim=1).flatten(0, 1)
    labels = [f"{scored.sampler}: {prompt}" for prompt in rollout.prompts[:count] for scored in rollout.sets]
    with replaced(path) as temporary:
        contact_sheet(images / 255, row_labels=labels).save(temporary, format="PNG")


def _epoch(path: Path) -> int:
    return int(path.stem.removeprefix("epoch_"))
