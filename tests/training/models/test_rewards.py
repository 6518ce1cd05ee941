"""Rewards of a run: found before anything is loaded, loaded by name, each in its role."""

from pathlib import Path

import pytest
import torch

from t2mv_core.rewards.registry import REWARDS
from training.config import RewardConfig, config_from_dict
from training.models import rewards as reward_models
from training.models.rewards import (
    check_reward_models,
    default_folder,
    load_rewards,
    reward_places,
)

OWN = """
import torch

def redness(images, prompts):
    return images[:, 0].mean(dim=(1, 2))

def spread(images, prompts):
    return [float(part.std()) for part in images.chunk(len(prompts))]
"""


def own_config(tmp_path, **changes):
    """A configuration with a function of the user's as view and one as joint reward."""
    (tmp_path / "mine.py").write_text(OWN)
    entries = {
        "redness": {"file": str(tmp_path / "mine.py"), "function": "redness"},
        "spread": {"file": str(tmp_path / "mine.py"), "function": "spread", "kind": "joint"},
    }
    return config_from_dict(
        {"reward": {"own": entries, "view": "redness", "joint": "spread", **changes}}
    ).reward


def test_rewards_are_loaded_once_and_in_their_role():
    parts = ["toybox_hyperscore", "toybox_hyperscore.texture", "toybox_clip.min"]
    rewards = load_rewards(["toybox_clip"], parts, "cpu")
    assert list(rewards.joint) == parts
    scores = rewards.score(torch.rand(1, 6, 3, 64, 64), ["a red mug"])
    whole = scores.details["toybox_hyperscore.texture"]
    torch.testing.assert_close(scores.joint["toybox_hyperscore.texture"], whole)
    torch.testing.assert_close(scores.joint["toybox_clip.min"], scores.view["toybox_clip"].amin(dim=1))
    assert rewards.select(["toybox_clip"], ["toybox_clip.min"]).joint.keys() == {"toybox_clip.min"}


@pytest.mark.parametrize(
    ("view", "joint", "words"),
    [
        (["toybox_clip"], ["toybox_clip"], "toybox_clip is a view reward; it cannot be used as joint reward"),
        (["toybox_clip.min"], [], "toybox_clip.min is a joint reward; it cannot be used as view reward"),
        (["clap"], [], "There is no reward named 'clap'"),
        (["toybox_clip"], ["hyperscore.colour"], "hyperscore has no part 'colour'"),
    ],
)
def test_wrong_names_and_roles_are_refused(view, joint, words):
    with pytest.raises(ValueError, match=words):
        check_reward_models(view, joint, RewardConfig())


def test_the_default_folder_is_comfyuis_where_there_is_one(monkeypatch):
    root = Path(__file__).parents[3]
    assert default_folder() == root / "models" / "t2mv_rewards"
    monkeypatch.setattr(reward_models, "_ROOT", Path("/comfy/custom_nodes/ComfyUI-T2MV"))
    assert default_folder() == Path("/comfy/models/t2mv_rewards")


def test_places_come_from_the_configuration():
    config = RewardConfig(folder="weights", paths={"pickscore": "elsewhere/pick"}, allow_download=True)
    places = reward_places(config)
    assert places.folders == (Path("weights"),)
    assert places.paths == {"pickscore": Path("elsewhere/pick")}
    assert places.allow_download


def test_missing_weights_are_said_with_address_and_folder(tmp_path):
    config = RewardConfig(folder=str(tmp_path))
    with pytest.raises(FileNotFoundError) as refusal:
        check_reward_models(["pickscore"], ["hyperscore.geometry"], config)
    text = str(refusal.value)
    assert "https://huggingface.co/yuvalkirstain/PickScore_v1" in text
    assert "https://github.com/zhangyujie-1998/MATE-3D" in text
    assert text.count(str(tmp_path)) == 2


def test_a_path_of_no_reward_is_refused():
    with pytest.raises(
        ValueError, match="reward.paths.pick: there is no reward of that name; use one of toybox_clip"
    ):
        check_reward_models([], [], RewardConfig(paths={"pick": "x"}))


def test_own_functions_are_rewards(tmp_path):
    config = own_config(tmp_path)
    rewards = load_rewards(config.view, [*config.joint, "redness.min", "toybox_hyperscore"], "cpu", config)
    images = torch.rand(2, 6, 3, 64, 64)
    scores = rewards.score(images, ["a red mug", "a blue car"])
    red = images[:, :, 0].mean(dim=(2, 3))
    torch.testing.assert_close(scores.view["redness"], red)
    torch.testing.assert_close(scores.joint["redness.min"], red.amin(dim=1))
    torch.testing.assert_close(scores.joint["spread"], images.flatten(1).std(dim=1))


def test_only_files_of_rewards_in_use_are_run(tmp_path):
    (tmp_path / "bad.py").write_text("raise SystemExit")
    config = config_from_dict({"reward": {"own": {"bad": {"file": str(tmp_path / "bad.py")}}}}).reward
    check_reward_models(["toybox_clip"], [], config)
    assert list(load_rewards(["toybox_clip"], [], "cpu", config).view) == ["toybox_clip"]


def test_precision_reaches_the_models():
    config = RewardConfig(dtype="bf16")
    rewards = load_rewards(["toybox_clip"], ["toybox_hyperscore"], "cpu", config)
    assert rewards.view["toybox_clip"].model.visual.proj.dtype == torch.bfloat16
    assert rewards.joint["toybox_hyperscore"].model.clip_model.visual.proj.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"view": "spread"}, "spread is a joint reward; it cannot be used as view reward"),
        ({"view": "redness.max"}, "redness has no part 'max'; it has min, mean"),
        ({"joint": "spread.min"}, "spread has no part 'min'; it has none"),
    ],
)
def test_own_functions_keep_to_their_role(tmp_path, change, words):
    config = own_config(tmp_path, **change)
    with pytest.raises(ValueError, match=words):
        check_reward_models(config.view, config.joint, config)


def test_an_own_name_must_not_hide_a_reward(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    config = config_from_dict(
        {"reward": {"own": {"pickscore": {"file": str(tmp_path / "mine.py"), "function": "redness"}}}}
    ).reward
    with pytest.raises(ValueError, match="reward.own.pickscore: there is a reward of that name already"):
        check_reward_models(["pickscore"], [], config)


def test_every_reward_is_explained():
    text = (Path(__file__).parents[3] / "docs" / "rewards.md").read_text("utf-8")
    assert all(f"`{name}`" in text for name in REWARDS)
