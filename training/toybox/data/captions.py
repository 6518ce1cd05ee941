"""Captions of scenes in natural variations, and the fixed prompt lists that results are measured on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace

import numpy as np

from t2mv_core.toybox.prompt_lists import PromptSpec

from .scenes import COLOURS, FAMILIES, HELD_OUT_PAIRS, HELD_OUT_PARTS, Scene

_PLAIN = (
    "a {colour} {family}",
    "{a_family} {family}, {colour}",
    "{colour} {family}",
    "a photo of a {colour} {family}",
)
_WITH_PART = (
    "a {colour} {family} with {part}",
    "{a_family} {family}, {colour}, with {part}",
    "{colour} {family} with {part}",
    "a photo of a {colour} {family} with {part}",
)
_WEIGHTS = (0.5, 0.2, 0.15, 0.15)
_MENTION = 0.8  # share of scenes with an own part colour whose caption says so


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A true sentence about a scene in one of four wordings; it often, not always, says the part's colour."""
    style = int(rng.choice(len(_WEIGHTS), p=_WEIGHTS))
    says_part = scene.part_colour is not None and rng.random() < _MENTION
    return phrase(scene.family, scene.colour, scene.part_colour if says_part else None, style)


def phrase(family: str, colour: str, part_colour: str | None = None, style: int = 0) -> str:
    """Word one object: style 0 "a red mug", 1 "a mug, red", 2 "red mug", 3 "a photo of a red mug"."""
    template = (_PLAIN if part_colour is None else _WITH_PART)[style]
    template = template.replace("a {colour}", _article(colour) + " {colour}")
    part = "" if part_colour is None else _part_phrase(family, part_colour)
    return template.format(colour=colour, family=family, a_family=_article(family), part=part)


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _part_phrase(family: str, part_colour: str) -> str:
    name = FAMILIES[family].part_name
    return f"{part_colour} {name}" if name.endswith("s") else f"{_article(part_colour)} {part_colour} {name}"


def _specs(pairs: list[tuple[str, str]]) -> list[PromptSpec]:
    return [PromptSpec(phrase(family, colour), family, colour) for family, colour in pairs]


def _seen_pairs() -> list[tuple[str, str]]:
    return [
        (family, colour)
        for family in FAMILIES
        for colour in COLOURS
        if (family, colour) not in HELD_OUT_PAIRS
    ]


def _with_parts(pairs: list[tuple[str, str]], shift: int) -> Iterator[PromptSpec]:
    """Each pair with a part in some other colour, walking through the colours."""
    names = list(COLOURS)
    for number, (family, colour) in enumerate(pairs):
        part = names[(names.index(colour) + 1 + (number + shift) % 9) % 10]
        if (family, colour, part) not in HELD_OUT_PARTS:
            yield PromptSpec(phrase(family, colour, part), family, colour, part)


def _held_out_prompts() -> list[PromptSpec]:
    """All held-out pairs, plain and with a part colour, then held-out part combinations: 100 in all."""
    pairs = sorted(HELD_OUT_PAIRS)
    specs = _specs(pairs) + list(_with_parts(pairs, 0))
    specs += [
        PromptSpec(phrase(family, colour, part), family, colour, part)
        for family, colour, part in sorted(HELD_OUT_PARTS)
    ]
    specs += [PromptSpec(phrase(family, colour, None, 1), family, colour) for family, colour in pairs]
    return specs[:100]


def _more_held_out_prompts() -> list[PromptSpec]:
    """All held-out combinations in wordings that `_held_out_prompts` does not use, pairs with other parts."""
    pairs = sorted(HELD_OUT_PAIRS)
    plain = [_reword(spec, 2 + number % 2) for number, spec in enumerate(_specs(pairs))]
    parts = [PromptSpec("", *combination) for combination in sorted(HELD_OUT_PARTS)]
    with_parts = [_reword(spec, 1 + k % 3) for k, spec in enumerate([*_with_parts(pairs, 4), *parts])]
    specs = plain + with_parts
    count = Counter(spec.family for spec in specs)
    # The rest is plain again, in the other one of the two wordings, for the families that occur least often.
    specs += [
        _reword(spec, 3 - pairs.index((spec.family, spec.colour)) % 2)
        for spec in sorted(_specs(pairs), key=lambda spec: count[spec.family])[: 100 - len(specs)]
    ]
    # Of all strides, 41 spreads families and kinds most evenly: each half holds every family.
    return [specs[(k * 41) % len(specs)] for k in range(len(specs))]


def _reword(spec: PromptSpec, style: int) -> PromptSpec:
    return replace(spec, prompt=phrase(spec.family, spec.colour, spec.part_colour, style))


def _dev_prompts() -> list[PromptSpec]:
    """Seen pairs only: every other one plain, the rest with a part colour."""
    pairs = _seen_pairs()
    chosen = [pairs[(k * 37) % len(pairs)] for k in range(len(pairs))]
    return (_specs(chosen[:50]) + list(_with_parts(chosen[50:], 3)))[:100]


TRAIN_PROMPTS: list[PromptSpec] = _specs(_seen_pairs())
"""Every (family, colour) pair of the training data as a plain prompt: for reinforcement learning."""
TRAIN_PART_PROMPTS: list[PromptSpec] = list(_with_parts(_seen_pairs(), 6))
"""The same pairs with a part in another colour, held-out part combinations aside."""
HELD_OUT_PROMPTS: list[PromptSpec] = _held_out_prompts()
"""100 prompts none of whose combinations occurs in training: for reports only."""
MORE_HELD_OUT_PROMPTS: list[PromptSpec] = _more_held_out_prompts()
"""100 further prompts of the same kinds (60 held-out pairs, 40 held-out part combinations), none equal to one
in another list: in other wordings, and the pairs with other part colours. For reports that need 200."""
DEV_PROMPTS: list[PromptSpec] = _dev_prompts()
"""100 prompts on pairs that training has seen: for choosing settings."""
PROMPT_LISTS = {
    "train": TRAIN_PROMPTS,
    "train_parts": TRAIN_PART_PROMPTS,
    "dev": DEV_PROMPTS,
    "held_out": HELD_OUT_PROMPTS,
    "more_held_out": MORE_HELD_OUT_PROMPTS,
}


def prompt_lists_json() -> str:
    """Return the content of `t2mv_core/toybox/prompts.json`, a prompt a line."""
    asymmetric = json.dumps([name for name, family in FAMILIES.items() if family.is_asymmetric])
    lists = [
        f' "{name}": [\n  ' + ",\n  ".join(json.dumps(asdict(spec)) for spec in specs) + "\n ]"
        for name, specs in PROMPT_LISTS.items()
    ]
    return f'{{"asymmetric_families": {asymmetric},\n"lists": {{\n' + ",\n".join(lists) + "\n}}\n"
