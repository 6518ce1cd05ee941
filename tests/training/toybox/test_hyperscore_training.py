"""The joint-view scorer's loss, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from training.toybox.clip_training import TOYBOX_CLIP
from training.toybox.hyperscore_training import _create_model, draw_sets, set_loss, training_loss
from training.toybox.reward_data import SetMaker
from training.toybox.stage import StageConfig


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
