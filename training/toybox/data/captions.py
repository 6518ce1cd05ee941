"""Captions of scenes in natural variations, and the fixed prompt lists that results are measured on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np

from t2mv_core.toybox.prompt_lists import PromptSpec

from .companions import COMPANIONS
from .scenes import COLOURS, FAMILIES, HELD_OUT_PAIRS, HELD_OUT_PARTS, HELD_OUT_RELATIONS, Scene

_WORDINGS = (
    "a {colour} {family}",
    "{a_family} {family}, {colour}",
    "{colour} {family}",
    "a photo of a {colour} {family}",
)
_WEIGHTS = (0.5, 0.2, 0.15, 0.15)
_MENTION = 0.8  # share of scenes with an own part colour, or a companion, whose caption says so
SIDES = ("front", "front right", "right side", "back", "left side", "front left")
"""Words for the default rig's azimuths, in captions of single views."""


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A true sentence about a scene in one of four wordings; it often, not always, says the other colours."""
    style = int(rng.choice(len(_WEIGHTS), p=_WEIGHTS))
    says_part = scene.part_colour is not None and rng.random() < _MENTION
    says_companion = scene.companion_colour is not None and rng.random() < _MENTION
    return phrase(
        scene.family,
        scene.colour,
        scene.part_colour if says_part else None,
        style,
        scene.companion_colour if says_companion else None,
    )


def view_caption(sentence: str, view: int) -> str:
    """A caption of one view that names its side: "a red mug, back view"; pictures on the web have such."""
    return f"{sentence}, {SIDES[view]} view"


def phrase(
    family: str,
    colour: str,
    part_colour: str | None = None,
    style: int = 0,
    companion_colour: str | None = None,
) -> str:
    """Word one object: style 0 "a red mug", 1 "a mug, red", 2 "red mug", 3 "a photo of a red mug".

    With its part and its companion: "a red mug with a blue handle on a green plate".
    """
    template = _WORDINGS[style].replace("a {colour}", _article(colour) + " {colour}")
    sentence = template.format(colour=colour, family=family, a_family=_article(family))
    if part_colour is not None:
        sentence += (", with " if style == 1 else " with ") + _part_phrase(family, part_colour)
    if companion_colour is not None:
        companion = COMPANIONS[family]
        sentence += f" {companion.place} {_article(companion_colour)} {companion_colour} {companion.name}"
    return sentence


def phrase_family(family: str) -> str:
    """Word an object without its colours: "a mug"."""
    return f"{_article(family)} {family}"


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _part_phrase(family: str, part_colour: str) -> str:
    name = FAMILIES[family].part_name
    return f"{part_colour} {name}" if name.endswith("s") else f"{_article(part_colour)} {part_colour} {name}"


def spec_of(
    family: str,
    colour: str,
    part_colour: str | None = None,
    companion_colour: str | None = None,
    style: int = 0,
    kind: str = "",
) -> PromptSpec:
    """A prompt in one of the wordings, with what it asks for."""
    prompt = phrase(family, colour, part_colour, style, companion_colour)
    return PromptSpec(prompt, family, colour, part_colour, companion_colour, kind)


def _seen_pairs() -> list[tuple[str, str]]:
    return [
        (family, colour)
        for family in FAMILIES
        for colour in COLOURS
        if (family, colour) not in HELD_OUT_PAIRS
    ]


def _other_colour(colour: str, number: int) -> str:
    """One of the nine other colours."""
    names = list(COLOURS)
    return names[(names.index(colour) + 1 + number % 9) % 10]


def _varied(pairs: list[tuple[str, str]], shift: int, kind: str = "", style: int = 0) -> Iterator[PromptSpec]:
    """Each pair in turn plain, with a part, with a companion, with both, in allowed colours."""
    for number, (family, colour) in enumerate(pairs):
        part = _other_colour(colour, number + shift) if number % 4 in (1, 3) else None
        companion = _other_colour(colour, number + number // 4 + shift + 4) if number % 4 in (2, 3) else None
        if family not in COMPANIONS or (family, companion) in HELD_OUT_RELATIONS:
            companion = None
            part = part or _other_colour(colour, number + shift)
        if (family, colour, part) in HELD_OUT_PARTS:
            part = None
        yield spec_of(family, colour, part, companion, (style + number) % 4, kind)


def _train_part_prompts() -> list[PromptSpec]:
    """Every seen pair with a part in another colour, held-out combinations aside."""
    chosen = [
        (family, colour, _other_colour(colour, n + 6)) for n, (family, colour) in enumerate(_seen_pairs())
    ]
    return [spec_of(*combination) for combination in chosen if combination not in HELD_OUT_PARTS]


def _train_relation_prompts() -> list[PromptSpec]:
    """Every seen pair whose family has a companion, with one in another colour."""
    chosen = [
        (family, colour, _other_colour(colour, n + 3))
        for n, (family, colour) in enumerate(_seen_pairs())
        if family in COMPANIONS
    ]
    return [
        spec_of(family, colour, None, companion)
        for family, colour, companion in chosen
        if (family, companion) not in HELD_OUT_RELATIONS
    ]


def _dev_prompts() -> list[PromptSpec]:
    """100 prompts on seen combinations, none of them a training prompt where it says more than a pair."""
    pairs = _seen_pairs()
    trained = {spec.prompt for spec in (*TRAIN_PROMPTS, *TRAIN_PART_PROMPTS, *TRAIN_RELATION_PROMPTS)}
    chosen = [pairs[(k * 37) % len(pairs)] for k in range(len(pairs))]
    return [spec for spec in _varied(chosen, 1) if spec.prompt not in trained][:100]


def _held_out_prompts(per_kind: int = 75) -> list[PromptSpec]:
    """As many of each kind, in turn; every family occurs in the first kinds, every companion in the last."""
    pairs = _seen_pairs()
    known = {spec.prompt for name in (TRAIN_PROMPTS, TRAIN_PART_PROMPTS, TRAIN_RELATION_PROMPTS, DEV_PROMPTS)
             for spec in name}  # fmt: skip
    stride = [pairs[(11 + k * 53) % len(pairs)] for k in range(len(pairs))]
    seen = [spec for spec in _varied(stride, 4, "seen pair", 1) if spec.prompt not in known]
    unseen = sorted(HELD_OUT_PAIRS)
    unseen_pair = [
        spec
        for shift in range(4)
        for spec in _varied(unseen[shift:] + unseen[:shift], shift, "unseen pair", 2 * shift)
    ]
    unseen_part = [
        spec_of(family, colour, part, _allowed_companion(family, colour, number) if style % 2 else None,
                (number + style) % 4, "unseen part")
        for style in range(4)
        for number, (family, colour, part) in enumerate(sorted(HELD_OUT_PARTS))
    ]  # fmt: skip
    unseen_relation = [
        spec_of(family, colour, _allowed_part(family, colour, number + shift) if shift % 2 else None,
                companion, (number + shift) % 4, "unseen relation")
        for shift in range(5)
        for number, (family, companion) in enumerate(sorted(HELD_OUT_RELATIONS))
        for colour in [_allowed_colour(family, companion, number + 2 * shift)]
    ]  # fmt: skip
    kinds = [_distinct(kind)[:per_kind] for kind in (seen, unseen_pair, unseen_part, unseen_relation)]
    # The kinds take turns in coming first, so that every few prompts, evenly chosen, are of all kinds.
    return [kinds[(number + place) % 4][number] for number in range(per_kind) for place in range(4)]


def _distinct(specs: list[PromptSpec]) -> list[PromptSpec]:
    return list({spec.prompt: spec for spec in specs}.values())


def _allowed_colour(family: str, companion: str, number: int) -> str:
    names = [name for name in COLOURS if name != companion and (family, name) not in HELD_OUT_PAIRS]
    return names[number % len(names)]


def _allowed_part(family: str, colour: str, number: int) -> str:
    names = [name for name in COLOURS if name != colour and (family, colour, name) not in HELD_OUT_PARTS]
    return names[number % len(names)]


def _allowed_companion(family: str, colour: str, number: int) -> str | None:
    names = [name for name in COLOURS if name != colour and (family, name) not in HELD_OUT_RELATIONS]
    return names[number % len(names)] if family in COMPANIONS else None


TRAIN_PROMPTS: list[PromptSpec] = [spec_of(family, colour) for family, colour in _seen_pairs()]
"""Every (family, colour) pair of the training data as a plain prompt: for reinforcement learning."""
TRAIN_PART_PROMPTS: list[PromptSpec] = _train_part_prompts()
"""The same pairs with a part in another colour, held-out part combinations aside."""
TRAIN_RELATION_PROMPTS: list[PromptSpec] = _train_relation_prompts()
"""The same pairs with a companion, where the family has one, held-out relations aside."""
DEV_PROMPTS: list[PromptSpec] = _dev_prompts()
"""100 prompts on combinations that training has seen: for choosing settings."""
HELD_OUT_PROMPTS: list[PromptSpec] = _held_out_prompts()
"""300 prompts in four kinds, for reports only: combinations that training has seen, pairs, part colours and
companions that it has not; none stands in another list."""
PROMPT_LISTS = {
    "train": TRAIN_PROMPTS,
    "train_parts": TRAIN_PART_PROMPTS,
    "train_relations": TRAIN_RELATION_PROMPTS,
    "dev": DEV_PROMPTS,
    "held_out": HELD_OUT_PROMPTS,
}


def prompt_lists_json() -> str:
    """Return the content of `t2mv_core/toybox/prompts.json`, a prompt a line."""
    asymmetric = json.dumps([name for name, family in FAMILIES.items() if family.is_asymmetric])
    lists = [
        f' "{name}": [\n  ' + ",\n  ".join(json.dumps(asdict(spec)) for spec in specs) + "\n ]"
        for name, specs in PROMPT_LISTS.items()
    ]
    return f'{{"asymmetric_families": {asymmetric},\n"lists": {{\n' + ",\n".join(lists) + "\n}}\n"
