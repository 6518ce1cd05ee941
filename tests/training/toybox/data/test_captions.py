"""Captions: true, varied, grammatical; prompt lists: complete, disjoint, with their ground truth."""

from collections import Counter

import numpy as np
import pytest

from t2mv_core.toybox import toybox_path
from t2mv_core.toybox.prompt_lists import asymmetric_families, load_prompt_list
from training.toybox.data.captions import (
    DEV_PROMPTS,
    HELD_OUT_PROMPTS,
    PROMPT_LISTS,
    TRAIN_PART_PROMPTS,
    TRAIN_PROMPTS,
    TRAIN_RELATION_PROMPTS,
    caption,
    phrase,
    prompt_lists_json,
    spec_of,
    view_caption,
)
from training.toybox.data.dataset import dataset_scene
from training.toybox.data.scenes import (
    COLOURS,
    COMPANIONS,
    FAMILIES,
    HELD_OUT_PAIRS,
    HELD_OUT_PARTS,
    HELD_OUT_RELATIONS,
    Scene,
    is_held_out,
    sample_scene,
)

SEEN = [*TRAIN_PROMPTS, *TRAIN_PART_PROMPTS, *TRAIN_RELATION_PROMPTS, *DEV_PROMPTS]
KINDS = ("seen pair", "unseen pair", "unseen part", "unseen relation")


def asked(spec):
    """What a prompt asks for."""
    return (spec.family, spec.colour, spec.part_colour, spec.companion_colour)


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
        (("robot", "red", None, 3, "orange"), "a photo of a red robot beside an orange ball"),
        (("mug", "red", "blue", 0, "green"), "a red mug with a blue handle on a green plate"),
    ],
)
def test_phrase_wording(arguments, expected):
    assert phrase(*arguments) == expected


def test_caption_says_only_what_is_true():
    for seed in range(200):
        scene = sample_scene(seed)
        words = set(scene.caption.replace(",", "").split())
        assert {scene.family, scene.colour} <= words
        named = words & {*COLOURS, "wooden", "metal"}
        assert named <= {scene.colour, scene.part_colour, scene.companion_colour}


def test_caption_varies_and_mentions_part_and_companion_often_but_not_always():
    scene = Scene(0, "mug", "red", "blue", "green")
    captions = [caption(scene, np.random.default_rng(seed)) for seed in range(1000)]
    assert (
        len(set(captions)) == 16
    )  # four wordings, with and without the part, with and without the companion
    for words in ("blue handle", "on a green plate"):
        assert 0.7 < sum(words in text for text in captions) / 1000 < 0.9  # drawn with 0.8


def test_a_caption_of_one_view_names_its_side():
    assert view_caption("a red mug", 3) == "a red mug, back view"


@pytest.mark.parametrize(
    ("prompts", "count"), [(HELD_OUT_PROMPTS, 300), (DEV_PROMPTS, 100)], ids=["held_out", "dev"]
)
def test_evaluation_lists_have_every_family_and_colour(prompts, count):
    assert len({spec.prompt for spec in prompts}) == len(prompts) == count
    assert {spec.family for spec in prompts} == set(FAMILIES)
    assert {spec.colour for spec in prompts} == set(COLOURS)


def test_held_out_prompts_have_every_companion_and_every_colour_in_every_place():
    assert {spec.family for spec in HELD_OUT_PROMPTS if spec.companion_colour} == set(COMPANIONS)
    for place in ("part_colour", "companion_colour"):
        assert {getattr(spec, place) for spec in HELD_OUT_PROMPTS} >= set(COLOURS)


@pytest.mark.parametrize("name", PROMPT_LISTS)
def test_prompts_are_worded_as_they_are_specified(name):
    for spec in PROMPT_LISTS[name]:
        wordings = [spec_of(*asked(spec), style, spec.kind) for style in range(4)]
        assert spec in wordings
        assert asked(spec).count(spec.colour) == 1  # part and companion have other colours


def test_train_prompts_are_all_pairs_that_are_not_held_out():
    pairs = {(spec.family, spec.colour) for spec in TRAIN_PROMPTS}
    assert len(pairs) == len(TRAIN_PROMPTS) == len(FAMILIES) * len(COLOURS) - len(HELD_OUT_PAIRS)
    assert all(spec.part_colour is None and spec.companion_colour is None for spec in TRAIN_PROMPTS)


def test_other_train_prompts_name_a_part_or_a_companion():
    assert all(spec.part_colour and not spec.companion_colour for spec in TRAIN_PART_PROMPTS)
    assert all(spec.companion_colour and not spec.part_colour for spec in TRAIN_RELATION_PROMPTS)
    assert {spec.family for spec in TRAIN_PART_PROMPTS} == set(FAMILIES)
    assert {spec.family for spec in TRAIN_RELATION_PROMPTS} == set(COMPANIONS)


def test_train_and_dev_prompts_hold_nothing_that_is_held_out():
    assert not any(is_held_out(*asked(spec)) for spec in SEEN)
    assert not any(spec.kind for spec in SEEN)


def test_held_out_prompts_are_75_of_each_kind_and_stand_in_no_other_list():
    assert Counter(spec.kind for spec in HELD_OUT_PROMPTS) == dict.fromkeys(KINDS, 75)
    assert [spec.kind for spec in HELD_OUT_PROMPTS[:8]] == [*KINDS, *KINDS[1:], KINDS[0]]
    assert not {spec.prompt for spec in HELD_OUT_PROMPTS} & {spec.prompt for spec in SEEN}


def test_a_held_out_prompt_asks_for_the_one_unseen_thing_that_its_kind_says():
    for spec in HELD_OUT_PROMPTS:
        unseen = {
            "unseen pair": (spec.family, spec.colour) in HELD_OUT_PAIRS,
            "unseen part": (spec.family, spec.colour, spec.part_colour) in HELD_OUT_PARTS,
            "unseen relation": (spec.family, spec.companion_colour) in HELD_OUT_RELATIONS,
        }
        assert {kind for kind, holds in unseen.items() if holds} == {spec.kind} - {"seen pair"}


def test_every_held_out_pair_part_and_relation_is_asked_for():
    assert {(spec.family, spec.colour) for spec in HELD_OUT_PROMPTS} >= HELD_OUT_PAIRS
    assert {asked(spec)[:3] for spec in HELD_OUT_PROMPTS} >= HELD_OUT_PARTS
    assert {(spec.family, spec.companion_colour) for spec in HELD_OUT_PROMPTS} >= HELD_OUT_RELATIONS


def test_a_seen_pair_prompt_is_about_what_training_scenes_show():
    scenes = [dataset_scene(0, index) for index in range(3000)]
    pairs = {(scene.family, scene.colour) for scene in scenes}
    relations = {(scene.family, scene.companion_colour) for scene in scenes}
    for spec in HELD_OUT_PROMPTS:
        if spec.kind == "seen pair":
            assert (spec.family, spec.colour) in pairs
            assert spec.companion_colour is None or (spec.family, spec.companion_colour) in relations


def test_the_shipped_lists_are_those_of_the_recipe():
    assert toybox_path("prompts.json").read_text(encoding="utf-8") == prompt_lists_json()
    assert all(load_prompt_list(name) == tuple(specs) for name, specs in PROMPT_LISTS.items())
    assert asymmetric_families() == {name for name, family in FAMILIES.items() if family.is_asymmetric}
