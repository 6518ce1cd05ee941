"""PickScore against transformers' own logits, and its files."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from t2mv_core.rewards.inputs import OPENAI_MEAN, OPENAI_STD, prepare_images
from t2mv_core.rewards.pickscore import load_pickscore
from t2mv_core.text import clip_tokenizer

PROMPTS = ["a red mug", "a blue car with metal wheels", "a red mug", "cat", "dog", "a blue car"]


def test_the_score_is_transformers_logit_without_its_scale(pickscore_folder, tiny_clip, pictures):
    scorer = load_pickscore(pickscore_folder)
    pixels = prepare_images(pictures, 32, OPENAI_MEAN, OPENAI_STD)
    ids = clip_tokenizer(600)(PROMPTS, 16)
    with torch.no_grad():
        logits = tiny_clip(input_ids=ids, pixel_values=pixels).logits_per_image
    expected = logits.diagonal() / tiny_clip.logit_scale.exp()
    result = scorer(pictures, PROMPTS)
    assert torch.allclose(result.scores, expected, atol=1e-6)
    assert (scorer.name, scorer.kind, result.details) == ("pickscore", "view", {})


def test_an_end_token_of_older_configurations_changes_nothing(pickscore_folder, pictures):
    """PickScore's own config.json names end token 2, a relic that newer transformers take at its word."""
    before = load_pickscore(pickscore_folder)(pictures, PROMPTS).scores
    config = json.loads((pickscore_folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 2
    (pickscore_folder / "config.json").write_text(json.dumps(config))
    assert torch.equal(load_pickscore(pickscore_folder)(pictures, PROMPTS).scores, before)


def test_weights_by_torch_save_are_the_same(pickscore_folder, pictures):
    expected = load_pickscore(pickscore_folder)(pictures, PROMPTS).scores
    weights = load_file(pickscore_folder / "model.safetensors")
    (pickscore_folder / "model.safetensors").unlink()
    torch.save(weights, pickscore_folder / "pytorch_model.bin")
    assert torch.equal(load_pickscore(pickscore_folder)(pictures, PROMPTS).scores, expected)


def test_a_wide_picture_loses_its_sides(pickscore_folder, pictures):
    scorer = load_pickscore(pickscore_folder)
    square = pictures[:, :, :32, :32]  # of the scorer's size, so that nothing bleeds in from the sides
    wide = torch.cat([torch.zeros(6, 3, 32, 20), square, torch.ones(6, 3, 32, 20)], dim=3)
    assert torch.allclose(scorer(wide, PROMPTS).scores, scorer(square, PROMPTS).scores, atol=1e-5)


def test_moving_a_scorer_forgets_the_features_of_prompts(pickscore_folder, pictures):
    scorer = load_pickscore(pickscore_folder)
    scorer(pictures, PROMPTS)
    assert len(scorer.cache) == len(set(PROMPTS))
    half = scorer.to("cpu", torch.bfloat16)(pictures, PROMPTS).scores
    assert torch.equal(
        half, load_pickscore(pickscore_folder).to("cpu", torch.bfloat16)(pictures, PROMPTS).scores
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_scores_nearly_the_same(pickscore_folder, pictures, dtype):
    exact = load_pickscore(pickscore_folder)(pictures, PROMPTS).scores
    half = load_pickscore(pickscore_folder).to("cpu", dtype)(pictures, PROMPTS).scores
    assert half.dtype == torch.float32
    assert 0 < (half - exact).abs().max() < 0.02


def test_incomplete_folders_are_refused_in_words(pickscore_folder):
    (pickscore_folder / "model.safetensors").rename(pickscore_folder / "other.safetensors")
    with pytest.raises(
        FileNotFoundError, match="has no weights .looked for model.safetensors, pytorch_model.bin"
    ):
        load_pickscore(pickscore_folder)
    (pickscore_folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="config.json is missing; PickScore is a folder"):
        load_pickscore(pickscore_folder)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not readable"),
        ("[]", "describes a None model"),
        ('{"model_type": "siglip"}', "describes a 'siglip' model, not a 'clip' model"),
    ],
)
def test_configurations_of_something_else_are_refused_in_words(pickscore_folder, text, words):
    (pickscore_folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=words):
        load_pickscore(pickscore_folder)


def test_a_missing_weight_is_named(pickscore_folder):
    path = pickscore_folder / "model.safetensors"
    weights = load_file(path)
    del weights["visual_projection.weight"]
    save_file(weights, path)
    with pytest.raises(ValueError, match="'visual_projection.weight' is missing"):
        load_pickscore(pickscore_folder)
