"""A training that learns from the visual hull is not judged by it; the reward gets the run's cameras."""

from __future__ import annotations

import pytest
import torch

from t2mv_core.cameras import DEFAULT_RIG
from t2mv_core.loading import load_bundle
from t2mv_core.rewards.geometry import GeometryReward
from t2mv_core.samplers import SamplingSettings
from t2mv_core.toybox.judge import load_judge
from training.evaluation.measure import Instruments, Questions, Variant, judged_specs, measure
from training.models.rewards import load_rewards

PROMPT = "a purple airplane with pink wings"


@pytest.mark.parametrize(
    ("joint", "only_measuring", "has_hull"),
    [
        (["geometry"], frozenset(), False),
        (["geometry.colours", "toybox_hyperscore"], frozenset(), False),
        (["geometry"], frozenset({"geometry"}), True),
        (["toybox_hyperscore.geometry"], frozenset(), True),
    ],
)
def test_the_hull_is_left_out_where_training_reads_it(
    joint: list[str], only_measuring: frozenset[str], has_hull: bool
) -> None:
    instruments = Instruments(load_rewards([], joint, "cpu"), load_judge(), only_measuring)
    questions = Questions((PROMPT,), (0,), specs=judged_specs([PROMPT], DEFAULT_RIG.azimuths_deg))
    variant = Variant("one step", "standard", SamplingSettings(1, 2.0))
    values = measure(load_bundle("toybox"), instruments, variant, questions).values
    assert ("hull_consistency" in values) == has_hull
    assert instruments.learns_geometry != has_hull
    assert all(table.isfinite().all() for name, table in values.items() if "reward" in name)


def test_the_reward_gets_the_cameras_of_the_run() -> None:
    rewards = load_rewards([], ["geometry"], "cpu", azimuths_deg=(0.0, 90.0, 180.0))
    reward = rewards.joint["geometry"]
    assert isinstance(reward, GeometryReward)
    assert reward.rig.azimuths_deg == (0.0, 90.0, 180.0)
    with torch.no_grad(), pytest.raises(ValueError, match="got 6 views for the 3 cameras"):
        reward(torch.rand(6, 3, 32, 32), ["a red mug"])
