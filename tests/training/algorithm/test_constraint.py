"""Properties of the dual variable."""

import json
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.algorithm.constraint import ROUNDING, DualVariable

rewards = st.floats(min_value=-50, max_value=50, allow_nan=False)
iterations = st.lists(st.lists(rewards, min_size=1, max_size=6), min_size=1, max_size=30)
units = st.sampled_from(["spread", "raw"])
whole_rewards = st.integers(-100, 100).map(float)


def around(mean, spread):
    """Joint rewards of this mean and population deviation."""
    return [mean - spread, mean + spread]


@given(iterations, st.floats(0.0, 1.0), st.one_of(st.none(), rewards), units)
def test_lambda_stays_in_range_and_rises_exactly_while_violated(sequence, decay, threshold, unit):
    dual = DualVariable(threshold_decay=decay, initial_threshold=threshold, unit=unit)
    for joint_rewards in sequence:
        before = dual.lambda_
        dual.step(joint_rewards)
        assert 0.0 <= dual.lambda_ <= dual.maximum
        mean = statistics.fmean(joint_rewards)
        has_unit = unit == "raw" or dual.spread > ROUNDING * abs(mean)
        if not has_unit:
            assert dual.lambda_ == before
        elif mean < dual.threshold:
            # strictly, unless capped or the step is lost to rounding
            step = 0.1 * (dual.threshold - mean) / (1.0 if unit == "raw" else dual.spread)
            assert dual.lambda_ > before or before == dual.maximum or step < 1e-12
        else:
            assert dual.lambda_ <= before


@given(iterations)
def test_threshold_and_spread_are_exponential_means_from_the_first_rewards(sequence):
    dual = DualVariable()
    threshold, variance = statistics.fmean(sequence[0]), statistics.pvariance(sequence[0])
    for number, joint_rewards in enumerate(sequence):
        dual.step(joint_rewards)
        if number:
            threshold = 0.99 * threshold + 0.01 * statistics.fmean(joint_rewards)
            variance = 0.9 * variance + 0.1 * statistics.pvariance(joint_rewards)
        assert dual.threshold == pytest.approx(threshold, abs=1e-9)
        assert dual.spread == pytest.approx(math.sqrt(variance), abs=1e-6)


def test_raw_steps_by_hand():
    dual = DualVariable(unit="raw")
    dual.step([-3.0, -1.0])  # sets b = -2, below zero: it must not be taken for "unset"
    assert (dual.threshold, dual.lambda_) == (-2.0, 0.0)
    dual.step([-3.0])  # b = -2.01, J - b = -0.99, violated: lambda = 0.1·0.99
    assert dual.threshold == pytest.approx(-2.01)
    assert dual.lambda_ == pytest.approx(0.099)
    dual.step([0.0])  # b = -1.9899, J - b = 1.9899, holds: lambda = 0.099 - 0.01·1.9899
    assert dual.lambda_ == pytest.approx(0.079101)


def test_steps_in_spreads_by_hand():
    dual = DualVariable()
    dual.step([-3.0, -1.0])  # b = -2, s = 1
    assert (dual.threshold, dual.spread, dual.lambda_) == (-2.0, 1.0, 0.0)
    dual.step([-5.0, -1.0])  # J = -3, b = -2.01, s² = 0.9 + 0.1·4 = 1.3: lambda = 0.1·0.99/√1.3
    assert dual.spread == pytest.approx(math.sqrt(1.3))
    assert dual.lambda_ == pytest.approx(0.099 / math.sqrt(1.3))
    dual.step([0.0, 0.0])  # J - b = 1.9899, s² = 0.9·1.3: lambda - 0.01·1.9899/√1.17
    assert dual.lambda_ == pytest.approx(0.099 / math.sqrt(1.3) - 0.019899 / math.sqrt(1.17))


@pytest.mark.parametrize(("scale", "raw_step"), [(1.0, 0.1), (10.0, 1.0), (0.05, 0.005)])
@pytest.mark.parametrize("unit", ["spread", "raw"])
def test_one_spread_below_the_threshold_is_one_step_whatever_the_rewards_range(unit, scale, raw_step):
    """J lies one spread below a fixed b in every iteration; the spread is `scale`, raw_step 0.1·scale."""
    dual = DualVariable(threshold_decay=1.0, unit=unit)
    dual.observe(around(0.0, scale))  # b = 0, s = scale
    for number in range(1, 61):
        dual.step(around(-scale, scale))
        assert dual.spread == pytest.approx(scale)
        step = 0.1 if unit == "spread" else raw_step
        assert dual.lambda_ == pytest.approx(min(number * step, 5.0))


@given(
    st.lists(st.lists(whole_rewards, min_size=2, max_size=6), min_size=1, max_size=20),
    st.sampled_from([0.001, 0.3, 1.0, 10.0, 4096.0]),
    st.sampled_from([-500.0, -0.7, 0.0, 3.0]),
)
def test_scaling_and_shifting_the_reward_leaves_lambdas_path(sequence, scale, shift):
    plain, changed = DualVariable(), DualVariable()
    for joint_rewards in sequence:
        plain.step(joint_rewards)
        moved = [scale * (reward + shift) for reward in joint_rewards]
        changed.step(moved)
        # else rounding of the shifted rewards is all the spread there is
        if plain.spread < 1e-3 or changed.spread <= ROUNDING * abs(statistics.fmean(moved)):
            return
        assert changed.lambda_ == pytest.approx(plain.lambda_, abs=1e-6)


def test_equal_rewards_move_no_lambda_and_the_log_says_so(caplog):
    dual = DualVariable(initial_lambda=0.3, initial_threshold=1.0)
    dual.step([0.5, 0.5])
    assert (dual.lambda_, dual.spread) == (0.3, 0.0)
    assert "All joint rewards have been equal so far: lambda stays at 0.300." in caplog.text
    dual = DualVariable(initial_lambda=0.3, initial_threshold=1.0)
    dual.step([0.5, 0.50001])  # rounding
    assert dual.lambda_ == 0.3
    caplog.clear()
    dual.step([0.25, 0.75])
    assert dual.lambda_ > 0.3
    before = dual.lambda_
    dual.step([0.5, 0.5])  # an iteration of equal rewards after others has their spread
    assert dual.lambda_ > before
    assert caplog.text == ""


def test_what_is_observed_before_the_first_iteration_moves_no_lambda():
    dual = DualVariable(initial_lambda=0.3)
    assert dual.observe([1.0, 3.0]) == 0.0
    assert (dual.threshold, dual.spread, dual.lambda_) == (2.0, 1.0, 0.3)


@given(iterations, units, st.data())
def test_state_survives_json(sequence, unit, data):
    split = data.draw(st.integers(0, len(sequence)))
    whole, first = DualVariable(unit=unit), DualVariable(unit=unit)
    for joint_rewards in sequence[:split]:
        first.step(joint_rewards)
    second = DualVariable(unit=unit)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for joint_rewards in sequence:
        whole.step(joint_rewards)
    for joint_rewards in sequence[split:]:
        second.step(joint_rewards)
    assert second.state_dict() == whole.state_dict()


@pytest.mark.parametrize("reward", [math.nan, math.inf])
def test_a_reward_that_is_no_number_changes_nothing(reward):
    dual = DualVariable()
    dual.step([1.0])
    before = dual.state_dict()
    with pytest.raises(ValueError, match="finite"):
        dual.step([1.0, reward])
    assert dual.state_dict() == before


@pytest.mark.parametrize(
    "arguments", [{"violated_lr": 0.0}, {"maximum": 0.0}, {"threshold_decay": 1.1}, {"initial_lambda": 9.0}]
)
def test_values_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match="must"):
        DualVariable(**arguments)
