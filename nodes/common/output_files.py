"""Names of files that nodes write: inside ComfyUI's folders only."""

from __future__ import annotations

import re

MAX_NAME_BYTES = 200  # file systems stop at 255, and a counter and an ending follow


def check_prefix(name: str, prefix: str | None) -> None:
    """Refuse a file name that could leave ComfyUI's folder or that a file system refuses; None passes.

    Subfolders ("mugs/red") and ComfyUI's %year% and the like are allowed.

    Raises:
        ValueError: with the prefix and what to write instead.
    """
    if prefix is None:
        return
    shown = repr(prefix[:80])
    parts = re.split(r"[/\\]", prefix)
    if not prefix.strip() or not parts[-1].strip(" ."):
        raise ValueError(f"{name}={shown} names no file; write a name such as 'T2MV/turntable'.")
    if prefix[0] in "/\\~" or ":" in prefix or any(part.strip() == ".." for part in parts):
        raise ValueError(
            f"{name}={shown} leaves ComfyUI's folder; write a name inside it, such as 'T2MV/turntable'."
        )
    if not prefix.isprintable() or re.search(r'[<>"|?*]', prefix):
        raise ValueError(f"{name}={shown} holds characters that file names cannot have.")
    longest = max(len(part.encode()) for part in parts)
    if longest > MAX_NAME_BYTES or len(parts) > 10:
        raise ValueError(
            f"{name}={shown} is too long ({longest} bytes, {len(parts)} levels); at most {MAX_NAME_BYTES} "
            "bytes per name and 10 levels are allowed."
        )
