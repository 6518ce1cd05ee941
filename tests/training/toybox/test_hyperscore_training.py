"""The joint-view scorer's loss, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from training.toybox.hyperscore_training import set_loss


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
