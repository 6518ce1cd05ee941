"""The contract every scorer shares: what is refused, in words."""

from __future__ import annotations

import pytest
import torch

from t2mv_core.rewards.base import check_request

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
        (PICTURES, "a mug", "joint", "prompts is str; pass a list"),
        (PICTURES, ["a mug", "  "], "joint", "prompt 1 is empty"),
        (PICTURES, None, "joint", "prompts is NoneType; pass a list"),
        (PICTURES, ["a mug", 3], "joint", "prompt 1 is int, not text"),
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
