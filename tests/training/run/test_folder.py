"""The run folder: one writer at a time, nothing half-written left, pruning."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from t2mv_core.formats.safetensors_io import write_safetensors
from training.run.folder import RunFolder

ROOT = Path(__file__).parents[3]
HOLD = """
import sys
from pathlib import Path
from training.run.folder import RunFolder
with RunFolder(Path(sys.argv[1])).locked():
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_folder_has_one_writer_and_a_dead_one_does_not_count(tmp_path):
    folder = RunFolder(tmp_path / "run")
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder.root)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    with pytest.raises(FileExistsError, match="Another process is training in"), folder.locked():
        pass
    process.kill()
    process.communicate()
    with folder.locked():
        assert folder.root.is_dir()


def test_sweeping_takes_what_is_half_written_only(tmp_path):
    folder = RunFolder(tmp_path)
    (tmp_path / "lora").mkdir()
    kept = [tmp_path / "metrics.jsonl", tmp_path / "lora" / "epoch_0001.safetensors"]
    torn = [tmp_path / ".config.yaml.tmp", tmp_path / "lora" / ".epoch_0002.safetensors.77.tmp"]
    for path in [*kept, *torn]:
        path.write_text("x")
    folder.sweep()
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in torn)


def test_loras_of_a_time_that_was_lost_are_removed(tmp_path):
    """A run killed in iteration 6 whose state is that of 3: two iterations an epoch."""
    folder = RunFolder(tmp_path)
    for epoch in (1, 2, 3):
        write_safetensors({"x": torch.zeros(1)}, folder.lora_path(epoch), {})
    copy = tmp_path / "lora" / "epoch_0001_2.safetensors"  # not epoch 12
    copy.write_text("x")
    for step, stays in (("5", False), ("3", True)):
        write_safetensors({"x": torch.zeros(1)}, folder.best_lora_path, {"step": step})
        folder.drop_loras_after(3, 2)
        assert folder.best_lora_path.is_file() is stays
    assert sorted((tmp_path / "lora").glob("epoch*")) == [folder.lora_path(1), copy]


@pytest.mark.parametrize(("count", "left"), [(None, [1, 2, 3, 10]), (2, [3, 10]), (9, [1, 2, 3, 10])])
def test_the_newest_loras_stay(tmp_path, count, left):
    folder = RunFolder(tmp_path)
    (tmp_path / "lora").mkdir()
    for epoch in (1, 2, 3, 10):
        folder.lora_path(epoch).write_text("x")
    others = ["best.safetensors", "epoch_0002 (good).safetensors", "epoch_0002_7.safetensors"]  # the user's
    for name in others:
        (tmp_path / "lora" / name).write_text("x")
    folder.prune_loras(count)
    assert folder.newest_lora() == folder.lora_path(10)
    names = sorted(path.name for path in (tmp_path / "lora").iterdir())
    assert names == sorted([*others, *(folder.lora_path(epoch).name for epoch in left)])
