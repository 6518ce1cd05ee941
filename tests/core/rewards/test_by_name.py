"""Rewards by name: the list, roles, parts, precision, and what is missing."""

from __future__ import annotations

import pytest
import torch

from t2mv_core.rewards.hyperscore_network import HEADS
from t2mv_core.rewards.registry import (
    REWARDS,
    check_rewards,
    load_reward,
    load_rewards,
    reward_dtype,
    reward_kind,
)
from t2mv_core.rewards.sources import RewardPlaces

VIEW = {
    "toybox_picture",
    "picture_similarity",
    "toybox_clip",
    "pickscore",
    "hpsv2",
    "hpsv2_1",
    "image_reward",
    "clip_score",
}


def test_an_unknown_reward_lists_the_known_ones():
    with pytest.raises(
        ValueError, match="no reward named 'pickscor'.*pickscore, picture_similarity, toybox_clip"
    ):
        load_reward("pickscor")


def test_every_reward_says_what_it_is():
    assert {name for name, spec in REWARDS.items() if spec.kind == "view"} == VIEW
    assert set(REWARDS) - VIEW == {"toybox_hyperscore", "hyperscore", "geometry"}
    assert all(spec.summary for spec in REWARDS.values())


def test_published_rewards_say_where_their_weights_are():
    for name, spec in REWARDS.items():
        assert (spec.weights is None) == (name.startswith("toybox") or name == "geometry")
        assert spec.weights is None or spec.weights.address.startswith("https://")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("pickscore", "view"),
        ("pickscore.min", "joint"),
        ("toybox_clip.mean", "joint"),
        ("hyperscore", "joint"),
        *((f"hyperscore.{head}", "joint") for head in HEADS),
    ],
)
def test_parts_have_their_kind(name, kind):
    assert reward_kind(name) == kind


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hyperscore.min", "hyperscore has no part 'min'; it has alignment, geometry, texture, overall"),
        ("pickscore.geometry", "pickscore has no part 'geometry'; it has min, mean"),
        ("pickscore.min.min", "no part 'min.min'"),
    ],
)
def test_parts_that_are_not_there_are_refused_before_anything_is_read(name, words):
    with pytest.raises(ValueError, match=words):
        load_reward(name)


def test_a_model_is_loaded_once_for_all_its_parts():
    rewards = load_rewards(
        ["toybox_clip", "toybox_clip.min", "toybox_hyperscore.geometry", "toybox_hyperscore"]
    )
    assert rewards["toybox_clip"].model is rewards["toybox_clip.min"].model
    assert rewards["toybox_hyperscore"].model is rewards["toybox_hyperscore.geometry"].model
    images, prompts = torch.rand(6, 3, 64, 64), ["a red mug"]
    whole = rewards["toybox_hyperscore"](images, prompts)
    part = rewards["toybox_hyperscore.geometry"](images, prompts)
    assert torch.equal(part.scores, whole.details["geometry"])
    worst = rewards["toybox_clip"](images, prompts * 6).scores.min()
    assert float(rewards["toybox_clip.min"](images, prompts).scores) == float(worst)


def test_everything_that_is_missing_is_said_at_once(tmp_path):
    names = ["pickscore", "toybox_clip", "hyperscore.geometry", "hyperscore", "image_reward"]
    with pytest.raises(FileNotFoundError) as refusal:
        check_rewards(names, RewardPlaces(folders=(tmp_path,)))
    lines = str(refusal.value).splitlines()
    assert [line.split(" are ")[0] for line in lines] == [
        f"The weights of the reward {name}" for name in ("pickscore", "hyperscore", "image_reward")
    ]
    assert all(str(tmp_path) in line for line in lines)
    assert "https://github.com/zhangyujie-1998/MATE-3D" in lines[1]


def test_what_may_be_downloaded_passes_and_the_rest_does_not(tmp_path):
    places = RewardPlaces(folders=(tmp_path,), allow_download=True)
    check_rewards(["pickscore", "hpsv2"], places)
    with pytest.raises(FileNotFoundError, match="reward hyperscore are not"):
        check_rewards(["pickscore", "hyperscore"], places)


def test_half_precision_is_for_big_published_models_on_a_gpu():
    assert reward_dtype("pickscore", "cuda") == torch.float16
    assert reward_dtype("pickscore.min", "cuda:1") == torch.float16
    assert reward_dtype("pickscore", "cpu") == torch.float32
    assert reward_dtype("hyperscore", "cuda") == torch.float32
    assert reward_dtype("toybox_clip", "cuda") is None


def test_weights_in_a_folder_are_loaded_by_name(
    pickscore_folder, tiny_open_clip, tiny_architecture, pictures
):
    folder = pickscore_folder.parent
    (folder / "clip_score").mkdir()
    torch.save(tiny_open_clip.half().state_dict(), folder / "clip_score" / f"{tiny_architecture}__random.pt")
    rewards = load_rewards(["pickscore", "clip_score"], places=RewardPlaces(folders=(folder,)))
    for name, reward in rewards.items():
        assert reward.name == name
        assert {p.dtype for p in reward.model.parameters()} == {torch.float32}
        assert reward(pictures, ["a red mug"] * 6).scores.abs().max() <= 1
