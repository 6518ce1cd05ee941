"""The run folder: where everything of a run lies, and the files a person looks at."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from t2mv_core.formats.atomic import replaced

from ..algorithm.rollout import Rollout
from .curves import draw_curves
from .metrics import read_metrics

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run.

    Attributes:
        root: the run folder: config.yaml, metrics.jsonl, curves.png, samples/, lora/, last/.
    """

    root: Path

    @property
    def config_path(self) -> Path:
        """The resolved configuration."""
        return self.root / "config.yaml"

    @property
    def metrics_path(self) -> Path:
        """One JSON line per iteration."""
        return self.root / "metrics.jsonl"

    @property
    def evaluations_path(self) -> Path:
        """One JSON line per held-out evaluation."""
        return self.root / "evaluations.jsonl"

    @property
    def curves_path(self) -> Path:
        """The curves picture."""
        return self.root / "curves.png"

    def lora_path(self, epoch: int) -> Path:
        """The LoRA as it was after an epoch, from 1."""
        return self.root / "lora" / f"epoch_{epoch:04d}.safetensors"

    def sheet_path(self, epoch: int) -> Path:
        """Samples of the last iteration of an epoch."""
        return self.root / "samples" / f"epoch_{epoch:04d}.png"

    def write_config(self, values: dict[str, Any]) -> None:
        """Save the resolved configuration as YAML.

        Raises:
            OSError: the folder cannot be written.
        """
        import yaml

        self.root.mkdir(parents=True, exist_ok=True)
        self._replace(self.config_path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))

    def has_metrics(self) -> bool:
        """Whether a run has got through an iteration here, saved or not."""
        return bool(read_metrics(self.metrics_path))

    def sweep(self) -> None:
        """Delete what a kill left half-written; nobody else may be writing."""
        for folder in (self.root, self.root / "lora", self.root / "samples"):
            for path in folder.glob(".*.tmp"):
                path.unlink()

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
                f"Another process is training in {self.root}; wait for it, or choose another run.out_dir."
            ) from error
        except (OSError, NotImplementedError) as error:  # some network drives know no locks
            logger.info("%s cannot be locked (%s); start no second process there.", self.root, error)
        try:
            yield
        finally:
            lock.release()

    def prune_loras(self, count: int | None) -> None:
        """Delete all but the newest `count` epoch files; None keeps all."""
        if count is not None:
            for path in sorted((self.root / "lora").glob("epoch_*.safetensors"))[:-count]:
                path.unlink()

    def read_evaluations(self) -> list[dict[str, float]]:
        """All evaluations so far; none before the first."""
        return read_metrics(self.evaluations_path)

    def write_evaluations(self, records: list[dict[str, float]]) -> None:
        """Replace the record of evaluations; a run without any gets no file."""
        if records:
            self._replace(self.evaluations_path, "".join(json.dumps(record) + "\n" for record in records))

    def write_curves(self) -> None:
        """Draw the metrics so far."""
        draw_curves(read_metrics(self.metrics_path), self.curves_path)

    def write_sheet(self, epoch: int, rollout: Rollout, num_prompts: int) -> None:
        """Save the pictures of a rollout's first prompts: a row per set, the sets of a prompt together."""
        from t2mv_core.images import contact_sheet

        count = min(num_prompts, len(rollout.prompts))
        if not count:
            return
        images = torch.stack([scored.images[:count] for scored in rollout.sets], dim=1).flatten(0, 1)
        labels = [
            f"{scored.sampler}: {prompt}" for prompt in rollout.prompts[:count] for scored in rollout.sets
        ]
        path = self.sheet_path(epoch)
        path.parent.mkdir(exist_ok=True)
        contact_sheet(images / 255, row_labels=labels).save(path)

    def _replace(self, path: Path, text: str) -> None:
        with replaced(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
