"""Files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; the file written there takes the place of `path` on leaving.

    Its content is flushed to the disk before the rename and the folder's entry after it, so that `path` holds
    the new file whole once the block is left, even after a power cut. Two things are not promised: Windows
    and some network drives cannot flush a folder, so a power cut there may bring back the old file; and the
    entry of a folder that is made here is not flushed. A killed process leaves `.<name>.<pid>.tmp` behind.

    Raises:
        OSError: the folder cannot be written or the disk is full; `path` is then unchanged, and the temporary
            file is deleted, as after any other error in the block.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":  # cannot open a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network drives refuse
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
