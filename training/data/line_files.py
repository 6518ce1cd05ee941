"""Text files with an entry a line, JSON objects among them: reading, and what is said of a bad line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from t2mv_core.prompts import split_lines

Entry = TypeVar("Entry")
SPLITS = ("train", "heldout")


def read_lines(path: Path, parse: Callable[[str], Entry | None]) -> list[tuple[int, Entry]]:
    """Return the entries of a file with their line numbers, from 1.

    Args:
        path: UTF-8 text, with or without a byte-order mark.
        parse: turns a line into an entry, or into None for one that has none.

    Raises:
        ValueError: not UTF-8 text, or a line that `parse` refuses, with file and line number.
        FileNotFoundError: a line names a file that is not there, likewise.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows editors put a byte-order mark in front
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text; save it as UTF-8.") from error
    entries = []
    for number, content in enumerate(split_lines(text), start=1):
        try:
            entry = parse(content)
        except (ValueError, OSError) as error:
            kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
            raise kind(f"{path}, line {number}: {error}") from error
        if entry is not None:
            entries.append((number, entry))
    return entries


def parse_object(content: str, required: str, example: str) -> dict[str, Any]:
    """Return the JSON object of a line.

    Args:
        content: the line.
        required: a key that must hold words.
        example: a good line, for messages.

    Raises:
        ValueError: not such an object, a key that is there twice, or a "split" that is no part of one.
    """
    try:
        record = json.loads(content, object_pairs_hook=_unique_keys)
    except _RepeatedKeyError:
        raise
    except (ValueError, RecursionError) as error:
        raise ValueError(f"This is not valid JSON; write a line such as {example}.") from error
    if not isinstance(record, dict) or not isinstance(record.get(required), str):
        raise ValueError(f'This is no object with a "{required}" in words; write a line such as {example}.')
    split = record.get("split")
    if split is not None and split not in SPLITS:
        raise ValueError(f'"split" is {split!r}; write "train" or "heldout", or leave it out.')
    return record


class _RepeatedKeyError(ValueError):
    """A JSON object has a key twice."""


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of a JSON line; json alone would keep the last of two equal keys."""
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _RepeatedKeyError(f"{twice!r} is there twice; write one object a line.")
    return record
