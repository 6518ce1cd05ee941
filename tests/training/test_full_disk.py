"""A disk that is full or cannot be written: a sentence, the state as it was, and the run can go on."""

import resource
import subprocess
from contextlib import contextmanager

import pytest
import yaml

import t2mv_core.rewards.registry
from t2mv_core.rewards.registry import RewardSpec
from training.config import config_to_dict
from training.mvczigal import main
from training.run.checkpoint import load_checkpoint
from training.run.metrics import read_metrics
from training.run.trainer import Trainer

EMA = {"optim": {"ema_decay": 0.9}, "sampling": {"prompts_per_iteration": 2}}


@contextmanager
def file_size_limit(num_bytes):
    """Writing beyond it fails as on a full disk: Python ignores the signal, so that OSError is left."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def mounted(folder, *options):
    """A small disk of its own on a folder."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting is not permitted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def command_line(runs, registered_rewards):
    """`python -m training.mvczigal --resume auto` in this process; the exit code."""

    def run(name, **sections):
        preset = runs.root / f"{name.replace('/', '_')}.yaml"
        preset.write_text(yaml.safe_dump(config_to_dict(runs.config(name, **sections))))
        return main(["--preset", str(preset), "--resume", "auto"])

    return run


def assert_sentence(error):
    assert "Traceback" not in error
    assert [line for line in error.splitlines() if line.startswith("mvczigal: ")]


@pytest.mark.parametrize(
    ("iteration", "limit", "half_written"),
    [
        (3, lambda size: size + 20, "metrics.jsonl"),  # half of it is written
        (2, lambda *_: 4096, "lora/"),  # the epoch's LoRA file
        (3, lambda *_: 4096, "last.pt"),  # the state
    ],
    ids=["half a line", "LoRA", "state"],
)
def test_a_full_disk_ends_the_run_with_a_sentence(
    iteration, limit, half_written, runs, command_line, monkeypatch, capsys
):
    iterate, report = Trainer._iterate, Trainer._report

    def remember(trainer, number):
        remember.number = number
        return iterate(trainer, number)

    def report_on_a_full_disk(*given):
        if remember.number < iteration:
            return report(*given)
        with file_size_limit(limit((runs.root / "full" / "metrics.jsonl").stat().st_size)):
            return report(*given)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_iterate", remember)
        patch.setattr(Trainer, "_report", report_on_a_full_disk)
        assert command_line("full", **EMA) == 1
    assert_sentence(capsys.readouterr().err)
    folder = runs.root / "full"
    assert load_checkpoint(folder / "last.pt").iteration == iteration - 1
    has_line = len(read_metrics(folder / "metrics.jsonl")) == iteration
    assert has_line == (half_written != "metrics.jsonl")
    if half_written == "lora/":
        assert list((folder / "lora").glob("epoch_*")) == []
    assert not list(folder.rglob("*.tmp"))
    assert command_line("full", **EMA) == 0
    runs.assert_identical(runs.outcome("full"), runs.undisturbed(**EMA))


def test_a_disk_that_fills_up_and_is_made_larger(runs, command_line, capsys):
    """Room for a state and a little: some write between two iterations finds the disk full."""
    with mounted(runs.root / "disk", "-o", "size=1m"):
        free = runs.root / "disk" / "something else"
        free.write_bytes(bytes(1 << 20 >> 1))
        assert command_line("disk/run", **EMA) == 1
        assert_sentence(capsys.readouterr().err)
        checkpoint = load_checkpoint(runs.root / "disk" / "run" / "last.pt")
        assert checkpoint is None or checkpoint.iteration < 4
        free.unlink()
        assert command_line("disk/run", **EMA) == 0
        runs.assert_identical(runs.outcome("disk/run"), runs.undisturbed(**EMA))


def refuse_to_score(images, prompts):
    raise AssertionError("The first iteration has begun.")


@pytest.mark.parametrize("place", ["read-only", "/proc", "file"])
def test_a_folder_that_cannot_be_written_gets_a_sentence_before_the_first_iteration(
    place, runs, command_line, monkeypatch, capsys
):
    spec = RewardSpec("view", lambda *_: refuse_to_score, "test")
    monkeypatch.setitem(t2mv_core.rewards.registry.REWARDS, "redness", spec)
    if place == "read-only":
        with mounted(runs.root / "disk", "-o", "ro"):
            assert command_line("disk/run") == 1
    elif place == "/proc":
        assert command_line("/proc/run") == 1
    else:
        (runs.root / "note.txt").write_text("not a folder")
        assert command_line("note.txt/run") == 1
    assert_sentence(capsys.readouterr().err)
