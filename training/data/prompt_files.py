"""Prompt files: `.txt` with one prompt a line, or `.jsonl` with one JSON object a line."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from t2mv_core.text import check_prompts

log = logging.getLogger(__name__)

SPLITS = ("train", "heldout")


@dataclass(frozen=True)
class PromptLine:
    """One prompt of a file.

    Attributes:
        prompt: its text, without white space around it.
        split: "train" or "heldout" where the file says so, else None.
    """

    prompt: str
    split: str | None = None


def read_prompt_file(path: Path) -> list[PromptLine]:
    """The prompts of a file in its order, each once; a repeated one is dropped with a warning.

    `.txt`: one prompt a line; empty lines and those beginning with `#` are skipped. `.jsonl`: a JSON object a
    line with "prompt" and, if wished, "split" ("train" or "heldout"); other keys are ignored.

    Raises:
        ValueError: another ending, not UTF-8 text, no prompt, or a bad line (file and line number are named).
    """
    parse = _PARSERS.get(path.suffix.lower())
    if parse is None:
        raise ValueError(
            f"{path} ends neither in .txt nor in .jsonl; write one prompt a line into one of these."
        )
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows editors put a byte-order mark in front
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text; save it as UTF-8 with one prompt a line.") from error
    lines = []
    # Not splitlines(): that also splits at U+2028 and the like, which may stand inside a JSON string.
    for number, content in enumerate(text.split("\n"), start=1):
        try:
            line = parse(content.strip())
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        if line is not None:
            lines.append(line)
    if not lines:
        raise ValueError(f"{path} holds no prompt; write one a line.")
    return _without_repetitions(path, lines)


def _parse_text(content: str) -> PromptLine | None:
    """A line of a `.txt` file; None for an empty line or a comment."""
    if not content or content.startswith("#"):
        return None
    check_prompts([content])
    return PromptLine(content)


def _parse_json(content: str) -> PromptLine | None:
    """A line of a `.jsonl` file; None for an empty line."""
    if not content:
        return None
    try:
        record = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError('This is not valid JSON; write a line such as {"prompt": "a red mug"}.') from error
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
        raise ValueError(
            'This is no object with a "prompt" in words; write a line such as {"prompt": "a red mug"}.'
        )
    split = record.get("split")
    if split is not None and split not in SPLITS:
        raise ValueError(f'"split" is {split!r}; write "train" or "heldout", or leave it out.')
    prompt = record["prompt"].strip()
    check_prompts([prompt])
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise ValueError("The prompt holds half a character (an unpaired surrogate); write the whole one.")
    return PromptLine(prompt, split)


_PARSERS = {".txt": _parse_text, ".jsonl": _parse_json}


def _without_repetitions(path: Path, lines: Sequence[PromptLine]) -> list[PromptLine]:
    first: dict[str, PromptLine] = {}
    for line in lines:
        first.setdefault(line.prompt, line)
    if len(first) < len(lines):
        log.warning("%s repeats %d prompts; the first of each is kept.", path, len(lines) - len(first))
    return list(first.values())
