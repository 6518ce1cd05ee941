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
        assert 0 < (half - exact).abs().max() < 0.02


def test_quick_gelu_of_an_architecture_is_kept(tiny_open_clip, quick_twin, tmp_path, pictures):
    torch.save(tiny_open_clip.state_dict(), tmp_path / "x.pt")
    scores = load_open_clip_score(tmp_path / "x.pt", architecture="ViT-tiny-8-quickgelu")(
        pictures, PROMPTS
    ).scores
    pixels = prepare_images(pictures, 32, OPENAI_MEAN, OPENAI_STD)
    assert torch.allclose(scores, open_clips_cosine(quick_twin, pixels), atol=1e-6)
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


@pytest.fixture
def quick_twin(tiny_open_clip, monkeypatch):
    """The tiny architecture with QuickGELU, as open_clip names it, over the same weights."""
    config = open_clip.get_model_config("ViT-tiny-8") | {"quick_gelu": True}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-tiny-8-quickgelu", config)
    model = open_clip.create_model("ViT-tiny-8-quickgelu").eval()
    model.load_state_dict(tiny_open_clip.state_dict())
    return model


CONSTANTS = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(16)}


@pytest.mark.parametrize(
    ("name", "constants", "is_quick", "warns"),
    [
        ("ViT-tiny-8-quickgelu.pt", {}, True, False),
        ("ViT-tiny-8.pt", CONSTANTS, True, False),  # OpenAI's own state dict
        ("ViT-tiny-8__openai.pt", {}, True, False),
        ("ViT-tiny-8__laion.pt", {}, False, False),
        ("ViT-tiny-8__mine.pt", {}, False, True),
        ("ViT-tiny-8.pt", {}, False, True),
    ],
)
def test_quick_gelu_is_what_the_file_says_and_is_asked_for_where_it_says_nothing(
    tiny_open_clip, quick_twin, tmp_path, pictures, monkeypatch, caplog, name, constants, is_quick, warns
):
    tags = {"openai": {"quick_gelu": True}, "laion": {"quick_gelu": False, "mean": None}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "ViT-tiny-8", tags)
    torch.save({**tiny_open_clip.state_dict(), **constants}, tmp_path / name)
    scorer = load_open_clip_score(tmp_path / name)
    scores = scorer(pictures, PROMPTS).scores
    pixels = prepare_images(pictures, 32, OPENAI_MEAN, OPENAI_STD)
    quick, plain = (open_clips_cosine(model, pixels) for model in (quick_twin, tiny_open_clip))
    assert float((quick - plain).abs().max()) > 1e-3
    assert torch.allclose(scores, quick if is_quick else plain, atol=1e-6)
    words = f"Rename it to ViT-tiny-8-quickgelu{'.pt'} if the weights are OpenAI's"
    assert (words in caplog.text) is warns
    assert (len(scorer.notices), words in "".join(scorer.notices)) == (warns, warns)


def test_an_architecture_without_a_twin_and_a_named_one_ask_nothing(checkpoint, tiny_architecture, caplog):
    path = checkpoint.rename(checkpoint.with_name("ViT-tiny-8.pt"))
    load_open_clip_score(path)
    load_open_clip_score(path, "hpsv2", tiny_architecture, "pad")
    assert "GELU" not in caplog.text


def test_open_clips_published_weights_bring_their_pixel_values(
    tmp_path, tiny_open_clip, monkeypatch, pictures
):
    half = (0.5, 0.5, 0.5)
    monkeypatch.setitem(
        open_clip.pretrained._PRETRAINED, "ViT-tiny-8", {"laion2b": {"mean": half, "std": half}}
    )
    torch.save(tiny_open_clip.state_dict(), tmp_path / "ViT-tiny-8__laion2b.pt")
    scores = load_open_clip_score(tmp_path / "ViT-tiny-8__laion2b.pt")(pictures, PROMPTS).scores
    expected = open_clips_cosine(tiny_open_clip, prepare_images(pictures, 32, half, half))
    assert torch.allclose(scores, expected, atol=1e-6)


def test_a_repository_as_downloaded_says_its_architecture_and_values(quick_twin, tmp_path, pictures, caplog):
    folder, half = tmp_path / "clip_score", (0.5, 0.5, 0.5)
    folder.mkdir()
    values = {"mean": half, "std": half, "interpolation": "bicubic", "resize_mode": "longest"}
    facts = {"model_cfg": open_clip.get_model_config("ViT-tiny-8-quickgelu"), "preprocess_cfg": values}
    (folder / "open_clip_config.json").write_text(json.dumps(facts))
    torch.save(quick_twin.state_dict(), folder / "open_clip_pytorch_model.bin")
    scores = load_open_clip_score(folder)(pictures[:, :, 10:30], PROMPTS).scores
    pixels = prepare_images(pictures[:, :, 10:30], 32, half, half, fit="pad")
    assert torch.allclose(scores, open_clips_cosine(quick_twin, pixels), atol=1e-6)
    assert "GELU" not in caplog.text


def test_openais_published_archive_is_refused_by_name(tmp_path):
    path = tmp_path / "ViT-L-14.pt"
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), str(path))
    with pytest.raises(ValueError, match="is a TorchScript archive, .* as OpenAI publishes CLIP"):
        load_open_clip_score(path)
