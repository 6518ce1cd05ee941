"""The joint-view scorer's start: the single-view scorer's knowledge, and a target network that is alive."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from t2mv_core.rewards.hyperscore_network import HyperScore, run_target
from t2mv_core.text import clip_tokenizer
from training.toybox.model import VOCAB_SIZE
from training.toybox.rewards.clip_training import TOYBOX_CLIP
from training.toybox.rewards.hyperscore_start import (
    START_ACTIVATION,
    START_SCORE,
    START_SPREAD,
    TEXT_OFFSET,
    calibrate,
    start_from_clip,
)
from training.toybox.rewards.hyperscore_training import TOYBOX_HYPERSCORE, draw_sets
from training.toybox.rewards.reward_data import SetMaker


@pytest.fixture
def model(clip):
    torch.manual_seed(1)
    network = HyperScore(TOYBOX_HYPERSCORE, clip_tokenizer(VOCAB_SIZE))
    start_from_clip(network, clip.state_dict(), torch.full((6, TOYBOX_CLIP.vision_width), 0.5))
    return network


@pytest.fixture(scope="module")
def batch(rendered):
    return draw_sets(SetMaker(rendered), 8, np.random.default_rng(0))


def test_every_text_feature_is_shifted_by_the_same_amount(model, clip, batch):
    with torch.no_grad():
        shifted = model.encode_prompts(batch.tokens)[0]
        plain = clip.encode_text(batch.tokens)
    assert torch.allclose(shifted - plain, torch.full_like(plain, TEXT_OFFSET), atol=1e-4)


def test_the_product_with_the_shifted_text_is_clips_similarity_without_the_common_part(model, clip, batch):
    """Σ (p - mean p) (t + c) = Σ p t - mean p · Σ t, with p through CLIP's own projection."""
    with torch.no_grad():
        centred, end = model.encode_views(batch.views).mean(dim=1), model.encode_prompts(batch.tokens)[0]
        model.clip_model.visual.proj.copy_(clip.visual.proj)
        patches, text = model.encode_views(batch.views).mean(dim=1), clip.encode_text(batch.tokens)
    expected = (patches * text).sum(dim=1) - patches.mean(dim=1) * text.sum(dim=1)
    assert torch.allclose((centred * end).sum(dim=1), expected, atol=1e-3)


def test_the_views_embeddings_are_taken_over(model):
    assert torch.equal(model.view_embedding, torch.full_like(model.view_embedding, 0.5))


def test_without_view_embeddings_the_mean_patch_is_clips_image_feature(model, clip, batch):
    """The premise of decision 0003: CLIP pools the patches, so training it trains what HyperScore reads."""
    with torch.no_grad():
        model.view_embedding.zero_()
        model.clip_model.visual.proj.copy_(clip.visual.proj)
        patches = model.encode_views(batch.views).unflatten(1, (6, -1)).mean(dim=2)
        features = clip.encode_image(batch.views.flatten(0, 1)).unflatten(0, (-1, 6))
    assert torch.allclose(patches, features, atol=1e-5)


def test_every_generated_layer_starts_alive_and_with_unit_spread(model, batch):
    calibrate(model, batch.views, batch.tokens)
    with torch.no_grad():
        end, text = model.encode_prompts(batch.tokens)
        condition, layers = model.encode_conditions()
        quality = model.fc_quality(model.fuse(model.encode_views(batch.views), end, text, condition))
        for count in (1, 2, 3):
            hidden = run_target(quality, layers[:count])
            assert float(hidden.std(dim=0).mean()) == pytest.approx(1.0, abs=0.02)
            assert torch.allclose(
                hidden.mean(dim=(0, 1)), torch.full_like(hidden[0, 0], START_ACTIVATION), atol=0.02
            )
            assert (hidden.amax(dim=0) > 0).all()  # no unit is silent on all sets
        scores = run_target(quality, layers)[..., 0]
    assert float(scores.mean()) == pytest.approx(START_SCORE, abs=0.02)
    assert float(scores.std(dim=0).mean()) == pytest.approx(START_SPREAD, rel=0.05)
