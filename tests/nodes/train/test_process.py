"""The trainer's process: it is the trainer, it stops when told or left alone, its last words are kept."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

WAITING = "import sys; print('at work', flush=True); sys.stdin.read(); print('saved')"
SLOW = """
import sys, time
print("at work", flush=True)
sys.stdin.read()
time.sleep(1.5)
print("saved")
"""
DEAF = "import time; print('at work', flush=True); time.sleep(600)"
# A program that starts a process through train_process.py and then hangs.
PARENT = """
import importlib.util, pathlib, sys, time
spec = importlib.util.spec_from_file_location("train_process", sys.argv[1])
module = sys.modules["train_process"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
kept = module.TrainerProcess([sys.executable, "-c", sys.argv[3]], pathlib.Path(sys.argv[2]))
print("started", flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def process(pack: ModuleType) -> ModuleType:
    """`nodes/train/process.py` of the loaded pack."""
    return importlib.import_module(f"{pack.__name__}.nodes.train.process")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log in a folder with a difficult name."""
    folder = tmp_path / "a b ü #1: 'x'"
    folder.mkdir()
    return folder / "trainer.log"


def wait_for(log: Path, words: str, seconds: float = 20) -> bool:
    """Whether words appear in a log within a time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if log.is_file() and words in log.read_text("utf-8"):
            return True
        time.sleep(0.05)
    return False


def test_it_is_the_trainer_and_its_refusals_come_back_in_words(process: ModuleType, log: Path) -> None:
    log.write_text("said by an earlier start\n")
    command = process.build_command("demo", True, ['optim.lrr="ü"'])
    with process.running_trainer(command, log) as trainer:
        assert trainer.wait(60) == 1
    text = trainer.failure(1)
    assert "mvczigal: optim.lrr is not a setting; did you mean optim.lr?" in text
    assert "earlier start" not in text
    assert str(log) in text


def test_it_runs_in_isolated_mode_too(process: ModuleType, log: Path) -> None:
    # as Windows' portable Python does: neither the working directory nor PYTHON... variables count
    python, *words = process.build_command("demo", True, ["optim.lrr=1"])
    with process.running_trainer([python, "-I", *words], log) as trainer:
        assert trainer.wait(60) == 1
    assert "did you mean optim.lr?" in trainer.log_tail()


def test_a_stop_is_heeded_and_what_is_said_meanwhile_kept(process: ModuleType, log: Path) -> None:
    trainer = process.TrainerProcess([sys.executable, "-c", WAITING], log)
    assert wait_for(log, "at work")
    assert trainer.wait(0.1) is None
    trainer.stop()
    assert trainer.wait(0) == 0
    assert trainer.log_tail().splitlines() == ["at work", "saved"]
    trainer.stop()  # again is no harm


def test_a_process_that_does_not_heed_is_ended(process: ModuleType, log: Path) -> None:
    trainer = process.TrainerProcess([sys.executable, "-c", DEAF], log)
    assert wait_for(log, "at work")
    trainer.stop(patience_seconds=0.2)
    assert trainer.wait(0) != 0


def test_a_slow_stop_is_waited_for_and_counted_down(process: ModuleType, log: Path) -> None:
    trainer, left = process.TrainerProcess([sys.executable, "-c", SLOW], log), []
    assert wait_for(log, "at work")
    trainer.stop(60, left.append)
    assert trainer.log_tail().splitlines() == ["at work", "saved"]
    assert len(left) >= 2  # at once, and after each second
    assert left == sorted(left, reverse=True)
    assert 59 < left[0] <= 60


def test_an_exception_in_the_block_stops_the_trainer_and_goes_on(process: ModuleType, log: Path) -> None:
    def cancel() -> None:
        with process.running_trainer([sys.executable, "-c", WAITING], log):
            assert wait_for(log, "at work")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cancel()
    assert log.read_text("utf-8").splitlines() == ["at work", "saved"]


def test_a_trainer_whose_parent_is_killed_notices(process: ModuleType, log: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, process.__file__, str(log), WAITING], stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"started\n"
    assert wait_for(log, "at work")
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert wait_for(log, "saved")


def test_the_tail_is_short_and_survives_other_encodings(process: ModuleType, log: Path) -> None:
    code = r"import sys; [print(i) for i in range(99)]; sys.stdout.flush(); sys.stdout.buffer.write(b'\xff!')"
    with process.running_trainer([sys.executable, "-c", code], log) as trainer:
        trainer.wait(60)
    lines = trainer.log_tail().splitlines()
    assert lines == [*(str(i) for i in range(85, 99)), "\ufffd!"]  # 15 lines


def test_being_interrupted_from_outside_is_no_crash(process: ModuleType, log: Path) -> None:
    with process.running_trainer([sys.executable, "-c", ""], log) as trainer:
        trainer.wait(60)
    assert "queue again to go on" in trainer.failure(130)
    assert "killed by signal 9 (often by the system, when memory runs out)" in trainer.failure(-9)
