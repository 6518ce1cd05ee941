"""The joint-view scorer's loss, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from training.toybox.rewards.clip_training import TOYBOX_CLIP
from training.toybox.rewards.hyperscore_training import (
    SetBatch,
    ShortCuts,
    _create_model,
    draw_sets,
    set_loss,
    train_hyperscore,
    training_loss,
    twin_loss,
)
from training.toybox.rewards.reward_data import CONTRASTS, NUM_FACTS, SetMaker
from training.toybox.stages.stage import StageConfig


def test_the_loss_is_that_of_the_hand_computed_case():
    # Only the first head differs: targets 1 and 0.5, scores 0.7 and 0.6; the other heads are right.
    targets = torch.tensor([[1.0, 0.2, 0.2, 0.2], [0.5, 0.2, 0.2, 0.2]])
    scores = torch.tensor([[0.7, 0.2, 0.2, 0.2], [0.6, 0.2, 0.2, 0.2]])
    squared = (0.3**2 + 0.1**2) / 8
    ranking = math.log(1 + math.exp(-0.1 / 0.1))  # both orders of the one pair say the same
    assert float(set_loss(scores, targets)) == pytest.approx(squared + 0.3 * 0.1 * ranking, abs=1e-6)


def test_the_wrong_order_costs_more():
    targets = torch.tensor([[1.0] * 4, [0.5] * 4])
    right, wrong = torch.tensor([[0.8] * 4, [0.7] * 4]), torch.tensor([[0.7] * 4, [0.8] * 4])
    assert set_loss(right, targets) < set_loss(wrong, targets)


def test_at_the_start_every_part_that_learns_has_a_gradient(rendered):
    """The first training collapsed: rectifiers died in the generated network, and a constant was left."""
    torch.manual_seed(0)
    clip, maker = TOYBOX_CLIP.build(), SetMaker(rendered)
    model, short_cuts = _create_model(
        StageConfig(quick=True), maker, clip.state_dict(), torch.zeros(6, TOYBOX_CLIP.vision_width)
    )
    training_loss(model, short_cuts, draw_sets(maker, 4, np.random.default_rng(0))).backward()
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert not any(name.startswith(("text_encoder", "clip_model.token_embedding")) for name in learning)
    for part in (
        "clip_model.visual",
        "view_embedding",
        "fc_quality",
        "fc_condition",
        "hypernet",
        "prompt_learner",
    ):
        gradients = [p.grad for name, p in learning.items() if name.startswith(part)]
        assert gradients, part
        assert all(g is not None and bool(g.abs().max() > 0) for g in gradients), part


def test_the_short_cuts_loss_is_that_of_the_hand_computed_case():
    # One set of six views with one patch each, d = 2; only the alignment and the facts answer anything but 0.
    short_cuts = ShortCuts(2)
    for parameter in short_cuts.parameters():
        torch.nn.init.zeros_(parameter)
    torch.nn.init.ones_(short_cuts.alignment.weight)
    torch.nn.init.constant_(short_cuts.facts.bias, 0.5)
    patches, end = torch.tensor([[[0.1, 0.2], [0.3, 0.4]]]).repeat(1, 3, 1), torch.tensor([[1.0, 0.5]])
    damage, targets = torch.full((1, 6, 2), 0.3), torch.tensor([[1.0, 0.7, 0, 0]])
    batch = SetBatch(
        torch.zeros(1, 6, 3, 1, 1), torch.zeros(1, 1), targets, damage, torch.ones(1, 6, NUM_FACTS)
    )
    alignment = 0.2 * 1.0 + 0.3 * 0.5  # of the mean patch (0.2, 0.3)
    contrasts = sum((0.5 - sign) ** 2 for contrast in CONTRASTS for sign in contrast) / 18
    assert float(short_cuts.loss(patches, end, batch).detach()) == pytest.approx(
        0.3**2 + (alignment - 1) ** 2 + 0.7**2 + contrasts
    )


def test_the_order_of_twins_counts_however_small_their_gap():
    # Four sets of two scenes; the first pair is a hair apart, the second has no order.
    targets = torch.tensor([0.90, 0.88, 0.5, 0.5])[:, None].expand(4, 4)
    scores = torch.tensor([0.6, 0.7, 0.1, 0.9])[:, None].expand(4, 4)
    weight = 0.02 / 0.05  # of TWIN_GAP; four heads
    expected = 0.5 * 0.1 * math.log(1 + math.exp(0.1 / 0.1)) * (4 * weight) / (4 * weight)
    assert float(twin_loss(scores, targets)) == pytest.approx(expected, abs=1e-6)


def test_a_views_damage_is_its_change_and_the_sets_texture(rendered):
    rng = np.random.default_rng(1)
    batch = draw_sets(SetMaker(rendered), 6, rng)
    geometry = 1 - batch.view_damage[..., 0].mean(dim=1).sqrt()
    assert torch.allclose(geometry, batch.targets[:, 1], atol=1e-5)
    assert torch.allclose(1 - batch.view_damage[..., 1], batch.targets[:, 2:3].expand(-1, 6), atol=1e-6)
    assert (batch.view_damage > 0).any()


@pytest.mark.slow
def test_training_does_not_collapse_to_a_constant(rendered, tmp_path, monkeypatch):
    monkeypatch.setattr("training.toybox.rewards.hyperscore_training.NUM_UPDATES", 80)
    torch.manual_seed(0)
    clip = TOYBOX_CLIP.build()
    model = train_hyperscore(
        StageConfig(out_dir=tmp_path), [rendered], clip.state_dict(), torch.randn(6, TOYBOX_CLIP.vision_width)
    )
    batch = draw_sets(SetMaker(rendered), 12, np.random.default_rng(5))
    with torch.no_grad():
        spread = model(batch.views, batch.tokens).std(dim=0)
    assert (spread > 0.005).all()  # every head answers what it sees
