"""The contract every scorer shares: refusals in words, the prompt cache, strict loading."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from t2mv_core.rewards import REWARDS, load_reward
from t2mv_core.rewards.base import PromptCache, PromptTokens, check_request, load_strictly, prepare_images

PICTURES = torch.full((6, 3, 8, 8), 0.5)


@pytest.mark.parametrize(
    ("images", "prompts", "kind", "words"),
    [
        (PICTURES[0], ["a mug"], "view", r"shape \[3, 8, 8\].*\[n, 3, H, W\]"),
        (PICTURES[:0], [], "view", "n of at least 1"),
        ((PICTURES * 255).to(torch.uint8), ["a mug"] * 6, "view", "torch.uint8.*divide 0..255 by 255"),
        (PICTURES * 255, ["a mug"] * 6, "view", r"from 128 to 128; pass values in \[0, 1\]"),
        (PICTURES * float("nan"), ["a mug"] * 6, "view", "NaN"),
        (PICTURES, ["a mug"], "view", "1 prompts for 6 images; a view reward takes one prompt per image"),
        (PICTURES, ["a mug"] * 4, "joint", "4 prompts for 6 images; a joint reward takes B prompts"),
        (PICTURES, [], "joint", "0 prompts for 6 images"),
        (PICTURES, "a mug", "joint", "one string"),
        (PICTURES, ["a mug", "  "], "joint", "prompt 1 is empty"),
    ],
)
def test_a_wrong_request_is_refused_in_words(images, prompts, kind, words):
    with pytest.raises(ValueError, match=words):
        check_request(images, prompts, kind)


def test_the_views_per_prompt_are_counted():
    assert check_request(PICTURES, ["a mug", "a car"], "joint") == 3
    assert check_request(PICTURES, ["a mug"] * 6, "view") == 1


def test_rounding_of_half_precision_is_no_other_range():
    assert check_request(torch.full((1, 3, 4, 4), 1.0005), ["a mug"], "view") == 1


def test_pictures_of_the_right_size_are_only_normalised():
    images = torch.rand(2, 3, 8, 8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    prepared = prepare_images(images, 8, mean, std)
    for channel in range(3):
        assert torch.allclose(prepared[:, channel], (images[:, channel] - mean[channel]) / std[channel])


def test_a_plain_picture_stays_plain_when_resized():
    assert torch.allclose(prepare_images(PICTURES, 5, (0, 0, 0), (1, 1, 1)), torch.full((6, 3, 5, 5), 0.5))


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


def count_letters(prompts, max_length):
    """Token ids: 8 starts, one per letter, 9 ends; cut so that the end stays."""
    ids = torch.zeros(len(prompts), max_length, dtype=torch.long)
    for row, prompt in zip(ids, prompts, strict=True):
        body = [1] * min(len(prompt), max_length - 2)
        row[: len(body) + 2] = torch.tensor([8, *body, 9])
    return ids


def test_a_prompt_beyond_the_context_is_cut_with_one_warning(caplog):
    tokens = PromptTokens(count_letters, 6, "scorer")
    with caplog.at_level(logging.WARNING):
        assert tokens(["four"]).tolist() == [[8, 1, 1, 1, 1, 9]]
        assert not caplog.records
        assert tokens(["fives"]).tolist() == [[8, 1, 1, 1, 1, 9]]
        tokens(["a" * 10_000])
    assert [record.getMessage() for record in caplog.records] == [
        "scorer reads at most 6 tokens; the rest of a longer prompt is ignored."
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("1.bias"), "'1.bias' is missing: some.file"),
        (lambda w: w.update(extra=torch.zeros(1)), "'extra' is not part of the model: some.file"),
        (
            lambda w: w.update({"0.weight": torch.zeros(2, 3)}),
            r"'0.weight' has shape \[2, 3\], the model needs \[3, 2\]",
        ),
    ],
)
def test_the_first_wrong_weight_is_named(change, words):
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    weights = dict(model.state_dict())
    change(weights)
    with pytest.raises(ValueError, match=words):
        load_strictly(model, weights, "some.file")


def test_an_unknown_reward_lists_the_known_ones():
    with pytest.raises(ValueError, match="no reward named 'pickscor'.*toybox_clip, toybox_hyperscore"):
        load_reward("pickscor")


def test_every_reward_says_what_it_is():
    assert {name: spec.kind for name, spec in REWARDS.items()} == {
        "toybox_clip": "view",
        "toybox_hyperscore": "joint",
    }
    assert all(spec.summary for spec in REWARDS.values())
