"""Early stopping: what counts as best, when it is due, its state."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.evaluation.early_stop import EarlyStop

# few different numbers, so that equal ones are common
values_seen = st.lists(st.sampled_from([-math.inf, -1.0, 0.0, 0.5, 2.0, math.nan]), max_size=12)


def maximum(values: list[float]) -> float | None:
    return max((value for value in values if not math.isnan(value)), default=None)


@given(values_seen, st.integers(0, 4))
def test_it_is_due_exactly_when_the_last_values_did_not_exceed_the_best_before(values, patience):
    stop = EarlyStop("view", patience)
    for count in range(len(values) + 1):
        if count:
            stop.update(count, {"view": values[count - 1]})
        split = count - patience
        before = maximum(values[: max(split, 0)])
        has_better = any(
            not math.isnan(value) and (before is None or value > before)
            for value in values[max(split, 0) : count]
        )
        assert stop.is_due == (patience > 0 and split >= 0 and not has_better)


@given(values_seen)
def test_the_best_is_the_first_of_the_largest(values):
    stop = EarlyStop("view", 0)
    for iteration, value in enumerate(values):
        before = maximum(values[:iteration])
        is_best = not math.isnan(value) and (before is None or value > before)
        assert stop.update(iteration, {"view": value, "joint": 9.0}) == is_best
    best = maximum(values)
    assert stop.best_value == best
    assert stop.best_iteration == (None if best is None else values.index(best))


@given(values_seen, st.integers(0, 3), st.data())
def test_state_survives_json(values, patience, data):
    split = data.draw(st.integers(0, len(values)))
    whole, first, second = (EarlyStop("view", patience) for _ in range(3))
    numbered = list(enumerate(values))
    for iteration, value in numbered[:split]:
        first.update(iteration, {"view": value})
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for iteration, value in numbered[split:]:
        second.update(iteration, {"view": value})
    for iteration, value in numbered:
        whole.update(iteration, {"view": value})
    assert second.state_dict() == whole.state_dict()
    assert second.is_due == whole.is_due


def test_without_a_measure_nothing_is_watched():
    stop = EarlyStop(None, 1)
    assert [stop.update(iteration, {}) for iteration in range(3)] == [False] * 3
    assert not stop.is_due
    assert stop.best_iteration is None


def test_an_unknown_measure_gets_the_nearest_names():
    stop = EarlyStop("view_rewrd", 1)
    with pytest.raises(ValueError, match="use 'view_reward' or ") as caught:
        stop.update(1, {"joint_reward": 0.0, "view_reward": 0.0})
    assert str(caught.value) == (
        "The measure 'view_rewrd' is not among the evaluation's values; use 'view_reward' or 'joint_reward'."
    )
    with pytest.raises(ValueError, match="has no values"):
        stop.update(1, {})
    assert not stop.is_due


def test_a_state_of_another_measure_is_refused():
    saved = EarlyStop("view", 1)
    saved.update(3, {"view": 1.0})
    stop = EarlyStop("joint", 1)
    with pytest.raises(ValueError, match="resume with 'view'"):
        stop.load_state_dict(saved.state_dict())
    assert stop.best_value is None


def test_watching_may_begin_or_end_when_a_run_resumes():
    saved = EarlyStop("view", 1)
    saved.update(3, {"view": 1.0})
    stop = EarlyStop("view", 1)
    stop.load_state_dict(EarlyStop(None, 1).state_dict())
    assert (stop.best_value, stop.is_due) == (None, False)
    stop = EarlyStop(None, 1)
    stop.load_state_dict(saved.state_dict())
    assert (stop.best_value, stop.is_due) == (None, False)


def test_a_negative_patience_is_refused():
    with pytest.raises(ValueError, match="patience=-1 must be 0"):
        EarlyStop("view", -1)
