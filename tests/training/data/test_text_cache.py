"""Conditions of prompts: the same numbers whoever came along, in order, not more of them than allowed."""

from types import SimpleNamespace

import pytest
import torch

from t2mv_core.text import encode_text
from training.data import text_cache as conditions
from training.data.text_cache import ConditionCache

NAMES = ("prompt_embeds", "pooled_embeds", "time_ids", "negative_embeds", "negative_pooled")


def parts(condition):
    return [getattr(condition, name) for name in NAMES]


def test_a_prompt_has_the_same_numbers_in_any_company(tiny_bundle):
    alone = ConditionCache(tiny_bundle, "blurry").lookup(["a cat"])
    cache = ConditionCache(tiny_bundle, "blurry")
    crowd = cache.lookup(["a big brown dog on a mat", "a cat", "an ant", "a cat"])
    again = cache.lookup(["an ant", "a cat"])
    for own, many, later in zip(parts(alone), parts(crowd), parts(again), strict=True):
        assert torch.equal(many[1], own[0])
        assert torch.equal(many[3], own[0])
        assert torch.equal(later, many[[2, 1]])
    assert not torch.equal(crowd.prompt_embeds[0], crowd.prompt_embeds[1])


def test_it_is_the_encoders_condition(tiny_bundle):
    prompts = ["a cat", "a dog"]
    expected = encode_text(tiny_bundle, prompts, "blurry")
    for ours, theirs in zip(
        parts(ConditionCache(tiny_bundle, "blurry").lookup(prompts)), parts(expected), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    plain = ConditionCache(tiny_bundle).lookup(prompts)
    assert not torch.equal(plain.negative_embeds, expected.negative_embeds)


@pytest.fixture
def encoded(monkeypatch):
    """The prompts that the encoders were asked for."""
    asked = []

    def encode(bundle, prompts, negative=None):
        asked.extend(prompts)
        return encode_text(bundle, prompts, negative)

    monkeypatch.setattr(conditions, "encode_text", encode)
    return asked


def test_a_prompt_is_encoded_once(tiny_bundle, encoded):
    cache = ConditionCache(tiny_bundle)
    cache.lookup(["a cat", "a dog", "a cat"])
    cache.lookup(["a dog", "an ant"])
    assert encoded == ["a cat", "a dog", "an ant"]


def test_the_oldest_are_forgotten(tiny_bundle, encoded, monkeypatch):
    monkeypatch.setattr(conditions, "MAX_PROMPTS", 3)
    cache = ConditionCache(tiny_bundle)
    whole = cache.lookup(["a", "b", "c", "d", "e"])  # more at once than are kept
    assert len(whole) == 5
    assert len(cache._known) == 3
    cache.lookup(["c", "d", "e"])
    assert encoded == ["a", "b", "c", "d", "e"]
    again = cache.lookup(["a"])
    assert encoded[5:] == ["a"]
    assert torch.equal(again.prompt_embeds[0], whole.prompt_embeds[0])
    assert list(cache._known) == ["d", "e", "a"]


def test_a_prompt_no_encoder_can_use_gets_a_sentence(tiny_bundle):
    with pytest.raises(ValueError, match="prompt"):
        ConditionCache(tiny_bundle).lookup(["a cat", ""])


def test_on_a_card_text_encoders_stay_no_longer_than_their_work(tiny_bundle):
    """Where they are sent, and that a failure in between sends them back, too; there is no card here."""
    sent = []
    encoders = [SimpleNamespace(to=lambda device, name=name: sent.append((name, device))) for name in "ab"]
    card = torch.device("cuda")
    bundle = SimpleNamespace(device=card, text_encoder=encoders[0], text_encoder_2=encoders[1])

    def fail():
        assert sent == [("a", card), ("b", card)]
        raise ValueError("no words")

    with pytest.raises(ValueError, match="no words"), conditions._on_card(bundle):
        fail()
    assert sent[2:] == [("a", "cpu"), ("b", "cpu")]
    before = [p.device for p in tiny_bundle.text_encoder.parameters()]
    ConditionCache(tiny_bundle).lookup(["a cat"])
    assert [p.device for p in tiny_bundle.text_encoder.parameters()] == before
