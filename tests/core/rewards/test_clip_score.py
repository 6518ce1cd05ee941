"""CLIP score against open_clip's own encoders, and its files."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch

from t2mv_core.formats.safetensors_io import write_safetensors
from t2mv_core.rewards.clip_score import ARCHITECTURE, ClipScore, ClipSize, load_clip_score
from t2mv_core.rewards.inputs import OPENAI_MEAN, OPENAI_STD
from t2mv_core.text import clip_tokenizer

SIZE = ClipSize(
    embed_dim=12, image_px=16, patch_px=8, vision_width=16, vision_layers=2, vision_heads=2,
    vocab_size=600, context_length=16, text_width=16, text_layers=2, text_heads=2,
)  # fmt: skip
PROMPTS = ["a red mug", "a blue car", "a red mug"]


@pytest.fixture
def scorer():
    torch.manual_seed(0)
    return ClipScore(SIZE.build(), clip_tokenizer(600), SIZE.preprocessing())


def test_the_score_is_the_cosine_of_open_clips_features(scorer):
    images = torch.rand(3, 3, 16, 16)
    normalised = (images - torch.tensor(OPENAI_MEAN).view(3, 1, 1)) / torch.tensor(OPENAI_STD).view(3, 1, 1)
    image_features = scorer.model.encode_image(normalised)
    text_features = scorer.model.encode_text(clip_tokenizer(600)(PROMPTS, 16))
    expected = torch.nn.functional.cosine_similarity(image_features, text_features)
    result = scorer(images, PROMPTS)
    assert torch.allclose(result.scores, expected, atol=1e-5)
    assert result.details == {}


def test_scores_do_not_depend_on_the_chunks(scorer, monkeypatch):
    images = torch.rand(3, 3, 24, 20)
    together = scorer(images, PROMPTS).scores
    monkeypatch.setattr("t2mv_core.rewards.inputs.CHUNK_BYTES", 1)
    assert torch.allclose(scorer(images, PROMPTS).scores, together, atol=1e-6)


def test_each_prompt_is_encoded_once(scorer, monkeypatch):
    encoded = []
    encode = scorer.model.encode_text
    monkeypatch.setattr(
        scorer.model, "encode_text", lambda tokens: encoded.append(len(tokens)) or encode(tokens)
    )
    for _ in range(2):
        scorer(torch.rand(3, 3, 16, 16), PROMPTS)
    assert encoded == [2]


def test_scores_can_take_part_in_a_loss(scorer):
    weight = torch.ones(3, requires_grad=True)
    scores = scorer(torch.rand(3, 3, 16, 16), PROMPTS).scores
    (scores * weight).sum().backward()
    assert torch.equal(weight.grad, scores)


def save_clip(path, weights, config=None):
    """Write a weights file the way the toybox recipe does."""
    config = asdict(SIZE) if config is None else config
    write_safetensors(weights, path, {"architecture": ARCHITECTURE, "config": json.dumps(config)})


def test_a_saved_scorer_loads_and_scores_the_same(scorer, tmp_path):
    save_clip(tmp_path / "clip.safetensors", scorer.model.state_dict())
    loaded = load_clip_score(tmp_path / "clip.safetensors", "toybox_clip")
    images = torch.rand(3, 3, 16, 16)
    assert torch.equal(loaded(images, PROMPTS).scores, scorer(images, PROMPTS).scores)
    assert (loaded.name, loaded.kind) == ("toybox_clip", "view")


def test_files_that_are_something_else_are_refused(scorer, tmp_path):
    path = tmp_path / "clip.safetensors"
    with pytest.raises(FileNotFoundError, match="no weights file"):
        load_clip_score(path, "clip")
    path.write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match="damaged or not a safetensors file"):
        load_clip_score(path, "clip")
    write_safetensors({"x": torch.zeros(1)}, path, {})
    with pytest.raises(ValueError, match="no named architecture, not open_clip"):
        load_clip_score(path, "clip")
    weights = dict(scorer.model.state_dict())
    del weights["visual.proj"]
    save_clip(path, weights)
    with pytest.raises(ValueError, match="'visual.proj' is missing"):
        load_clip_score(path, "clip")
    save_clip(path, weights, {"embed_dims": 12})
    with pytest.raises(ValueError, match="'embed_dims' is unknown"):
        load_clip_score(path, "clip")
