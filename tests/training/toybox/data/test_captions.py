"""Captions: true, varied, grammatical; prompt lists: complete, disjoint, with their ground truth."""

import numpy as np
import pytest

from t2mv_core.toybox import toybox_path
from t2mv_core.toybox.prompt_lists import asymmetric_families, load_prompt_list
from training.toybox.data.captions import (
    DEV_PROMPTS,
    HELD_OUT_PROMPTS,
    MORE_HELD_OUT_PROMPTS,
    PROMPT_LISTS,
    TRAIN_PROMPTS,
    caption,
    phrase,
    prompt_lists_json,
)
from training.toybox.data.scenes import (
    COLOURS,
    FAMILIES,
    HELD_OUT_PAIRS,
    HELD_OUT_PARTS,
    Scene,
    is_held_out,
    sample_scene,
)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("mug", "red"), "a red mug"),
        (("airplane", "orange", None, 0), "an orange airplane"),
        (("umbrella", "red", None, 1), "an umbrella, red"),
        (("mug", "red", None, 2), "red mug"),
        (("house", "orange", None, 3), "a photo of an orange house"),
        (("mug", "red", "orange"), "a red mug with an orange handle"),
        (("chair", "yellow", "wooden"), "a yellow chair with wooden legs"),
        (("boat", "blue", "pink", 1), "a boat, blue, with a pink cabin"),
    ],
)
def test_phrase_wording(arguments, expected):
    assert phrase(*arguments) == expected


def test_caption_says_only_what_is_true():
    for seed in range(200):
        scene = sample_scene(seed)
        words = set(scene.caption.replace(",", "").split())
        assert {scene.family, scene.colour} <= words
        assert words & {*COLOURS, "wooden", "metal"} <= {scene.colour, scene.part_colour}


def test_caption_varies_and_mentions_the_part_often_but_not_always():
    scene = Scene(0, "mug", "red", "blue")
    captions = [caption(scene, np.random.default_rng(seed)) for seed in range(200)]
    assert len(set(captions)) == 8
    assert 0.7 < sum("blue handle" in text for text in captions) / 200 < 0.9  # drawn with 0.8


@pytest.mark.parametrize(
    "prompts",
    [HELD_OUT_PROMPTS, MORE_HELD_OUT_PROMPTS, DEV_PROMPTS],
    ids=["held_out", "more_held_out", "dev"],
)
def test_evaluation_lists_have_100_prompts_with_every_family_and_colour(prompts):
    assert len({spec.prompt for spec in prompts}) == len(prompts) == 100
    assert {spec.family for spec in prompts} == set(FAMILIES)
    assert {spec.colour for spec in prompts} == set(COLOURS)
    assert all(spec.family in spec.prompt and spec.colour in spec.prompt for spec in prompts)
    assert all(spec.part_colour is None or spec.part_colour in spec.prompt for spec in prompts)


def test_held_out_prompts_are_really_held_out_and_the_others_are_not():
    assert all(is_held_out(spec.family, spec.colour, spec.part_colour) for spec in HELD_OUT_PROMPTS)
    assert {(spec.family, spec.colour) for spec in HELD_OUT_PROMPTS} >= HELD_OUT_PAIRS
    seen = {(spec.family, spec.colour, spec.part_colour) for spec in DEV_PROMPTS + TRAIN_PROMPTS}
    assert not {pair[:2] for pair in seen} & HELD_OUT_PAIRS
    assert not seen & HELD_OUT_PARTS


def test_train_prompts_are_all_pairs_that_are_not_held_out():
    pairs = {(spec.family, spec.colour) for spec in TRAIN_PROMPTS}
    assert len(pairs) == len(TRAIN_PROMPTS) == len(FAMILIES) * len(COLOURS) - len(HELD_OUT_PAIRS)


def test_prompt_lists_do_not_overlap_where_it_matters():
    held_out = {spec.prompt for spec in HELD_OUT_PROMPTS}
    assert not held_out & {spec.prompt for spec in DEV_PROMPTS}
    assert not held_out & {spec.prompt for spec in TRAIN_PROMPTS}


def test_more_held_out_prompts_are_new_and_hold_every_held_out_combination():
    known = {spec.prompt for spec in HELD_OUT_PROMPTS + DEV_PROMPTS + TRAIN_PROMPTS}
    assert len({spec.prompt for spec in MORE_HELD_OUT_PROMPTS} - known) == len(MORE_HELD_OUT_PROMPTS) == 100
    asked = [(spec.family, spec.colour, spec.part_colour) for spec in MORE_HELD_OUT_PROMPTS]
    assert all(is_held_out(*combination) for combination in asked)
    assert {combination[:2] for combination in asked} >= HELD_OUT_PAIRS
    assert set(asked) >= HELD_OUT_PARTS


def test_more_held_out_prompts_are_worded_truly_and_balanced():
    for spec in MORE_HELD_OUT_PROMPTS:
        wordings = [phrase(spec.family, spec.colour, spec.part_colour, style) for style in (1, 2, 3)]
        assert spec.prompt in wordings
    # The list above has 60 prompts on held-out pairs and 40 on held-out parts; so has this one.
    assert sum((spec.family, spec.colour) in HELD_OUT_PAIRS for spec in MORE_HELD_OUT_PROMPTS) == 60
    for half in (MORE_HELD_OUT_PROMPTS[:50], MORE_HELD_OUT_PROMPTS[50:]):
        assert {spec.family for spec in half} == set(FAMILIES)


def test_the_shipped_lists_are_those_of_the_recipe():
    assert toybox_path("prompts.json").read_text(encoding="utf-8") == prompt_lists_json()
    assert all(load_prompt_list(name) == tuple(specs) for name, specs in PROMPT_LISTS.items())
    assert asymmetric_families() == {name for name, family in FAMILIES.items() if family.is_asymmetric}
