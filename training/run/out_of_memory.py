"""Running out of a device's memory, said in a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def explained_out_of_memory(advice: str) -> Iterator[None]:
    """Turn torch's error into one that says what to do.

    Args:
        advice: a sentence.

    Raises:
        MemoryError: the device is out of memory.
    """
    from torch.cuda import OutOfMemoryError  # torch.OutOfMemoryError is newer

    try:
        yield
    except OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        raise MemoryError(f"The device is out of memory ({reason}). {advice}") from error
