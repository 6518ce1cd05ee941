"""Where a training run stands, shown on the node: a bar, a line of text, the newest samples."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

Record = Mapping[str, float]
REWARDS = {"view": "single views", "joint": "the set"}
PREVIEW_PX = 768
TEXT_SECONDS = 0.5  # between two texts within a phase
NUM_COMPARED = 5  # iterations at either end of a run: every one draws other prompts, which differ
_TEXTS = {
    "view_reward_standard": "view {:.4f}",
    "joint_reward_standard": "joint {:.4f}",
    "lambda": "lambda {:.3f}",
    "loss": "loss {:.3f}",
}


class TrainingDisplay:
    """The trainer's display on a node: see `training.run.console.Display`. A cancel ends the run at any step.

    Args:
        run_dir: the run folder.
        total: iterations of the whole run.
        node_id: the node on which the text appears; None shows none.
    """

    def __init__(self, run_dir: Path, total: int, node_id: str | None) -> None:
        from ..common.progress import ProgressBar

        self._run_dir, self._total, self._node_id = run_dir, total, node_id
        self._bar = ProgressBar(total)
        self._status, self._phase = "loading model and rewards", ("", 0, 0)
        self._shown_at = 0.0
        self._show()

    def shown(self) -> AbstractContextManager[None]:
        """Do nothing: the node is there anyway."""
        return nullcontext()

    def phase(self, name: str, total: int) -> None:
        """Begin a part of the current iteration."""
        self._phase = (name, 0, total)
        self._show()

    def advance(self) -> None:
        """End a step of the phase: a UNet evaluation, or a part of an update.

        Raises:
            InterruptProcessingException: the user cancelled.
        """
        from ..common.memory import check_cancelled

        check_cancelled()
        name, done, total = self._phase
        self._phase = (name, done + 1, total)
        if time.monotonic() - self._shown_at > TEXT_SECONDS:
            self._show()

    def report(self, record: Record) -> None:
        """End an iteration: move the bar, show the newest samples."""
        sheet = newest_sheet(self._run_dir)
        picture = sheet and read_picture(sheet)
        preview = ("JPEG", picture, PREVIEW_PX) if picture else None
        self._bar.update_absolute(int(record["iteration"]), self._total, preview)
        self._status, self._phase = status_text(record, self._total), ("", 0, 0)
        self._show()

    def finish(self, records: Sequence[Record]) -> None:
        """Show where the run ended; a finished run that is queued again has nothing to report."""
        if records:
            self._status, self._phase = status_text(records[-1], self._total), ("", 0, 0)
        self._show()

    def _show(self) -> None:
        from ..common.progress import show_text_on

        name, done, total = self._phase
        self._shown_at = time.monotonic()
        show_text_on(self._node_id, self._status + (f" · {name} {done}/{total}" if name else ""))


def newest_sheet(run_dir: Path) -> Path | None:
    """Return the latest sample sheet."""
    sheets = (run_dir / "samples").glob("epoch_*.png")
    return max(sheets, default=None, key=lambda path: (len(path.name), path.name))


def read_picture(path: Path) -> Image | None:
    """Return a picture, or None when it is missing or damaged."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, SyntaxError):  # what Pillow raises for a torn PNG
        return None


def status_text(record: Record, total: int) -> str:
    """Write a line for the node: how far the run is, its rewards, and how long it takes still."""
    parts = [f"iteration {record['iteration']:.0f}/{total}"]
    parts += [text.format(record[name]) for name, text in _TEXTS.items() if name in record]
    seconds = record.get("rollout_seconds", 0.0) + record.get("update_seconds", 0.0)
    seconds_left = seconds * (total - record["iteration"])
    if seconds_left > 0:
        in_minutes = seconds_left >= 90
        parts.append(f"{seconds_left / 60:.0f} min left" if in_minutes else f"{seconds_left:.0f} s left")
    return " · ".join(parts)


def reward_lines(records: Sequence[Record]) -> list[str]:
    """Say how the rewards of standard sampling, else of ZMV, changed from first to last iterations."""
    lines = []
    count = min(NUM_COMPARED, max(len(records) // 2, 1))
    for role, what in REWARDS.items():
        kinds = [f"{role}_reward_{sampler}" for sampler in ("standard", "zmv")]
        values = [r[kind] for r in records if (kind := next((k for k in kinds if k in r), ""))]
        if values:
            first, last = sum(values[:count]) / count, sum(values[-count:]) / count
            lines.append(
                f"reward for {what}: {first:.4f} at first, {last:.4f} at last (means of {count} iterations)"
            )
    return lines
