"""Where a training run stands, read from its folder while the trainer writes there, and shown on the node."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...t2mv_core.formats.safetensors_io import file_identity

if TYPE_CHECKING:
    from PIL.Image import Image

Record = Mapping[str, float]
REWARDS = {"view": "single views", "joint": "the set"}
PREVIEW_PX = 768
MIN_STOP_SECONDS, STOP_MARGIN_SECONDS = 30.0, 30.0
MAX_STOP_SECONDS = 600.0  # GRACE_SECONDS of training/run/stop.py: the trainer then ends by itself
NUM_COMPARED = 5  # iterations at either end of a run: every one draws other prompts, which differ
_TEXTS = {
    "view_reward_standard": "view {:.4f}",
    "joint_reward_standard": "joint {:.4f}",
    "lambda": "lambda {:.3f}",
    "loss": "loss {:.3f}",
}


class TrainingDisplay:
    """Shows what is new in a run folder; `update` is called a few times per second.

    Args:
        run_dir: the run folder.
        total: iterations of the whole run.
        node_id: the node on which the text appears; None shows none.
    """

    def __init__(self, run_dir: Path, total: int, node_id: str | None) -> None:
        from ..common.progress import ProgressBar

        self._reader, self._total, self._node_id = RunReader(run_dir), total, node_id
        self._bar = ProgressBar(total)
        self._records: list[Record] = []
        self._start = time.monotonic()
        self._show_status()

    def update(self) -> None:
        """Move the bar, show a new sheet, renew the text; nothing when the run folder is as it was."""
        records = self._reader.new_records()
        picture = self._reader.new_picture()
        if records is not None:
            self._records = records
            self._show_status()
        if records is not None or picture is not None:
            done = int(self._records[-1]["iteration"]) if self._records else 0
            preview = ("JPEG", picture, PREVIEW_PX) if picture is not None else None
            self._bar.update_absolute(done, self._total, preview)

    def stop_seconds(self) -> float:
        """Return how long the trainer may take to stop now."""
        return stop_seconds(self._records, time.monotonic() - self._start)

    def show_stopping(self, seconds_left: float) -> None:
        """Say that the trainer was asked to stop, and how long it may still take."""
        self._show(f"stopping: up to {seconds_left:.0f} s until the update ends and the state is saved…")

    def _show_status(self) -> None:
        self._show(status_text(self._records, self._total))

    def _show(self, text: str) -> None:
        from ..common.progress import show_text_on

        show_text_on(self._node_id, text)


class RunReader:
    """Reads what is new in a run folder; asking when nothing is new costs a look at the file's status.

    Args:
        run_dir: the run folder; it may be empty still.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._seen: dict[str, tuple[object, ...]] = {}

    def new_records(self) -> list[Record] | None:
        """Return all iterations so far, if the file changed since the last call."""
        path = self._run_dir / "metrics.jsonl"
        return read_records(path) if self._has_changed("metrics", path) else None

    def new_picture(self) -> Image | None:
        """Return the newest sample sheet (the curves while there is none), if it changed since the last call.

        A picture that is being written right now comes with a later call.
        """
        path = newest_sheet(self._run_dir) or self._run_dir / "curves.png"
        before = self._seen.get("picture")
        if not self._has_changed("picture", path):
            return None
        picture = read_picture(path)
        if picture is None:
            self._seen["picture"] = before or ()
        return picture

    def _has_changed(self, what: str, path: Path) -> bool:
        try:
            identity = file_identity(path)
        except OSError:
            return False
        has_changed = self._seen.get(what) != identity
        self._seen[what] = identity
        return has_changed


def read_records(path: Path) -> list[Record]:
    """Return the whole lines of a metrics file, without one that is being written; no file has no lines."""
    try:
        text = path.read_bytes()
    except OSError:
        return []
    records = []
    for line in text.split(b"\n")[:-1]:
        try:
            record = json.loads(line)
        except ValueError:  # torn by a kill; the resumed run writes the file anew
            break
        if not isinstance(record, dict) or "iteration" not in record:
            break
        records.append(record)
    return records


def newest_sheet(run_dir: Path) -> Path | None:
    """Return the latest sample sheet."""
    sheets = (run_dir / "samples").glob("epoch_*.png")
    return max(sheets, default=None, key=lambda path: (len(path.name), path.name))


def read_picture(path: Path) -> Image | None:
    """Return a picture, or None while it is missing or half-written."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, SyntaxError):  # what Pillow raises for a torn PNG
        return None


def status_text(records: Sequence[Record], total: int) -> str:
    """Write a line for the node: how far the run is, its rewards, and how long it takes still."""
    if not records:
        return "starting the trainer…"
    record = records[-1]
    parts = [f"iteration {record['iteration']:.0f}/{total}"]
    parts += [text.format(record[name]) for name, text in _TEXTS.items() if name in record]
    seconds_left = _seconds(record) * (total - record["iteration"])
    if seconds_left > 0:
        in_minutes = seconds_left >= 90
        parts.append(f"{seconds_left / 60:.0f} min left" if in_minutes else f"{seconds_left:.0f} s left")
    return " · ".join(parts)


def stop_seconds(records: Sequence[Record], running_seconds: float) -> float:
    """Return how long a trainer may take to stop: an update is finished before the state is saved.

    Args:
        records: all iterations so far; the last one tells how long one takes.
        running_seconds: since the trainer was started; the guess while there is no iteration.
    """
    seconds = _seconds(records[-1]) if records else running_seconds
    return min(max(seconds + STOP_MARGIN_SECONDS, MIN_STOP_SECONDS), MAX_STOP_SECONDS)


def _seconds(record: Record) -> float:
    """How long an iteration took."""
    return record.get("rollout_seconds", 0.0) + record.get("update_seconds", 0.0)


def reward_lines(records: Sequence[Record]) -> list[str]:
    """Say how the rewards of standard sampling changed from the first iterations to the last."""
    lines = []
    count = min(NUM_COMPARED, max(len(records) // 2, 1))
    for role, what in REWARDS.items():
        values = [record[name] for record in records if (name := f"{role}_reward_standard") in record]
        if values:
            first, last = sum(values[:count]) / count, sum(values[-count:]) / count
            lines.append(
                f"reward for {what}: {first:.4f} at first, {last:.4f} at last (means of {count} iterations)"
            )
    return lines
