"""CLIP score of any open_clip model, HPSv2 among them, against open_clip's own encoders."""

from __future__ import annotations

import json
import shutil

import open_clip
import pytest
import torch

from t2mv_core.rewards.inputs import OPENAI_MEAN, OPENAI_STD, prepare_images
from t2mv_core.rewards.open_clip_score import load_open_clip_score
from t2mv_core.text import clip_tokenizer

PROMPTS = ["a red mug", "a blue car with metal wheels", "a red mug", "cat", "dog", "a blue car"]


def open_clips_cosine(model, pixels):
    with torch.no_grad():
        image = model.encode_image(pixels, normalize=True)
        text = model.encode_text(clip_tokenizer(600)(PROMPTS, 16), normalize=True)
    return (image * text).sum(dim=1)


@pytest.fixture
def checkpoint(tiny_open_clip, tmp_path):
    """As HPSv2 publishes it: the state dict among other things of a training."""
    path = tmp_path / "HPS_v2_compressed.pt"
    torch.save({"epoch": 3, "name": "run", "state_dict": tiny_open_clip.state_dict()}, path)
    return path


def test_the_score_is_the_cosine_of_open_clips_features(
    tiny_open_clip, tiny_architecture, checkpoint, pictures
):
    scorer = load_open_clip_score(checkpoint, architecture=tiny_architecture)
    pixels = prepare_images(pictures, 32, OPENAI_MEAN, OPENAI_STD)
    expected = open_clips_cosine(tiny_open_clip, pixels)
    assert torch.allclose(scorer(pictures, PROMPTS).scores, expected, atol=1e-6)
    assert (scorer.name, scorer.kind) == ("clip_score", "view")


def test_hpsv2_is_the_same_with_black_bars(tiny_open_clip, tiny_architecture, checkpoint, pictures):
    scorer = load_open_clip_score(checkpoint, "hpsv2", tiny_architecture, "pad")
    wide = pictures[:, :, 10:30]
    pixels = prepare_images(wide, 32, OPENAI_MEAN, OPENAI_STD, fit="pad")
    assert torch.allclose(scorer(wide, PROMPTS).scores, open_clips_cosine(tiny_open_clip, pixels), atol=1e-6)
    assert scorer.name == "hpsv2"


def test_half_precision_scores_nearly_the_same(tiny_architecture, checkpoint, pictures):
    exact = load_open_clip_score(checkpoint, architecture=tiny_architecture)(pictures, PROMPTS).scores
    for dtype in (torch.bfloat16, torch.float16):
        half = (
            load_open_clip_score(checkpoint, architecture=tiny_architecture)
            .to("cpu", dtype)(pictures, PROMPTS)
            .scores
        )
        assert (half - exact).abs().max() < 0.02


def test_quick_gelu_of_an_architecture_is_kept(tiny_open_clip, tmp_path, pictures):
    config = open_clip.get_model_config("ViT-tiny-8") | {"quick_gelu": True}
    (tmp_path / "ViT-tiny-8-quickgelu.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "ViT-tiny-8-quickgelu.json")
    torch.save(tiny_open_clip.state_dict(), tmp_path / "x.pt")
    reference = open_clip.create_model("ViT-tiny-8-quickgelu").eval()
    reference.load_state_dict(tiny_open_clip.state_dict())
    scores = load_open_clip_score(tmp_path / "x.pt", architecture="ViT-tiny-8-quickgelu")(
        pictures, PROMPTS
    ).scores
    pixels = prepare_images(pictures, 32, OPENAI_MEAN, OPENAI_STD)
    assert torch.allclose(scores, open_clips_cosine(reference, pixels), atol=1e-6)
    assert not torch.allclose(scores, open_clips_cosine(tiny_open_clip, pixels), atol=1e-4)


def test_the_published_architecture_of_hpsv2_is_refused_a_smaller_checkpoint(checkpoint):
    with pytest.raises(ValueError, match=r"read as ViT-H-14\) does not fit this model: .* is missing"):
        load_open_clip_score(checkpoint, "hpsv2", "ViT-H-14", "pad")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ViT-Z-99", "no architecture 'ViT-Z-99'"),
        ("hf-hub:laion/CLIP-ViT-H-14", "no architecture 'hf-hub:"),
        ("ViT-B-16-SigLIP", "tokenizer of ViT-B-16-SigLIP .* is not CLIP's own"),
        ("coca_ViT-B-32", "captioning model"),
    ],
)
def test_architectures_that_cannot_be_used_are_refused_in_words(checkpoint, name, words):
    with pytest.raises(ValueError, match=words):
        load_open_clip_score(checkpoint, architecture=name)


def test_a_checkpoint_is_found_by_the_name_of_its_architecture(checkpoint, tiny_architecture, tmp_path):
    folder = tmp_path / "clip_score"
    folder.mkdir()
    with pytest.raises(ValueError, match="it holds nothing"):
        load_open_clip_score(folder)
    file = shutil.copy(checkpoint, folder / f"{tiny_architecture}__laion2b{checkpoint.suffix}")
    (folder / "README.md").touch()
    for place in (folder, file):
        assert load_open_clip_score(place).preprocessing.image_px == 32
    (folder / "ViT-L-14.pt").touch()
    with pytest.raises(ValueError, match=r"ViT-L-14.pt, .*\. Name one file in reward.paths"):
        load_open_clip_score(folder)
