"""The trainer as a process of its own: started, watched, stopped. Needs no ComfyUI."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

PACK_DIR = Path(__file__).parents[2]
STOP_SECONDS = 30.0  # unless the caller knows better; a kill loses one iteration at most
MAX_TAIL_LINES, MAX_TAIL_CHARACTERS = 15, 3000
EXIT_INTERRUPTED = 130
# Not `-m`: the portable Python of Windows runs isolated and does not look into the working directory.
CODE = (
    "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); "
    "[s.reconfigure(encoding='utf-8', errors='backslashreplace') for s in (sys.stdout, sys.stderr)]; "
    "runpy.run_module('training.mvczigal', run_name='__main__', alter_sys=True)"
)


def build_command(preset: str, resume: bool, overrides: Sequence[str]) -> list[str]:
    """Return the arguments that start `training.mvczigal`, and nothing else, with this Python."""
    user_site = ["-s"] if sys.flags.no_user_site else []
    words = ["--preset", preset, "--resume", "auto" if resume else "never", "--stop-with-parent"]
    return [sys.executable, *user_site, "-c", CODE, str(PACK_DIR), *words, *overrides]


class TrainerProcess:
    """A running trainer; what it says is appended to a log file.

    We hold the other end of its standard input. Closing it asks for a stop, which is the same on every system
    and also happens when ComfyUI dies (training/run/stop.py).

    Args:
        command: from `build_command`.
        log_path: file in an existing folder.

    Raises:
        OSError: the log cannot be written or the process not started.
    """

    def __init__(self, command: Sequence[str], log_path: Path) -> None:
        self.log_path = log_path
        with log_path.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                list(command),
                cwd=PACK_DIR,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),  # on Windows: no console pops up
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )

    def wait(self, seconds: float) -> int | None:
        """Return the exit code, or None when the trainer is still running after so many seconds."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def stop(
        self,
        patience_seconds: float = STOP_SECONDS,
        on_wait: Callable[[float], object] = lambda seconds_left: None,
    ) -> None:
        """Ask for a stop, wait until the state is saved, and kill the process when it takes too long.

        Args:
            patience_seconds: how long to wait.
            on_wait: called about once per second with the seconds that are left.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it is gone already
            self._process.stdin.close()
        deadline = time.monotonic() + patience_seconds
        while (seconds_left := deadline - time.monotonic()) > 0:
            on_wait(seconds_left)
            if self.wait(min(seconds_left, 1.0)) is not None:
                return
        self._process.kill()
        self._process.wait()

    def log_tail(self) -> str:
        """Return the last lines that this process wrote."""
        with self.log_path.open("rb") as log:
            log.seek(self._log_start)
            text = log.read().decode("utf-8", errors="replace")
        return "\n".join(text.splitlines()[-MAX_TAIL_LINES:])[-MAX_TAIL_CHARACTERS:]

    def failure(self, exit_code: int) -> str:
        """Say why a trainer with this exit code did not reach its end."""
        if exit_code == EXIT_INTERRUPTED:
            return "Training was stopped from outside and its state saved; queue again to go on."
        ended = f"was killed by signal {-exit_code}" if exit_code < 0 else f"ended with exit code {exit_code}"
        if exit_code == -9:
            ended += " (often by the system, when memory runs out)"
        tail = self.log_tail()
        hint = "Here, another run.out_dir means another name of the LoRA.\n" if "run.out_dir" in tail else ""
        return f"The trainer {ended}. It said last:\n{tail}\n{hint}All of it: {self.log_path}"


@contextlib.contextmanager
def running_trainer(command: Sequence[str], log_path: Path) -> Iterator[TrainerProcess]:
    """Run a trainer that never outlives the block: an exception in it, a cancel too, stops it first."""
    process = TrainerProcess(command, log_path)
    try:
        yield process
    finally:
        process.stop()
