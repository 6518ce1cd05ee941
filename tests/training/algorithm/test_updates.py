"""The cut of an iteration into optimizer steps: every pair once, remainders included, whatever the layout."""

import pytest

from t2mv_core.trajectory import derive_seed
from training.algorithm.updates import plan_updates, step_order


def pairs(updates, owned):
    """Per update, the (slot, step) pairs this process visits."""
    return [
        [
            (owned[row], step)
            for m in update.micro_steps
            for row, step in zip(m.prompts.tolist(), m.steps.tolist(), strict=True)
        ]
        for update in updates
    ]


@pytest.mark.parametrize(
    ("per_update", "per_step", "micro"), [(6, 4, 1), (4, 4, 3), (5, 3, 2), (6, 1, 6), (1, 4, 4)]
)
def test_every_pair_is_visited_exactly_once(per_update, per_step, micro):
    updates = plan_updates(6, 4, 4, per_update, per_step, micro, range(6), seed=1)
    visited = pairs(updates, range(6))
    assert sorted(sum(visited, [])) == [(slot, step) for slot in range(6) for step in range(4)]
    assert [len(v) for v in visited] == [update.num_terms for update in updates]
    assert len(updates) == -(-6 // per_update) * -(-4 // per_step)
    assert all(len(m.prompts) <= micro for update in updates for m in update.micro_steps)


def test_two_processes_share_the_updates_of_one():
    alone = pairs(plan_updates(6, 4, 4, 4, 2, 2, range(6), seed=5), range(6))
    shares = [
        pairs(plan_updates(6, 4, 4, 4, 2, 2, owned, seed=5), owned)
        for owned in (range(0, 6, 2), range(1, 6, 2))
    ]
    assert [sorted(a + b) for a, b in zip(*shares, strict=True)] == [sorted(update) for update in alone]


@pytest.mark.parametrize(("trained", "per_step"), [(3, 3), (3, 2), (1, 1), (4, 3)])
def test_each_prompt_gives_exactly_so_many_of_its_steps(trained, per_step):
    updates = plan_updates(5, 4, trained, 2, per_step, 2, range(5), seed=3)
    visited = pairs(updates, range(5))
    assert [len(v) for v in visited] == [update.num_terms for update in updates]
    for slot in range(5):
        steps = [step for update in visited for own, step in update if own == slot]
        assert steps == step_order(3, slot, 4)[:trained]
    # three groups of prompts, each in ceil(trained/per_step) updates
    assert len(updates) == 3 * -(-trained // per_step)
    owned = range(1, 5, 2)
    share = [[pair for pair in update if pair[0] in owned] for update in visited]
    assert pairs(plan_updates(5, 4, trained, 2, per_step, 2, owned, seed=3), owned) == share


def test_the_order_of_steps_is_the_prompts_own():
    orders = {tuple(step_order(0, slot, 8)) for slot in range(10)}
    assert len(orders) > 5
    assert all(sorted(order) == list(range(8)) for order in orders)
    assert step_order(0, 3, 8) == step_order(0, 3, 8)


def test_seeds_tell_purposes_apart():
    seeds = {
        derive_seed(0, "a", 1, 11),
        derive_seed(0, "a", 11, 1),
        derive_seed(0, "a", "1", 11),
        derive_seed(1, "a", 1, 11),
    }
    assert len(seeds) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)
