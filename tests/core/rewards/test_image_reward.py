"""ImageReward against a plain BLIP written out here from the published names, and its files."""

from __future__ import annotations

import json
import logging
import math
import string

import pytest
import torch
import torch.nn.functional as F

from t2mv_core.rewards.image_reward import load_bert_tokenizer, load_image_reward
from t2mv_core.rewards.inputs import OPENAI_MEAN, OPENAI_STD, prepare_images

WIDTH, LAYERS, TEXT_WIDTH, TEXT_LAYERS, TEXT_HEADS = 64, 2, 16, 2, 2
MED_CONFIG = {"architectures": ["BertModel"], "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu",
              "hidden_dropout_prob": 0.1, "hidden_size": TEXT_WIDTH, "initializer_range": 0.02,
              "intermediate_size": 24, "layer_norm_eps": 1e-12, "max_position_embeddings": 40,
              "model_type": "bert", "num_attention_heads": TEXT_HEADS, "num_hidden_layers": TEXT_LAYERS,
              "pad_token_id": 0, "type_vocab_size": 2, "vocab_size": 70, "encoder_width": 768,
              "add_cross_attention": True}  # fmt: skip
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "red",
    "blue",
    "mug",
    "##s",
    *string.ascii_lowercase,
]
PROMPTS = ["a red mug", "a blue mugs", "a red mug", "Cat!", "a", "blue"]


def linear(weights, name, outputs, inputs, random):
    weights[f"{name}.weight"] = torch.randn(outputs, inputs, generator=random) / math.sqrt(inputs)
    weights[f"{name}.bias"] = 0.3 * torch.randn(outputs, generator=random)


def norm(weights, name, width, random):
    weights[f"{name}.weight"] = 1 + 0.3 * torch.randn(width, generator=random)
    weights[f"{name}.bias"] = 0.3 * torch.randn(width, generator=random)


def published_weights():
    """Random weights under every name of the published file, 32 px pictures in patches of 8."""
    random, weights = torch.Generator().manual_seed(0), {}
    image, text = "blip.visual_encoder", "blip.text_encoder"
    weights[f"{image}.cls_token"] = torch.randn(1, 1, WIDTH, generator=random)
    weights[f"{image}.pos_embed"] = torch.randn(1, 17, WIDTH, generator=random)
    weights[f"{image}.patch_embed.proj.weight"] = 0.1 * torch.randn(WIDTH, 3, 8, 8, generator=random)
    weights[f"{image}.patch_embed.proj.bias"] = torch.randn(WIDTH, generator=random)
    for layer in range(LAYERS):
        block = f"{image}.blocks.{layer}"
        norm(weights, f"{block}.norm1", WIDTH, random)
        norm(weights, f"{block}.norm2", WIDTH, random)
        linear(weights, f"{block}.attn.qkv", 3 * WIDTH, WIDTH, random)
        linear(weights, f"{block}.attn.proj", WIDTH, WIDTH, random)
        linear(weights, f"{block}.mlp.fc1", 4 * WIDTH, WIDTH, random)
        linear(weights, f"{block}.mlp.fc2", WIDTH, 4 * WIDTH, random)
    norm(weights, f"{image}.norm", WIDTH, random)
    weights[f"{text}.embeddings.position_ids"] = torch.arange(40)[None]
    weights[f"{text}.embeddings.word_embeddings.weight"] = torch.randn(70, TEXT_WIDTH, generator=random)
    weights[f"{text}.embeddings.position_embeddings.weight"] = torch.randn(40, TEXT_WIDTH, generator=random)
    norm(weights, f"{text}.embeddings.LayerNorm", TEXT_WIDTH, random)
    for layer in range(TEXT_LAYERS):
        block = f"{text}.encoder.layer.{layer}"
        for attention, inputs in (("attention", TEXT_WIDTH), ("crossattention", WIDTH)):
            linear(weights, f"{block}.{attention}.self.query", TEXT_WIDTH, TEXT_WIDTH, random)
            linear(weights, f"{block}.{attention}.self.key", TEXT_WIDTH, inputs, random)
            linear(weights, f"{block}.{attention}.self.value", TEXT_WIDTH, inputs, random)
            linear(weights, f"{block}.{attention}.output.dense", TEXT_WIDTH, TEXT_WIDTH, random)
            norm(weights, f"{block}.{attention}.output.LayerNorm", TEXT_WIDTH, random)
        linear(weights, f"{block}.intermediate.dense", 24, TEXT_WIDTH, random)
        linear(weights, f"{block}.output.dense", TEXT_WIDTH, 24, random)
        norm(weights, f"{block}.output.LayerNorm", TEXT_WIDTH, random)
    linear(weights, "blip.vision_proj", 8, WIDTH, random)
    linear(weights, "blip.text_proj", 8, TEXT_WIDTH, random)
    widths = (TEXT_WIDTH, 1024, 128, 64, 16, 1)
    for place, (inputs, outputs) in zip((0, 2, 4, 6, 7), zip(widths, widths[1:], strict=False), strict=True):
        linear(weights, f"mlp.layers.{place}", outputs, inputs, random)
    return weights


@pytest.fixture
def weights():
    """Weights by their published names."""
    return published_weights()


@pytest.fixture
def folder(weights, tmp_path):
    """The three files as published."""
    torch.save(weights, tmp_path / "ImageReward.pt")
    (tmp_path / "med_config.json").write_text(json.dumps(MED_CONFIG))
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return tmp_path


class PlainBlip:
    """One picture and one prompt through BLIP, in equations; weights by their published names."""

    def __init__(self, weights):
        self.w = weights

    def linear(self, name, x):
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def norm(self, name, x, eps):
        centred = x - x.mean(dim=-1, keepdim=True)
        scaled = centred / (centred.square().mean(dim=-1, keepdim=True) + eps).sqrt()
        return scaled * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def attend(self, query, key, value, heads, visible=None):
        outputs = []
        for q, k, v in zip(
            query.chunk(heads, dim=1), key.chunk(heads, dim=1), value.chunk(heads, dim=1), strict=True
        ):
            logits = q @ k.T / math.sqrt(q.shape[1])
            if visible is not None:
                logits[:, ~visible] = -math.inf
            outputs.append(logits.softmax(dim=1) @ v)
        return torch.cat(outputs, dim=1)

    def encode_image(self, picture):
        name = "blip.visual_encoder"
        patches = [
            (self.w[f"{name}.patch_embed.proj.weight"] * picture[:, y : y + 8, x : x + 8]).sum(dim=(1, 2, 3))
            + self.w[f"{name}.patch_embed.proj.bias"]
            for y in range(0, 32, 8)
            for x in range(0, 32, 8)
        ]
        hidden = torch.stack([self.w[f"{name}.cls_token"][0, 0], *patches]) + self.w[f"{name}.pos_embed"][0]
        for layer in range(LAYERS):
            block = f"{name}.blocks.{layer}"
            normed = self.norm(f"{block}.norm1", hidden, 1e-6)
            query, key, value = self.linear(f"{block}.attn.qkv", normed).chunk(3, dim=1)
            hidden = hidden + self.linear(f"{block}.attn.proj", self.attend(query, key, value, WIDTH // 64))
            inner = F.gelu(self.linear(f"{block}.mlp.fc1", self.norm(f"{block}.norm2", hidden, 1e-6)))
            hidden = hidden + self.linear(f"{block}.mlp.fc2", inner)
        return self.norm(f"{name}.norm", hidden, 1e-6)

    def encode_pair(self, ids, patches):
        name = "blip.text_encoder"
        hidden = (
            self.w[f"{name}.embeddings.word_embeddings.weight"][ids]
            + self.w[f"{name}.embeddings.position_embeddings.weight"][: len(ids)]
        )
        hidden = self.norm(f"{name}.embeddings.LayerNorm", hidden, 1e-12)
        for layer in range(TEXT_LAYERS):
            block = f"{name}.encoder.layer.{layer}"
            for attention, source, visible in (
                ("attention", None, ids != 0), ("crossattention", patches, None)
            ):  # fmt: skip
                seen = hidden if source is None else source
                query = self.linear(f"{block}.{attention}.self.query", hidden)
                key = self.linear(f"{block}.{attention}.self.key", seen)
                value = self.linear(f"{block}.{attention}.self.value", seen)
                out = self.attend(query, key, value, TEXT_HEADS, visible)
                out = self.linear(f"{block}.{attention}.output.dense", out)
                hidden = self.norm(f"{block}.{attention}.output.LayerNorm", out + hidden, 1e-12)
            inner = F.gelu(self.linear(f"{block}.intermediate.dense", hidden))
            out = self.linear(f"{block}.output.dense", inner)
            hidden = self.norm(f"{block}.output.LayerNorm", out + hidden, 1e-12)
        return hidden[0]

    def score(self, picture, ids):
        hidden = self.encode_pair(ids, self.encode_image(picture))
        for place in (0, 2, 4, 6, 7):
            hidden = self.linear(f"mlp.layers.{place}", hidden)
        return float((hidden[0] - 0.16717362830052426) / 1.0333394966054072)


def test_the_score_is_that_of_a_plain_blip(folder, weights, pictures):
    pixels = prepare_images(pictures, 32, OPENAI_MEAN, OPENAI_STD)
    ids = load_bert_tokenizer(folder / "vocab.txt")(PROMPTS, 35)
    plain = PlainBlip(weights)
    expected = torch.tensor([plain.score(*pair) for pair in zip(pixels, ids, strict=True)])
    scorer = load_image_reward(folder)
    result = scorer(pictures, PROMPTS)
    assert torch.allclose(result.scores, expected, atol=1e-5)
    assert (scorer.name, scorer.kind, result.details) == ("image_reward", "view", {})
    assert expected.std() > 1e-3  # pictures and prompts make a difference


def test_a_wide_picture_loses_its_sides(folder, pictures):
    scorer = load_image_reward(folder)
    square = pictures[:, :, :32, :32]  # of the scorer's size, so that nothing bleeds in from the sides
    wide = torch.cat([torch.zeros(6, 3, 32, 20), square, torch.ones(6, 3, 32, 20)], dim=3)
    assert torch.allclose(scorer(wide, PROMPTS).scores, scorer(square, PROMPTS).scores, atol=1e-5)


def test_the_image_encoders_norms_are_blips(folder):
    """1e-6 in the image encoder, not the 1e-5 that transformers takes where nothing is said."""
    encoder = load_image_reward(folder).model.image_encoder
    norms = {module.eps for module in encoder.modules() if isinstance(module, torch.nn.LayerNorm)}
    assert norms == {1e-6}


def test_the_small_head_stays_in_single_precision(folder):
    network = load_image_reward(folder).to("cpu", torch.float16).model
    assert {p.dtype for p in network.mlp.parameters()} == {torch.float32}
    assert {p.dtype for p in network.text_encoder.parameters()} == {torch.float16}


def test_scores_do_not_depend_on_the_chunks(folder, pictures, monkeypatch):
    scorer = load_image_reward(folder)
    together = scorer(pictures, PROMPTS).scores
    monkeypatch.setattr("t2mv_core.rewards.inputs.CHUNK_BYTES", 1)
    assert torch.allclose(scorer(pictures, PROMPTS).scores, together, atol=1e-6)


def test_half_precision_scores_nearly_the_same(folder, pictures):
    exact = load_image_reward(folder)(pictures, PROMPTS).scores
    for dtype in (torch.bfloat16, torch.float16):
        half = load_image_reward(folder).to("cpu", dtype)(pictures, PROMPTS).scores
        assert 0 < (half - exact).abs().max() < 0.1


def test_a_prompt_of_more_than_35_tokens_is_cut_with_a_warning(folder, pictures, caplog):
    scorer = load_image_reward(folder)
    with caplog.at_level(logging.WARNING):
        long, cut = scorer(pictures[:2], ["a " * 50, "a " * 33]).scores  # 33 words, start and end
        scorer(pictures[:1], ["a " * 50])
    assert f"image_reward reads 33 tokens of a prompt; it does not read “{'a ' * 17}".rstrip() in caplog.text
    assert len(caplog.records) == 1
    assert float(scorer(pictures[:1], ["a " * 33]).scores) == pytest.approx(float(long), abs=1e-6)
    assert float(cut) != float(long)  # another picture


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("blip.visual_encoder.pos_embed"), "'blip.visual_encoder.pos_embed' is missing"),
        (
            lambda w: w.pop("blip.visual_encoder.blocks.1.attn.qkv.bias"),
            "'blip.visual_encoder.blocks.1.attn.qkv.bias' is missing",
        ),
    ],
)
def test_the_first_wrong_weight_is_named_as_in_the_file(folder, weights, change, words):
    change(weights)
    torch.save(weights, folder / "ImageReward.pt")
    with pytest.raises(ValueError, match=words):
        load_image_reward(folder)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ImageReward.pt", "has no weights .looked for ImageReward.pt"),
        ("med_config.json", "get it from https://huggingface.co/zai-org/ImageReward"),
        ("vocab.txt", "get vocab.txt from https://huggingface.co/google-bert/bert-base-uncased"),
    ],
)
def test_a_missing_file_is_named_with_its_address(folder, name, words):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=words):
        load_image_reward(folder)


def test_damaged_side_files_are_refused_in_words(folder):
    (folder / "med_config.json").write_text('{"hidden_size": 16}')
    with pytest.raises(ValueError, match="lacks 'vocab_size', a size of the text encoder"):
        load_image_reward(folder)
    (folder / "vocab.txt").write_text("hello\nworld\n")
    with pytest.raises(ValueError, match="is not BERT's vocabulary"):
        load_image_reward(folder)


def test_unread_words_are_named_whole_and_as_they_are_written(folder):
    tokenizer = load_bert_tokenizer(folder / "vocab.txt")  # pieces: a, red, mug, ##s, a, xyzw, !
    text = "A réd mugs a  Xyzw! "
    assert tokenizer.unread_words(text, 9) == ""
    assert tokenizer.unread_words(text, 7) == "Xyzw!"
    assert tokenizer.unread_words(text, 5) == "mugs a  Xyzw!"
    assert tokenizer([text], 9).shape == (1, 9)  # cut again where it is asked for
    assert tokenizer([text], 5)[0, -1] == WORDS.index("[SEP]")


def test_tokens_are_berts(folder):
    """[CLS] words [SEP] padding; longest known pieces, lower case, no accents, unknown words as one mark."""
    ids = load_bert_tokenizer(folder / "vocab.txt")(["A réd mugs", "xyzw !"], 8)
    place = {word: index for index, word in enumerate(WORDS)}
    expected = ["[CLS]", "a", "red", "mug", "##s", "[SEP]", "[PAD]", "[PAD]"]
    assert ids[0].tolist() == [place[word] for word in expected]
    assert ids[1].tolist() == [place[word] for word in ["[CLS]", "[UNK]", "[UNK]", "[SEP]", *["[PAD]"] * 4]]
