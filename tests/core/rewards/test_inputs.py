"""Pictures against PIL and torchvision's transforms; token ids with one warning; features computed once."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from t2mv_core.rewards.composite import OverViews
from t2mv_core.rewards.inputs import (
    CHUNK_BYTES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    OPENAI_MEAN,
    OPENAI_STD,
    TEXT_CHUNK,
    Preprocessing,
    PromptCache,
    PromptTokens,
    describe_unread,
    images_per_chunk,
    prepare_images,
)

PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
PIL_TOLERANCE = 1.2 / 255
"""PIL rounds to 8 bits after either of its two passes, tensors are not rounded: and its weights are 8-bit."""


def photograph(height, width, seed=0):
    """A picture with smooth shades and hard edges in 8 bits: [1, 3, H, W] in [0, 1], and PIL's."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    pixels = np.stack([x, y, (np.hypot(x - 0.4, y - 0.5) < 0.3).astype(float)], axis=-1)
    pixels = np.clip(pixels + 0.2 * random.random(pixels.shape), 0, 1)
    eight_bit = (255 * pixels).round().astype(np.uint8)
    return torch.from_numpy(eight_bit).float().div(255).movedim(-1, 0)[None], Image.fromarray(eight_bit)


def to_tensor(picture):
    return torch.from_numpy(np.array(picture)).float().div(255).movedim(-1, 0)[None]


@pytest.mark.parametrize(("mode", "pil"), [("bicubic", Image.BICUBIC), ("bilinear", Image.BILINEAR)])
@pytest.mark.parametrize("side", [96, 200, 768])
def test_a_square_picture_is_resized_as_pil_does(side, mode, pil):
    images, picture = photograph(side, side)
    expected = to_tensor(picture.resize((224, 224), pil))
    assert (prepare_images(images, 224, *PLAIN, mode) - expected).abs().max() <= PIL_TOLERANCE


@pytest.mark.parametrize(
    "size", [(300, 200), (200, 301), (97, 500), (224, 300), (230, 224), (224, 227), (227, 224), (231, 224)]
)
def test_crop_is_shortest_side_and_middle(size):
    """What CLIP, PickScore and ImageReward publish: resize the shorter side, cut the middle."""
    images, picture = photograph(*size)
    transform = v2.Compose([v2.Resize(224, interpolation=v2.InterpolationMode.BICUBIC), v2.CenterCrop(224)])
    expected = to_tensor(transform(picture))
    assert (prepare_images(images, 224, *PLAIN, fit="crop") - expected).abs().max() <= PIL_TOLERANCE


def test_constants_are_the_published_ones():
    """CLIP's as open_clip has them, ImageNet's as every classifier has them, channel by channel."""
    assert OPENAI_MEAN == open_clip.OPENAI_DATASET_MEAN
    assert OPENAI_STD == open_clip.OPENAI_DATASET_STD
    assert IMAGENET_MEAN == (0.485, 0.456, 0.406)
    assert IMAGENET_STD == (0.229, 0.224, 0.225)


def test_pad_keeps_the_whole_picture_between_black_bars():
    images = torch.ones(1, 3, 40, 80)
    padded = prepare_images(images, 20, *PLAIN, fit="pad")
    assert padded.shape == (1, 3, 20, 20)
    assert torch.allclose(padded[:, :, 5:15], torch.ones(1, 3, 10, 20))
    assert (padded[:, :, :5] == 0).all()
    assert (padded[:, :, 15:] == 0).all()


def test_stretch_keeps_the_whole_picture_without_bars():
    images = torch.arange(80.0).div(79).expand(1, 3, 40, 80).clone()
    stretched = prepare_images(images, 20, *PLAIN, fit="stretch")[0, 0, 10]
    assert stretched[0] < 0.03
    assert stretched[-1] > 0.97


def test_bars_are_black_before_normalising():
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    padded = prepare_images(torch.ones(1, 3, 4, 8), 8, mean, std, fit="pad")
    assert padded[0, 0, 0, 0] == (0 - 0.5) / 0.25


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    image_px=st.integers(1, 40),
    fit=st.sampled_from(["crop", "pad", "stretch"]),
)
def test_every_picture_becomes_a_finite_square_in_range(height, width, image_px, fit):
    prepared = prepare_images(torch.rand(2, 3, height, width), image_px, *PLAIN, fit=fit)
    assert prepared.shape == (2, 3, image_px, image_px)
    assert 0 <= prepared.min()
    assert prepared.max() <= 1


def test_pictures_of_the_right_size_are_only_normalised():
    images = torch.rand(2, 3, 8, 8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    prepared = prepare_images(images, 8, mean, std)
    for channel in range(3):
        assert torch.allclose(prepared[:, channel], (images[:, channel] - mean[channel]) / std[channel])


def test_a_plain_picture_stays_plain_when_resized():
    pictures = torch.full((6, 3, 8, 8), 0.5)
    assert torch.allclose(prepare_images(pictures, 5, *PLAIN), torch.full((6, 3, 5, 5), 0.5))


def test_chunks_keep_within_the_bound_and_half_precision_doubles_them():
    big = images_per_chunk(257, 1280, torch.float32)  # ViT-H/14
    assert big * 257 * 1280 * 4 <= CHUNK_BYTES
    assert images_per_chunk(257, 1280, torch.float16) in (2 * big, 2 * big + 1)
    assert images_per_chunk(10**6, 10**4, torch.float32) == 1


def test_a_chunk_holds_whole_sets_of_views(monkeypatch):
    # A picture takes 24 copies x 17 tokens x 24 channels x 4 bytes; 13 pictures fit: two sets of six.
    monkeypatch.setattr("t2mv_core.rewards.inputs.CHUNK_BYTES", 13 * 24 * 17 * 24 * 4)
    chunks = Preprocessing(32, 17, 24).chunks(torch.rand(18, 3, 32, 32), torch.zeros(1), num_views=6)
    assert [len(chunk) for chunk in chunks] == [12, 6]


def test_the_cache_encodes_each_prompt_once_and_keeps_the_order():
    seen = []

    def encode(prompts):
        seen.extend(prompts)
        return (torch.tensor([float(len(prompt)) for prompt in prompts]),)

    cache = PromptCache()
    (first,) = cache.lookup(["aa", "b", "aa"], encode)
    (second,) = cache.lookup(["b", "cccc"], encode)
    assert first.tolist() == [2, 1, 2]
    assert second.tolist() == [1, 4]
    assert seen == ["aa", "b", "cccc"]


def test_the_cache_is_bounded_even_within_one_call():
    cache = PromptCache(max_prompts=3)
    (features,) = cache.lookup(
        [str(i) for i in range(9)], lambda new: (torch.tensor([float(p) for p in new]),)
    )
    assert features.tolist() == list(range(9))
    assert len(cache) == 3


def test_the_least_recently_used_prompt_leaves_first():
    seen: list[str] = []

    def encode(prompts):
        seen.extend(prompts)
        return (torch.zeros(len(prompts)),)

    cache = PromptCache(max_prompts=2)
    for prompts in (["a"], ["b"], ["a"], ["c"], ["a"]):
        cache.lookup(prompts, encode)
    assert seen == ["a", "b", "c"]


class CountLetters:
    """Token ids: 8 starts, one per letter, 9 ends; cut so that the end stays."""

    def __call__(self, prompts, max_length):
        ids = torch.zeros(len(prompts), max_length, dtype=torch.long)
        for row, prompt in zip(ids, prompts, strict=True):
            body = [1] * min(len(prompt), max_length - 2)
            row[: len(body) + 2] = torch.tensor([8, *body, 9])
        return ids

    def unread_words(self, text, max_length):
        return text[max_length - 2 :]


def test_a_prompt_beyond_the_context_is_cut_with_one_warning(caplog):
    tokens = PromptTokens(CountLetters(), 6, "scorer")
    with caplog.at_level(logging.WARNING):
        assert tokens(["four"]).tolist() == [[8, 1, 1, 1, 1, 9]]
        assert not caplog.records
        assert tokens(["fives"]).tolist() == [[8, 1, 1, 1, 1, 9]]
        tokens(["sevens", "fives", "four"])
    assert [record.getMessage() for record in caplog.records] == [
        "scorer reads 4 tokens of a prompt; it does not read “s”.",
        "scorer reads 4 tokens of a prompt; it does not read “ns”.",
    ]


def test_what_is_said_of_unread_words_is_not_logged_again(caplog):
    scorer = SimpleNamespace(kind="view", name="scorer", model=None)
    scorer.tokens = PromptTokens(CountLetters(), 6, "scorer")
    others = (object(), SimpleNamespace(tokens=None))  # a function of the user's, which reads what it likes
    rewards = (scorer, OverViews(scorer, "min"), OverViews(scorer, "mean"), *others)
    sentence = "scorer reads 4 tokens of a prompt; it does not read “s” (in 1 of 2 prompts)."
    assert describe_unread(rewards, ["fives", "four", "fives"]) == [sentence]
    assert describe_unread(rewards, ["four"]) == []
    with caplog.at_level(logging.WARNING):
        scorer.tokens(["fives"])
    assert not caplog.records


def test_what_is_kept_of_one_prompt_does_not_keep_the_others():
    cache = PromptCache(max_prompts=1)
    cache.lookup([str(i) for i in range(8)], lambda new: (torch.zeros(len(new), 1000),))
    (kept,) = cache._features.values()
    assert kept[0].untyped_storage().nbytes() == 4000


def test_many_new_prompts_are_encoded_a_bounded_number_at_a_time():
    sizes = []

    def encode(prompts):
        sizes.append(len(prompts))
        return (torch.tensor([float(prompt) for prompt in prompts]),)

    prompts = [str(i) for i in range(2 * TEXT_CHUNK + 1)]
    (features,) = PromptCache().lookup(prompts, encode)
    assert sizes == [TEXT_CHUNK, TEXT_CHUNK, 1]
    assert features.tolist() == [float(prompt) for prompt in prompts]
