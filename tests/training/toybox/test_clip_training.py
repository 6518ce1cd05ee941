"""The contrastive loss with several true captions, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from training.toybox.clip_training import contrastive_loss


def test_the_loss_is_that_of_the_hand_computed_case():
    # Picture 0 fits captions 0 and 1, picture 1 fits caption 1; caption 2 is a lie about both.
    logits = torch.tensor([[1.0, 2.0, 0.0], [0.5, 1.5, 3.0]])
    is_true = torch.tensor([[True, True, False], [False, True, False]])
    e = math.exp
    by_picture = [
        -math.log((e(1) + e(2)) / (e(1) + e(2) + e(0))),
        -math.log(e(1.5) / (e(0.5) + e(1.5) + e(3))),
    ]
    by_caption = [-math.log(e(1) / (e(1) + e(0.5))), 0.0]  # caption 1 fits both pictures, caption 2 none
    expected = (sum(by_picture) / 2 + sum(by_caption) / 2) / 2
    assert float(contrastive_loss(logits, is_true)) == pytest.approx(expected, abs=1e-6)


def test_gradients_stay_finite_with_captions_that_fit_nothing():
    logits = torch.randn(3, 6, requires_grad=True)
    contrastive_loss(logits, torch.eye(3, 6, dtype=torch.bool)).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
