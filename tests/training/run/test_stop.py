"""A run ends with the program that started it."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from training.run.stop import EXIT_WITHOUT_PARENT, ParentWatch

ROOT = Path(__file__).parents[3]
WAIT_S = 10


class Calls:
    """Remembers that something was called, and with what."""

    def __init__(self):
        self.event, self.arguments = threading.Event(), []

    def __call__(self, *arguments):
        self.arguments.append(arguments)
        self.event.set()


@pytest.fixture
def pipe():
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)


def test_a_closed_pipe_ends_the_process_while_nothing_runs_yet(pipe):
    reading, writing = pipe
    end, request_stop = Calls(), Calls()
    watch = ParentWatch(reading, end=end)
    watch.start()
    os.write(writing, b"words are not the end")
    assert not end.event.wait(0.1)
    os.close(writing)
    assert end.event.wait(WAIT_S)
    assert end.arguments == [(EXIT_WITHOUT_PARENT,)]
    watch.hand_over(request_stop)  # between the two: whoever comes too late is told at once
    assert request_stop.arguments == [()]


def test_a_running_run_is_asked_to_stop_and_has_time_for_it(pipe):
    reading, writing = pipe
    end, request_stop = Calls(), Calls()
    watch = ParentWatch(reading, grace_seconds=0.5, end=end)
    watch.start()
    watch.hand_over(request_stop)
    os.close(writing)
    assert request_stop.event.wait(WAIT_S)
    assert not end.arguments
    assert end.event.wait(WAIT_S)  # it did not end by itself


def test_the_command_line_ends_at_once_when_nobody_holds_its_input(tmp_path):
    run_dir = tmp_path / "run"
    command = [sys.executable, "-m", "training.mvczigal", "--preset", "demo", "--stop-with-parent"]
    done = subprocess.run(
        [*command, f"run.out_dir={run_dir}"], cwd=ROOT, stdin=subprocess.DEVNULL, timeout=60, check=False
    )
    assert done.returncode == EXIT_WITHOUT_PARENT
    assert not run_dir.exists()
