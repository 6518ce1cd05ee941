"""Properties of the dual variable."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.algorithm.constraint import DualVariable

rewards = st.floats(min_value=-50, max_value=50, allow_nan=False)


@given(st.lists(rewards, min_size=1, max_size=40), st.floats(0.0, 1.0), st.one_of(st.none(), rewards))
def test_lambda_stays_in_range_and_rises_exactly_while_violated(sequence, decay, threshold):
    dual = DualVariable(threshold_decay=decay, initial_threshold=threshold)
    for reward in sequence:
        before = dual.lambda_
        dual.step(reward)
        assert 0.0 <= dual.lambda_ <= dual.maximum
        is_violated = reward < dual.threshold
        if is_violated:
            # strictly, unless capped or the step is lost to rounding
            assert dual.lambda_ > before or before == dual.maximum or 0.1 * (dual.threshold - reward) < 1e-12
        else:
            assert dual.lambda_ <= before


@given(st.lists(rewards, min_size=1, max_size=30))
def test_threshold_is_the_exponential_mean_from_the_first_reward(sequence):
    dual = DualVariable()
    expected = sequence[0]
    for number, reward in enumerate(sequence):
        dual.step(reward)
        expected = expected if number == 0 else 0.99 * expected + 0.01 * reward
        assert dual.threshold == pytest.approx(expected, abs=1e-9)


def test_steps_by_hand():
    dual = DualVariable()
    dual.step(-2.0)  # sets b = -2, below zero: it must not be taken for "unset"
    assert (dual.threshold, dual.lambda_) == (-2.0, 0.0)
    dual.step(-3.0)  # b = -2.01, J - b = -0.99, violated: lambda = 0.1·0.99
    assert dual.threshold == pytest.approx(-2.01)
    assert dual.lambda_ == pytest.approx(0.099)
    dual.step(0.0)  # b = -1.9899, J - b = 1.9899, holds: lambda = 0.099 - 0.01·1.9899
    assert dual.lambda_ == pytest.approx(0.079101)


def test_lambda_is_capped():
    dual = DualVariable(initial_threshold=0.0, threshold_decay=1.0)
    for _ in range(10):
        dual.step(-100.0)
    assert dual.lambda_ == dual.maximum == 5.0
    assert dual.threshold == 0.0


@given(st.lists(rewards, min_size=2, max_size=20), st.data())
def test_state_survives_json(sequence, data):
    split = data.draw(st.integers(0, len(sequence)))
    whole, first = DualVariable(), DualVariable()
    for reward in sequence[:split]:
        first.step(reward)
    second = DualVariable()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for reward in sequence:
        whole.step(reward)
    for reward in sequence[split:]:
        second.step(reward)
    assert second.state_dict() == whole.state_dict()


@pytest.mark.parametrize("reward", [math.nan, math.inf])
def test_a_reward_that_is_no_number_changes_nothing(reward):
    dual = DualVariable()
    dual.step(1.0)
    before = dual.state_dict()
    with pytest.raises(ValueError, match="finite"):
        dual.step(reward)
    assert dual.state_dict() == before


@pytest.mark.parametrize(
    "arguments", [{"violated_lr": 0.0}, {"maximum": 0.0}, {"threshold_decay": 1.1}, {"initial_lambda": 9.0}]
)
def test_values_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match="must"):
        DualVariable(**arguments)
