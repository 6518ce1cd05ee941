"""Descriptions: what is said to be wrong is wrong, and by as much as the weights say."""

from __future__ import annotations

import numpy as np
import pytest

from training.toybox.data.captions import spec_of
from training.toybox.data.scenes import COLOURS, HELD_OUT_PAIRS, HELD_OUT_RELATIONS, Scene, is_held_out
from training.toybox.rewards.lies import (
    CAPTION_DAMAGES,
    describe,
    falsify,
    possible_lies,
    truth_table,
    wrongness,
)

CHAIR = Scene(0, "chair", "blue", "yellow", "green")
SCENES = [
    CHAIR,
    Scene(1, "mug", "red"),
    Scene(2, "chair", "blue"),
    Scene(3, "car", "green", "red"),
]


def test_a_true_description_is_true():
    for scene in SCENES:
        for seed in range(10):
            assert wrongness(describe(scene, np.random.default_rng(seed)), scene) == 0


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("family", 0.6), ("colour", 0.4), ("part", 0.25), ("companion", 0.25), ("swap", 0.65)],
)
def test_a_lie_is_as_wrong_as_its_kind_says(kind, expected):
    true = spec_of("chair", "blue", "yellow", "green")
    for seed in range(20):
        lie = falsify(true, kind, np.random.default_rng(seed))
        assert wrongness(lie, CHAIR) == pytest.approx(expected)
        for word in (lie.family, lie.colour, lie.part_colour, lie.companion_colour):
            assert str(word) in lie.prompt


def test_a_swap_exchanges_the_bodys_colour_with_the_parts_or_the_companions():
    true = spec_of("chair", "blue", "yellow", "green")
    lies = {
        (lie.colour, lie.part_colour, lie.companion_colour)
        for lie in (falsify(true, "swap", np.random.default_rng(seed)) for seed in range(20))
    }
    assert lies == {("yellow", "blue", "green"), ("green", "yellow", "blue")}


def test_lies_about_what_is_not_mentioned_are_about_the_colour():
    true = spec_of("chair", "blue")
    assert possible_lies(true) == ["family", "colour"]
    for kind in ("part", "companion", "swap"):
        assert wrongness(falsify(true, kind, np.random.default_rng(0)), CHAIR) == pytest.approx(0.4)


def test_a_wooden_part_does_not_swap():
    assert possible_lies(spec_of("chair", "blue", "wooden")) == ["family", "colour", "part"]


def test_any_lie_is_one_of_the_possible_ones():
    true = spec_of("chair", "blue", "yellow", "green")
    found = {
        round(wrongness(falsify(true, "any", np.random.default_rng(seed)), CHAIR), 2) for seed in range(40)
    }
    assert found == {0.6, 0.4, 0.25, 0.65}


def test_another_family_has_a_companion_where_one_is_named():
    true = spec_of("mug", "red", None, "blue")
    for seed in range(30):
        assert " blue " in falsify(true, "family", np.random.default_rng(seed)).prompt


@pytest.mark.parametrize("kind", ["family", "colour", "part", "companion"])
def test_lies_never_use_held_out_combinations(kind):
    lies = [
        falsify(describe(scene, np.random.default_rng(seed)), kind, np.random.default_rng(seed))
        for seed in range(100)
        for scene in SCENES
        if not is_held_out(scene.family, scene.colour, scene.part_colour, scene.companion_colour)
    ]
    assert lies
    assert not any(is_held_out(lie.family, lie.colour, lie.part_colour, lie.companion_colour) for lie in lies)


@pytest.mark.parametrize("kind", CAPTION_DAMAGES)
def test_lies_about_a_held_out_combination_come_to_an_end(kind):
    family, colour = sorted(HELD_OUT_PAIRS)[0]
    part = next(name for name in COLOURS if name != colour)
    lie = falsify(spec_of(family, colour, part), kind, np.random.default_rng(0))
    assert wrongness(lie, Scene(0, family, colour, part)) > 0
    family, companion = sorted(HELD_OUT_RELATIONS)[0]
    colour = next(name for name in COLOURS if name != companion)
    lie = falsify(spec_of(family, colour, None, companion), kind, np.random.default_rng(0))
    assert wrongness(lie, Scene(0, family, colour, None, companion)) > 0


def test_the_truth_table_knows_every_scene_a_caption_fits():
    specs = [
        spec_of("chair", "blue"),
        spec_of("chair", "blue", "yellow"),
        spec_of("mug", "blue"),
        spec_of("chair", "blue", None, "green"),
        spec_of("chair", "blue", None, "red"),
    ]
    table = truth_table(specs, SCENES)
    assert table.tolist() == [
        [True, True, False, True, False], [False] * 5, [True, False, False, False, False], [False] * 5,
    ]  # fmt: skip
    assert table.tolist() == [[wrongness(spec, scene) == 0 for spec in specs] for scene in SCENES]
