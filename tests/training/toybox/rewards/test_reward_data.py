"""Known damage: sets of views are damaged by as much as their targets say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.toybox.data.dataset import Dataset
from training.toybox.data.scenes import FAMILIES, Scene
from training.toybox.rewards.reward_data import (
    ATTACKS,
    CONTRASTS,
    NUM_FACTS,
    TEXTURE_DAMAGES,
    VIEW_CHANCES,
    VIEW_DAMAGES,
    SetMaker,
    damage_texture,
    other_proportions,
    signed_facts,
    subset,
    view_facts,
)


def _scene(family, colour, part=None, companion=None):
    """A scene with every proportion at the low end of its range."""
    proportions = {name: low for name, (low, _) in FAMILIES[family].ranges.items()}
    return Scene(0, family, colour, part, companion, proportions)


SCENES = [
    _scene("chair", "blue", "yellow"),
    _scene("mug", "red"),
    _scene("chair", "blue"),
    _scene("car", "green", "red"),
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
    clean = maker.make(0, np.random.default_rng(0), (None, None, None))
    for seed in range(5):
        made = maker.make(0, np.random.default_rng(seed), (None, kind, None))
        changed = (made.views - clean.views).abs().amax() > 0
        assert (made.targets[1] < 1) == bool(changed)
        assert made.targets[2] == (kind != "attack_noise")
        assert (made.targets[0] < 1) == (kind in ("foreign", "attack_unrelated", "attack_noise"))


def test_every_view_damage_has_a_chance():
    assert len(VIEW_CHANCES) == len(VIEW_DAMAGES)
    assert min(VIEW_CHANCES) > 0
    assert sum(VIEW_CHANCES) == pytest.approx(1)


def test_alike_damage_takes_views_of_the_same_family_and_colour(dataset):
    made = SetMaker(dataset).make(0, np.random.default_rng(0), (None, "alike", None))
    grey = (made.views[:, 0, 8, 8] * 255).round().long()
    foreign = grey != torch.arange(6) * 5 + 40
    assert foreign.any()
    assert ((grey - torch.arange(6) * 5 - 40)[foreign] == 40).all()  # scene 2, the other blue chair


def test_other_proportions_lie_in_the_other_half_of_each_range():
    other = other_proportions(SCENES[0], np.random.default_rng(0))
    for name, (low, high) in FAMILIES["chair"].ranges.items():
        assert (low + high) / 2 <= other.proportions[name] <= high
    again = other_proportions(other, np.random.default_rng(1))
    assert all(again.proportions[name] < other.proportions[name] for name in again.proportions)
    assert (other.family, other.colour, other.part_colour) == ("chair", "blue", "yellow")


def test_facts_are_widths_and_colours_at_heights(dataset):
    # The square covers the rows 4 to 12 of 16, two of four heights, and half the columns.
    facts = view_facts(dataset.images[0].astype(np.float32) / 255, dataset.silhouettes[0])
    assert facts.shape == (6, NUM_FACTS)
    assert facts[0, :8] == pytest.approx([2 * (width - 0.3) for width in (0, 0, 0.5, 0.5, 0.5, 0.5, 0, 0)])
    colours = facts[0, 8:].reshape(4, 3)
    assert colours[0] == pytest.approx(0, abs=0.01)  # grey ground
    assert colours[1] == pytest.approx(4 * (40 / 255 - 0.5) / 2, abs=0.01)


def test_opposite_views_have_equal_widths(rendered):
    for index in range(len(rendered.scenes)):
        widths = view_facts(rendered.images[index] / np.float32(255), rendered.silhouettes[index])[:, :8]
        assert widths[0] == pytest.approx(widths[3], abs=0.03)  # front and back
        assert widths[2] == pytest.approx(widths[4], abs=0.03)  # right and left


def test_signed_facts_of_equal_views_add_up_to_nothing():
    facts = torch.rand(NUM_FACTS).expand(6, NUM_FACTS)
    signed = signed_facts(facts, torch.arange(6))
    assert signed.shape == (6, len(CONTRASTS) * NUM_FACTS)
    assert torch.equal(signed.sum(dim=0), torch.zeros(len(CONTRASTS) * NUM_FACTS))
    assert torch.equal(signed[0, :NUM_FACTS], facts[0])
    assert torch.equal(signed[3, :NUM_FACTS], -facts[0])


def test_proportion_damage_renders_the_same_colours_anew(rendered):
    index = [scene.family for scene in rendered.scenes].index("chair")
    made = SetMaker(rendered).make(index, np.random.default_rng(0), (None, "proportion", None))
    clean = SetMaker(rendered).make(index, np.random.default_rng(0), (None, None, None))
    is_changed = made.view_changes > 0
    assert 1 <= int(is_changed.sum()) <= 3
    assert (made.facts != clean.facts).any(dim=1).tolist() == is_changed.tolist()
    assert (made.view_changes < 0.9).all()  # the object stays the same


def test_where_pictures_are_not_renders_proportion_damage_is_of_an_alike_object(dataset):
    plain, other = (
        SetMaker(dataset, is_rendered=False).make(0, np.random.default_rng(0), (None, kind, None))
        for kind in ("alike", "proportion")
    )
    assert torch.equal(plain.views, other.views)


def test_attacks_do_to_all_views_what_they_say(rendered):
    maker = SetMaker(rendered)
    clean = maker.make(0, np.random.default_rng(0), (None, None, None)).views
    made = {kind: maker.make(0, np.random.default_rng(0), (None, kind, None)) for kind in ATTACKS}
    assert torch.equal(made["attack_mirror"].views, clean.flip(-1))
    repeated = made["attack_repeat"].views
    assert all(torch.equal(view, repeated[0]) for view in repeated)
    assert any(torch.equal(view, repeated[0]) for view in clean)
    others = [torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 for images in rendered.images[1:]]
    for place, view in enumerate(made["attack_unrelated"].views):
        assert any(torch.equal(view, other[place]) for other in others)
    assert made["attack_noise"].targets == (0, 0, 0, 0)


def test_twins_differ_in_their_views_alone(rendered, monkeypatch):
    monkeypatch.setattr("training.toybox.rewards.reward_data.TWINS", 1.0)
    for seed in range(8):
        first, second = SetMaker(rendered).make_pair(2, np.random.default_rng(seed))
        assert first.prompt == second.prompt
        assert float(first.view_changes.max()) == 0
        assert first.targets[2] == second.targets[2] or "attack_noise" in second.damage
        assert second.targets[1] <= first.targets[1] == 1


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
