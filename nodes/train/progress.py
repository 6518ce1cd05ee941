"""Where a training run stands, read from its folder while the trainer writes there. Needs no ComfyUI."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...t2mv_core.formats.safetensors_io import file_identity

if TYPE_CHECKING:
    from PIL.Image import Image

Record = Mapping[str, float]
REWARDS = {"view": "single views", "joint": "the set"}
NUM_COMPARED = 5  # iterations at either end of a run: every one draws other prompts, which differ
_TEXTS = {
    "view_reward_standard": "view {:.4f}",
    "joint_reward_standard": "joint {:.4f}",
    "lambda": "lambda {:.3f}",
    "loss": "loss {:.3f}",
}


class RunReader:
    """Reads what is new in a run folder; asking when nothing is new costs a look at the file's status.

    Args:
        run_dir: the run folder; it may be empty still.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._seen: dict[str, tuple[object, ...]] = {}

    def new_records(self) -> list[Record] | None:
        """All iterations so far, if the file changed since the last call."""
        path = self._run_dir / "metrics.jsonl"
        if not self._has_changed("metrics", path):
            return None
        return read_records(path)

    def new_picture(self) -> Image | None:
        """The newest sample sheet (the curves while there is none), if it changed since the last call.

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
    """The whole lines of a metrics file, without one that is being written; no file has no lines."""
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
    """The latest sample sheet."""
    sheets = (run_dir / "samples").glob("epoch_*.png")
    return max(sheets, default=None, key=lambda path: (len(path.name), path.name))


def read_picture(path: Path) -> Image | None:
    """A picture, or None while it is missing or half-written."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, SyntaxError):  # what Pillow raises for a torn PNG
        return None


def status_text(records: Sequence[Record], total: int, seconds_left: float | None) -> str:
    """One line for the node: how far, the rewards, how long still."""
    if not records:
        return "starting the trainer…"
    record = records[-1]
    parts = [f"iteration {record['iteration']:.0f}/{total}"]
    parts += [text.format(record[name]) for name, text in _TEXTS.items() if name in record]
    if seconds_left is not None and record["iteration"] < total:
        in_minutes = seconds_left >= 90
        parts.append(f"{seconds_left / 60:.0f} min left" if in_minutes else f"{seconds_left:.0f} s left")
    return " · ".join(parts)


def reward_lines(records: Sequence[Record]) -> list[str]:
    """How the rewards of standard sampling changed from the first iterations to the last."""
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
