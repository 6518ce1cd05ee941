"""The single-view scorer's training: its loss by hand, and what the vision tower is told."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from training.toybox.rewards.clip_training import NO_CLAIM, UNCLAIMED, ViewTasks, contrastive_loss, draw_batch


@pytest.fixture
def tasks(clip):
    torch.manual_seed(1)
    return ViewTasks(clip.visual, num_views=6)


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


def test_claims_are_as_wrong_as_the_pictures_show(rendered):
    batch = draw_batch(rendered, 12, np.random.default_rng(3))
    is_claimed = batch.claims != NO_CLAIM
    assert int(is_claimed.sum()) == 12 - int(UNCLAIMED * 12)
    rightly = is_claimed & (batch.claims == batch.views)
    assert rightly.any()
    assert (batch.changes[rightly] == 0).all()
    wrongly = is_claimed & (batch.claims != batch.views)
    assert wrongly.any()
    assert (batch.changes[wrongly] > 0).all()  # light comes from one side: no view equals another
    assert (batch.changes <= 1).all()
    assert batch.is_true.shape == (12, 24)
    assert batch.is_true.diagonal().all()  # the first n descriptions are true
    assert not batch.is_true[:, 12:].diagonal().any()  # the others are not


def test_no_claim_leaves_the_scorer_as_it_is_and_a_claim_does_not(clip, tasks, rendered):
    batch = draw_batch(rendered, 4, np.random.default_rng(0))
    with torch.no_grad():
        plain = clip.encode_image(batch.pixels)
        with tasks.claiming(torch.full((4,), NO_CLAIM)):
            assert torch.equal(clip.encode_image(batch.pixels), plain)
        with tasks.claiming(torch.tensor([NO_CLAIM, 0, 1, 2])):
            claimed = clip.encode_image(batch.pixels)
        assert torch.equal(clip.encode_image(batch.pixels), plain)  # nothing stays behind
    assert torch.allclose(claimed[0], plain[0], atol=1e-6)
    assert ((claimed - plain).abs().amax(dim=1)[1:] > 1e-4).all()


def test_the_tasks_reach_the_directions_embeddings(clip, tasks, rendered):
    batch = draw_batch(rendered, 8, np.random.default_rng(0))
    with tasks.claiming(batch.claims):
        clip.encode_image(batch.pixels)
    tasks.loss(batch).backward()
    gradient = tasks.view_embedding.grad
    assert gradient is not None
    used = sorted(set(batch.claims.tolist()) - {NO_CLAIM})
    assert (gradient[used].abs().amax(dim=1) > 0).all()
    assert tasks.facts.weight.grad is not None
    assert not any("visual" in name for name, _ in tasks.named_parameters())
