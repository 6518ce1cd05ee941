"""The geometry reward: a score of the core behind the contract of rewards, for the cameras it is given."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from t2mv_core.cameras import DEFAULT_RIG
from t2mv_core.objects.consistency import score_consistency
from t2mv_core.rewards.composite import PartOfReward
from t2mv_core.rewards.geometry import GeometryReward, with_cameras
from t2mv_core.rewards.registry import load_reward, load_rewards
from training.toybox.data.renderer import render_views
from training.toybox.data.scenes import sample_scene

PROMPTS = ["anything", "anything else"]


@pytest.fixture(scope="module")
def views() -> Tensor:
    """Two rendered scenes, [2, 6, 3, 64, 64]."""
    sets = [torch.from_numpy(render_views(sample_scene(seed))[0]) for seed in (0, 1)]
    return torch.stack(sets).movedim(-1, 2).float() / 255


def test_scores_are_those_of_the_core(views: Tensor) -> None:
    result = load_reward("geometry")(views.flatten(0, 1), PROMPTS)
    expected = score_consistency(views, DEFAULT_RIG)
    assert torch.equal(result.scores, expected.geometry)
    assert torch.equal(result.details["silhouettes"], expected.silhouettes)
    assert torch.equal(result.details["colours"], expected.colours)


def test_parts_are_rewards_for_the_cameras_too(views: Tensor) -> None:
    rig = DEFAULT_RIG.subset([0, 2, 3])
    few = views[:, [0, 2, 3]].flatten(0, 1)
    rewards = load_rewards(["geometry", "geometry.colours"], rig=rig)
    expected = score_consistency(views[:, [0, 2, 3]], rig)
    assert torch.equal(rewards["geometry"](few, PROMPTS).scores, expected.geometry)
    assert torch.equal(rewards["geometry.colours"](few, PROMPTS).scores, expected.colours)
    again = with_cameras(PartOfReward(GeometryReward(), "colours"), rig)
    assert torch.equal(again(few, PROMPTS).scores, expected.colours)


def test_other_rewards_do_not_look_at_cameras() -> None:
    clip = load_reward("toybox_clip")
    assert with_cameras(clip, DEFAULT_RIG) is clip


def test_cameras_that_cannot_be_scored_are_refused_before_there_are_views() -> None:
    for name in ("toybox_hyperscore", "toybox_hyperscore.geometry"):
        with pytest.raises(ValueError, match="4 views per prompt; .* sets of exactly 6 views"):
            with_cameras(load_reward(name), DEFAULT_RIG.subset([0, 1, 2, 3]))
    with pytest.raises(ValueError, match="front 0°, back 180° see no surface in common"):
        with_cameras(load_reward("geometry"), DEFAULT_RIG.subset([0, 3]))


def test_views_of_another_rig_are_refused(views: Tensor) -> None:
    with pytest.raises(ValueError, match="got 4 views for the 6 cameras at azimuths 0, 45, 90"):
        GeometryReward()(views[:, :4].flatten(0, 1), PROMPTS)
    with pytest.raises(ValueError, match="the rig has 1; use a rig of several views"):
        GeometryReward(DEFAULT_RIG.subset([0]))
