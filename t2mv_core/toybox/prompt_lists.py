"""The toybox's fixed prompt lists, with what each prompt asks for: results are measured on them.

The recipe writes `prompts.json` (`training.toybox.data.captions.prompt_lists_json`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from . import toybox_path

FILE_NAME = "prompts.json"


@dataclass(frozen=True)
class PromptSpec:
    """A prompt and what its picture must show.

    Attributes:
        prompt: the sentence.
        family: of object.
        colour: of its body.
        part_colour: of the part that can have its own; None where the prompt does not say.
        companion_colour: of the second object; None where the prompt names none.
        kind: of a held-out prompt: "seen pair", "unseen pair", "unseen part" or "unseen relation"; else "".
    """

    prompt: str
    family: str
    colour: str
    part_colour: str | None = None
    companion_colour: str | None = None
    kind: str = ""


def load_prompt_list(name: str) -> tuple[PromptSpec, ...]:
    """Return one list.

    Args:
        name: "train" (every family and colour that training sees, in plain words), "train_parts" (the same
            with a part in another colour), "train_relations" (with a second object), "dev" (100 seen
            combinations, for choosing settings), "held_out" (300 in four kinds, for reports).

    Raises:
        FileNotFoundError: this checkout does not have the file.
    """
    return tuple(PromptSpec(**record) for record in _read()["lists"][name])


def find_specs(prompts: Sequence[str]) -> tuple[PromptSpec, ...] | None:
    """Return what toybox prompts ask for; None unless every prompt stands in one of the lists."""
    known = _specs_by_prompt()
    return tuple(known[prompt] for prompt in prompts) if all(prompt in known for prompt in prompts) else None


def asymmetric_families() -> frozenset[str]:
    """Return the families whose azimuth shows in every single view."""
    return frozenset(_read()["asymmetric_families"])


@cache
def _read() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(toybox_path(FILE_NAME).read_text(encoding="utf-8"))
    return content


@cache
def _specs_by_prompt() -> dict[str, PromptSpec]:
    return {spec.prompt: spec for name in _read()["lists"] for spec in load_prompt_list(name)}
