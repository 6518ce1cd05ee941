"""Picture similarity: a cosine of image features, of every view with its own set's picture."""

from __future__ import annotations

import pytest
import torch

from t2mv_core.rewards.picture_similarity import load_toybox_similarity
from t2mv_core.rewards.registry import load_reward, reward_kind
from t2mv_core.toybox import toybox_path

WEIGHTS = toybox_path("rewards/clip.safetensors")


@pytest.fixture(scope="module")
def reward():
    return load_toybox_similarity(WEIGHTS)


@pytest.fixture(scope="module")
def views():
    return torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def pictures():
    return torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def test_scores_are_cosines_with_the_own_picture(reward, views, pictures):
    scores = reward(views, ["a mug"] * 6, pictures).scores
    network, prepare = reward.model, reward.clip.preprocessing

    def encode(images):
        return network.encode_image(torch.cat(list(prepare.chunks(images, network.logit_scale))))

    wanted = [
        torch.cosine_similarity(encode(views[n : n + 1]), encode(pictures[n // 3 : n // 3 + 1])).item()
        for n in range(6)
    ]
    assert scores.tolist() == pytest.approx(wanted, abs=1e-5)
    assert not scores.is_inference()


def test_a_picture_resembles_itself_most(reward, views):
    scores = reward(views, ["a mug"] * 6, views).scores
    assert scores.tolist() == pytest.approx([1.0] * 6, abs=1e-5)


def test_the_prompt_is_not_read(reward, views, pictures):
    one, other = (reward(views, [words] * 6, pictures).scores for words in ("a mug", "a green car"))
    assert torch.equal(one, other)


def test_missing_or_odd_pictures_get_a_sentence(reward, views, pictures):
    with pytest.raises(ValueError, match="toybox_picture compares views with the picture"):
        reward(views, ["a mug"] * 6)
    with pytest.raises(ValueError, match="2 pictures for 5 views"):
        reward(views[:5], ["a mug"] * 5, pictures)


def test_the_registry_knows_it_and_it_has_no_parts():
    assert load_reward("toybox_picture").takes_pictures
    assert reward_kind("picture_similarity") == "view"
    with pytest.raises(ValueError, match="toybox_picture has no part 'min'; it has none"):
        reward_kind("toybox_picture.min")
