"""A training run as ComfyUI shows it: the bar over iterations, the newest pictures, a line of text."""

from __future__ import annotations

import time
from pathlib import Path

from ..common.progress import ProgressBar, show_text_on
from .progress import Record, RunReader, status_text

PREVIEW_PX = 768


class TrainingDisplay:
    """Shows what is new in a run folder; `update` is called a few times per second.

    Args:
        run_dir: the run folder.
        total: iterations of the whole run.
        node_id: the node on which the text appears; None shows none.
    """

    def __init__(self, run_dir: Path, total: int, node_id: str | None) -> None:
        self._reader, self._total, self._node_id = RunReader(run_dir), total, node_id
        self._bar = ProgressBar(total)
        self._records: list[Record] = []
        self._first_iteration: float | None = None
        self._first_seen = 0.0
        self._show_text()

    def update(self) -> None:
        """Move the bar, show a new sheet, renew the text; nothing when the run folder is as it was."""
        records = self._reader.new_records()
        picture = self._reader.new_picture()
        if records is not None:
            self._records = records
            self._show_text()
        if records is not None or picture is not None:
            done = int(self._records[-1]["iteration"]) if self._records else 0
            preview = ("JPEG", picture, PREVIEW_PX) if picture is not None else None
            self._bar.update_absolute(done, self._total, preview)

    def say(self, text: str) -> None:
        """Show a line on the node."""
        show_text_on(self._node_id, text)

    def _show_text(self) -> None:
        self.say(status_text(self._records, self._total, self._seconds_left()))

    def _seconds_left(self) -> float | None:
        """By the pace since the first iteration seen here; earlier ones of a resumed run do not count."""
        if not self._records:
            return None
        iteration, now = self._records[-1]["iteration"], time.monotonic()
        if self._first_iteration is None or iteration <= self._first_iteration:
            self._first_iteration, self._first_seen = iteration, now
            return None
        pace = (now - self._first_seen) / (iteration - self._first_iteration)
        return pace * max(self._total - iteration, 0)
