"""Token ids with one warning, and text features computed once per prompt."""

from __future__ import annotations

import logging

import torch

from t2mv_core.rewards.prompts import TEXT_CHUNK, PromptCache, PromptTokens


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
