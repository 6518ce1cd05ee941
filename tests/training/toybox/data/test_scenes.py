"""Scenes: seeded, balanced between families, and silent about what is held out."""

import dataclasses

import pytest

from training.toybox.data.captions import TRAIN_PROMPTS
from training.toybox.data.companions import floor_of
from training.toybox.data.renderer import render_views
from training.toybox.data.scenes import (
    COLOURS,
    COMPANIONS,
    FAMILIES,
    HELD_OUT_PAIRS,
    HELD_OUT_PARTS,
    HELD_OUT_RELATIONS,
    Scene,
    build_parts,
    is_held_out,
    material_colours,
    sample_scene,
)
from training.toybox.data.shapes import SHAPES


def test_there_are_enough_families_and_colours():
    assert len(FAMILIES) >= 20
    assert len(COLOURS) >= 10
    assert sum(family.is_asymmetric for family in FAMILIES.values()) >= 14


def test_same_seed_gives_the_same_scene_and_another_seed_another():
    assert sample_scene(5) == sample_scene(5)
    assert sample_scene(5).proportions != sample_scene(6).proportions


@pytest.mark.parametrize("name", FAMILIES)
def test_family_builds_known_shapes_and_materials_at_both_ends_of_its_proportions(name):
    ranges = FAMILIES[name].ranges
    for end in (0, 1):
        scene = sample_scene(1, name)
        parts = FAMILIES[name].build({key: bounds[end] for key, bounds in ranges.items()})
        assert {part.shape for part in parts} <= set(SHAPES)
        assert {part.material for part in parts} <= set(material_colours(scene))
        assert any(part.material == "body" for part in parts)


def test_proportions_stay_in_their_ranges_and_are_kept_by_name():
    for seed in range(30):
        scene = sample_scene(seed)
        ranges = FAMILIES[scene.family].ranges
        assert set(scene.proportions) == set(ranges)
        assert all(low <= scene.proportions[name] <= high for name, (low, high) in ranges.items())
        assert build_parts(scene)


def test_part_colour_differs_from_the_main_colour():
    scenes = [sample_scene(seed) for seed in range(200)]
    assert all(scene.part_colour != scene.colour for scene in scenes)
    assert 0.4 < sum(scene.part_colour is not None for scene in scenes) / 200 < 0.7  # drawn with 0.55


def test_companions_stand_in_half_of_the_scenes_that_may_have_one_in_another_colour():
    scenes = [sample_scene(seed) for seed in range(400)]
    possible = [scene for scene in scenes if scene.family in COMPANIONS]
    assert 0.4 < sum(scene.companion_colour is not None for scene in possible) / len(possible) < 0.6
    assert all(scene.companion_colour != scene.colour for scene in scenes)
    assert {scene.family for scene in scenes if scene.companion_colour is not None} == set(COMPANIONS)


def scene_at(name, end, companion_colour="green"):
    """A red object with all proportions at their lower (0) or upper (1) end."""
    proportions = {key: bounds[end] for key, bounds in FAMILIES[name].ranges.items()}
    return Scene(0, name, "red", companion_colour=companion_colour, proportions=proportions)


@pytest.mark.parametrize("end", [0, 1])
@pytest.mark.parametrize("name", COMPANIONS)
def test_companions_fit_the_frame_from_every_side_and_show(name, end):
    azimuths = range(0, 360, 45)
    images, silhouettes = render_views(scene_at(name, end), azimuths)
    assert not silhouettes[:, [0, -1]].any()
    assert not silhouettes[:, :, [0, -1]].any()
    alone, _ = render_views(scene_at(name, end, None), azimuths)
    # At least 2 % of the picture from the front, where none is hidden.
    assert (images[0] != alone[0]).any(axis=-1).mean() > 0.02


@pytest.mark.parametrize("name", COMPANIONS)
def test_a_companion_stands_on_the_objects_floor_or_under_it(name):
    own = build_parts(scene_at(name, 1, None))
    companion = build_parts(scene_at(name, 1))[len(own) :]
    assert {part.material for part in companion} == {"companion"}
    # A plate or rug lies under the floor, a ball or box stands on it; either touches it.
    assert floor_of(companion) == pytest.approx(floor_of(own), abs=0.06)


def test_a_companion_has_its_own_colour_in_the_palette():
    scene = scene_at("mug", 0)
    assert material_colours(scene)["companion"] == COLOURS["green"]
    assert "companion" not in material_colours(dataclasses.replace(scene, companion_colour=None))


def test_training_scenes_are_never_held_out():
    for seed in range(1000):
        scene = sample_scene(seed)
        assert not is_held_out(scene.family, scene.colour, scene.part_colour, scene.companion_colour)


@pytest.mark.parametrize(
    "combination",
    [
        sorted(HELD_OUT_PAIRS)[0],
        sorted(HELD_OUT_PARTS)[0],
        (sorted(HELD_OUT_RELATIONS)[0][0], "red", None, sorted(HELD_OUT_RELATIONS)[0][1]),
    ],
)
def test_each_kind_of_combination_is_held_out(combination):
    assert is_held_out(*combination)


def test_two_relations_of_every_family_with_a_companion_are_held_out_and_test_scenes_have_them():
    assert len(HELD_OUT_RELATIONS) == 2 * len(COMPANIONS)
    assert {family for family, _ in HELD_OUT_RELATIONS} == set(COMPANIONS)
    scenes = [sample_scene(seed, "mug", allow_held_out=True) for seed in range(100)]
    assert any((scene.family, scene.companion_colour) in HELD_OUT_RELATIONS for scene in scenes)


def test_every_family_and_colour_has_held_out_and_training_pairs():
    trained = {(spec.family, spec.colour) for spec in TRAIN_PROMPTS}
    share = len(HELD_OUT_PAIRS) / (len(FAMILIES) * len(COLOURS))
    assert 0.10 <= share <= 0.15
    for position, names in ((0, FAMILIES), (1, COLOURS)):
        assert {pair[position] for pair in HELD_OUT_PAIRS} == set(names)
        assert {pair[position] for pair in trained} == set(names)
    assert not trained & HELD_OUT_PAIRS
    assert {part[:2] for part in HELD_OUT_PARTS} <= trained


def test_held_out_pair_is_refused_in_words_unless_allowed():
    family, colour = sorted(HELD_OUT_PAIRS)[0]
    with pytest.raises(ValueError, match="held out of training; pass allow_held_out=True"):
        sample_scene(0, family, colour)
    assert sample_scene(0, family, colour, allow_held_out=True).colour == colour


def test_unknown_names_are_refused_with_the_allowed_ones():
    with pytest.raises(ValueError, match="unknown family 'mugg'; use one of: mug, "):
        sample_scene(0, "mugg")
    with pytest.raises(ValueError, match="unknown colour 'rde'; use one of: red, "):
        sample_scene(0, "mug", "rde")
