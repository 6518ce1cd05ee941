"""A run folder read while somebody writes into it."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from training.run.stop import GRACE_SECONDS


@pytest.fixture(scope="module")
def progress(pack: ModuleType) -> ModuleType:
    """`nodes/train/progress.py` of the loaded pack."""
    return importlib.import_module(f"{pack.__name__}.nodes.train.progress")


def line(iteration: int, view: float = 0.5) -> str:
    """A line of metrics.jsonl."""
    return json.dumps({"iteration": iteration, "view_reward_standard": view, "lambda": 0.0}) + "\n"


def write_sheet(run_dir: Path, epoch: int, size: int = 8) -> Path:
    """A sample sheet."""
    path = run_dir / "samples" / f"epoch_{epoch:04d}.png"
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (size, size), "red").save(path)
    return path


def test_every_cut_of_a_file_gives_its_whole_lines(progress: ModuleType, tmp_path: Path) -> None:
    path, text = tmp_path / "metrics.jsonl", line(1) + line(2)
    assert progress.read_records(path) == []
    for end in range(len(text) + 1):
        path.write_text(text[:end])
        done = [record["iteration"] for record in progress.read_records(path)]
        assert done == [1, 2][: text[:end].count("\n")]


@pytest.mark.parametrize("damage", ["{torn\n", "5\n", "{}\n", "\xff\n"])
def test_a_damaged_line_ends_the_record(progress: ModuleType, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes((line(1) + damage + line(2)).encode("latin-1"))
    assert [record["iteration"] for record in progress.read_records(path)] == [1]


def test_only_changes_are_reported(progress: ModuleType, tmp_path: Path) -> None:
    reader, path = progress.RunReader(tmp_path), tmp_path / "metrics.jsonl"
    assert reader.new_records() is None
    path.write_text(line(1) + line(2))
    assert [record["iteration"] for record in reader.new_records()] == [1, 2]
    assert reader.new_records() is None
    # a resumed run replaces the file, here by one of equal size and time
    other, status = tmp_path / "other", path.stat()
    other.write_text(line(1) + line(3))
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)
    assert [record["iteration"] for record in reader.new_records()] == [1, 3]


def test_the_newest_whole_picture_is_shown_once(progress: ModuleType, tmp_path: Path) -> None:
    reader = progress.RunReader(tmp_path)
    assert reader.new_picture() is None
    Image.new("RGB", (4, 4)).save(tmp_path / "curves.png")
    assert reader.new_picture().size == (4, 4)  # no sheet yet
    write_sheet(tmp_path, 9999, 6)
    write_sheet(tmp_path, 10000, 8)
    assert reader.new_picture().size == (8, 8)
    assert reader.new_picture() is None


def test_a_half_written_picture_comes_later(progress: ModuleType, tmp_path: Path) -> None:
    reader, path = progress.RunReader(tmp_path), write_sheet(tmp_path, 1, 64)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert reader.new_picture() is None
    assert reader.new_picture() is None
    path.write_bytes(whole)
    assert reader.new_picture().size == (64, 64)


def test_the_line_on_the_node(progress: ModuleType) -> None:
    assert progress.status_text([], 5) == "starting the trainer…"
    record = {"iteration": 3, "view_reward_standard": 0.87654, "lambda": 0.25}
    record |= {"rollout_seconds": 20.0, "update_seconds": 1.2}
    assert progress.status_text([record], 5) == (
        "iteration 3/5 · view 0.8765 · lambda 0.250 · 42 s left"  # two more of 21.2 s
    )
    assert progress.status_text([record], 20).endswith("6 min left")  # 17 * 21.2 s
    assert "left" not in progress.status_text([record], 3)


@pytest.mark.parametrize(
    ("rollout", "update", "seconds"),
    [
        (0.5, 0.5, 31),  # a second for the iteration, thirty to save
        (60.0, 150.0, 240),
        (0.0, 5000.0, GRACE_SECONDS),  # the trainer ends by itself then
    ],
)
def test_a_stop_may_take_as_long_as_the_last_iteration(
    progress: ModuleType, rollout: float, update: float, seconds: float
) -> None:
    records = [
        {"iteration": 1, "rollout_seconds": 400.0, "update_seconds": 400.0},
        {"iteration": 2, "rollout_seconds": rollout, "update_seconds": update},
    ]
    assert progress.stop_seconds(records, running_seconds=7) == seconds


def test_before_the_first_iteration_a_stop_may_take_as_long_as_the_run_so_far(progress: ModuleType) -> None:
    assert progress.stop_seconds([], running_seconds=0) == 30
    assert progress.stop_seconds([], running_seconds=100) == 130


def test_rewards_are_compared_between_both_ends(progress: ModuleType) -> None:
    records = [{"iteration": i, "view_reward_standard": float(i)} for i in range(1, 21)]
    # means of 1..5 and of 16..20
    assert progress.reward_lines(records) == [
        "reward for single views: 3.0000 at first, 18.0000 at last (means of 5 iterations)"
    ]
    assert "1.0000 at first, 1.0000 at last" in progress.reward_lines(records[:1])[0]
    assert progress.reward_lines([]) == []
