"""Known damage: what is said to be wrong is wrong, and by as much as the targets say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from t2mv_core.toybox.prompt_lists import PromptSpec
from training.toybox.data.dataset import Dataset
from training.toybox.data.scenes import COLOURS, HELD_OUT_PAIRS, Scene, is_held_out
from training.toybox.rewards.reward_data import (
    TEXTURE_DAMAGES,
    VIEW_DAMAGES,
    SetMaker,
    damage_texture,
    describe,
    falsify,
    subset,
    truth_table,
    wrongness,
)

CHAIR = Scene(0, "chair", "blue", "yellow")
SCENES = [
    CHAIR,
    Scene(1, "mug", "red", None),
    Scene(2, "chair", "blue", None),
    Scene(3, "car", "green", "red"),
]


@pytest.fixture
def dataset():
    """Four scenes whose view v is a plain square of brightness 20·scene + 5·v + 40 on a grey ground."""
    images = np.full((4, 6, 16, 16, 3), 128, np.uint8)
    shapes = np.zeros((4, 6, 16, 16), np.bool_)
    shapes[:, :, 4:12, 4:12] = True
    for scene in range(4):
        for view in range(6):
            images[scene, view, 4:12, 4:12] = 20 * scene + 5 * view + 40
    return Dataset(images, shapes, SCENES, (0, 45, 90, 180, 270, 315))


def test_a_true_description_is_true():
    for scene in SCENES:
        for seed in range(10):
            assert wrongness(describe(scene, np.random.default_rng(seed)), scene) == 0


@pytest.mark.parametrize(
    ("kind", "expected"), [("family", 0.6), ("colour", 0.4), ("part", 0.25), ("swap", 0.65)]
)
def test_a_lie_is_as_wrong_as_its_kind_says(kind, expected):
    true = PromptSpec("", "chair", "blue", "yellow")
    for seed in range(20):
        lie = falsify(true, kind, np.random.default_rng(seed))
        assert wrongness(lie, CHAIR) == pytest.approx(expected)
        assert lie.family in lie.prompt
        assert lie.colour in lie.prompt


def test_lies_about_a_part_that_is_not_mentioned_are_about_the_colour():
    true = PromptSpec("", "chair", "blue")
    assert wrongness(falsify(true, "part", np.random.default_rng(0)), CHAIR) == pytest.approx(0.4)


def test_lies_never_use_held_out_combinations():
    lies = [
        falsify(describe(s, np.random.default_rng(i)), "colour", np.random.default_rng(i))
        for i in range(100)
        for s in SCENES
    ]
    assert not any(is_held_out(lie.family, lie.colour, lie.part_colour) for lie in lies)


@pytest.mark.parametrize("kind", ["family", "colour", "part", "swap"])
def test_lies_about_a_held_out_combination_come_to_an_end(kind):
    family, colour = sorted(HELD_OUT_PAIRS)[0]
    part = next(name for name in COLOURS if name != colour)
    lie = falsify(PromptSpec("", family, colour, part), kind, np.random.default_rng(0))
    assert wrongness(lie, Scene(0, family, colour, part)) > 0


def test_the_truth_table_knows_every_scene_a_caption_fits():
    specs = [
        PromptSpec("", "chair", "blue"),
        PromptSpec("", "chair", "blue", "yellow"),
        PromptSpec("", "mug", "blue"),
    ]
    assert truth_table(specs, SCENES).tolist() == [
        [True, True, False], [False, False, False], [True, False, False], [False, False, False],
    ]  # fmt: skip


def test_undamaged_sets_have_full_marks(dataset):
    made = SetMaker(dataset).make(0, np.random.default_rng(0), (None, None, None))
    assert made.targets == pytest.approx((1, 1, 1, 1))
    assert torch.equal(made.views, torch.from_numpy(dataset.images[0]).permute(0, 3, 1, 2).float() / 255)
    assert made.damage == ()


def test_a_rotated_set_is_marked_by_its_visible_change(dataset):
    # Rolled by r: r views change by 5·(6 − r) grey levels of 255, 6 − r views by 5·r; 0.2 is a full change.
    made = SetMaker(dataset).make(0, np.random.default_rng(1), (None, "rotate", None))
    grey = made.views[:, 0, 8, 8] * 255
    shift = int(torch.argmin(grey))
    change = (shift * 5 * (6 - shift) + (6 - shift) * 5 * shift) / 6 / 255 / 0.2
    assert made.targets[1] == pytest.approx(1 - change**0.5, abs=1e-5)
    assert made.targets[0] == made.targets[2] == 1


@pytest.mark.parametrize("kind", VIEW_DAMAGES)
def test_view_damage_lowers_geometry_only_by_what_shows(dataset, kind):
    maker = SetMaker(dataset)
    for seed in range(5):
        made = maker.make(0, np.random.default_rng(seed), (None, kind, None))
        changed = (
            made.views - maker.make(0, np.random.default_rng(0), (None, None, None)).views
        ).abs().amax() > 0
        assert (made.targets[1] < 1) == bool(changed)
        assert made.targets[2] == 1
        assert (made.targets[0] < 1) == (kind == "foreign")


def test_proportion_damage_takes_views_of_the_same_family_and_colour(dataset):
    made = SetMaker(dataset).make(0, np.random.default_rng(0), (None, "proportion", None))
    grey = (made.views[:, 0, 8, 8] * 255).round().long()
    foreign = grey != torch.arange(6) * 5 + 40
    assert foreign.any()
    assert ((grey - torch.arange(6) * 5 - 40)[foreign] == 40).all()  # scene 2, the other blue chair


@pytest.mark.parametrize("kind", TEXTURE_DAMAGES)
def test_texture_damage_changes_the_views_by_its_strength(kind):
    views = torch.rand(6, 3, 16, 16)
    results = [damage_texture(views, kind, np.random.default_rng(seed)) for seed in range(6)]
    changes = [float((damaged - views).abs().mean()) for damaged, _ in results]
    targets = [target for _, target in results]
    assert all(0 <= target < 1 for target in targets)
    assert np.argsort(changes).tolist() == np.argsort(targets)[::-1].tolist()


def test_equal_generators_make_equal_sets(dataset):
    first, second = (SetMaker(dataset).make(0, np.random.default_rng(5)) for _ in range(2))
    assert torch.equal(first.views, second.views)
    assert (first.prompt, first.targets) == (second.prompt, second.targets)


def test_a_subset_keeps_scenes_and_pictures_together(dataset):
    part = subset(dataset, np.zeros((2, 6, 16, 16, 3), np.uint8))
    assert part.scenes == SCENES[:2]
    assert len(part.silhouettes) == 2
    assert part.images.max() == 0
