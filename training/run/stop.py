"""How a run is asked to end: by a signal, or by the end of the program that started it."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

EXIT_WITHOUT_PARENT = 130
GRACE_SECONDS = 600.0  # longer than an iteration's update, after which the run heeds a request to stop


@contextmanager
def stopping_on_signals(request_stop: Callable[[], None]) -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into a request to stop; a second one ends the process at once."""
    numbers = (signal.SIGINT, signal.SIGTERM)

    def stop(number: int, _: object) -> None:
        name = signal.Signals(number).name
        logger.info("Stopping after saving the state. A second %s ends at once.", name)
        signal.signal(number, signal.SIG_DFL)
        request_stop()

    previous = [signal.signal(number, stop) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)


class ParentWatch:
    """Waits in a thread for the end of standard input, whose other end the parent program holds.

    A closed pipe is the one message that every system delivers even when its sender was killed. Before a run
    is under way there is nothing to save: then the process ends at once. Afterwards the run is asked to stop,
    as by Ctrl-C.

    Args:
        descriptor: file descriptor of the pipe's reading end.
        grace_seconds: how long the run may take to save and end; then the process ends anyhow.
        end: ends the process at once; called with the exit code.
    """

    def __init__(
        self,
        descriptor: int = 0,
        grace_seconds: float = GRACE_SECONDS,
        end: Callable[[int], object] = os._exit,
    ) -> None:
        self._descriptor, self._grace_seconds, self._end = descriptor, grace_seconds, end
        self._request_stop: Callable[[], object] | None = None
        self._lock = threading.Lock()
        self._is_closed = False

    def start(self) -> None:
        """Begin to wait; the thread does not keep the process alive."""
        threading.Thread(target=self._wait, name="parent watch", daemon=True).start()

    def hand_over(self, request_stop: Callable[[], object]) -> None:
        """From now on ask for a stop instead of ending at once; `request_stop` may be called right here."""
        with self._lock:
            self._request_stop = request_stop
            is_late = self._is_closed
        if is_late:
            request_stop()

    def _wait(self) -> None:
        # Not sys.stdin: a thread that waits inside its buffer makes the interpreter abort when it ends.
        try:
            while os.read(self._descriptor, 4096):
                pass
        except OSError:
            pass  # no standard input at all: nobody holds its other end
        with self._lock:
            self._is_closed = True
            request_stop = self._request_stop
        if request_stop is None:
            self._end(EXIT_WITHOUT_PARENT)
            return
        logger.info("The program that started this run closed its input; stopping after saving the state.")
        request_stop()
        time.sleep(self._grace_seconds)
        self._end(EXIT_WITHOUT_PARENT)
