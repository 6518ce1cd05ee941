"""The yardstick of a training iteration computes what the trainer computes."""

import pytest

from benchmarks.training_iteration import Size, compare, make_ways


@pytest.fixture(scope="module")
def ways():
    """Both ways, a prompt and two steps, counted once; and the model under "unet"."""
    case, made = make_ways(Size("toybox", 1, 2, 1), ["published", "ours", "ours, checkpointing"])
    for way in made.values():
        way.count()
    return {**made, "unet": case.policy.bundle.unet}


@pytest.mark.parametrize("name", ["ours", "ours, checkpointing"])
def test_loss_and_gradient_are_the_published_ones(ways, name):
    found = compare(ways[name], ways["published"])
    assert found["loss"] > 0
    assert found["loss_difference"] < 1e-5
    assert found["gradient_relative_difference"] < 1e-5
    assert found["gradient_cosine"] > 0.99999


def test_with_checkpointing_on_both_sides_ours_takes_less_memory(ways):
    assert ways["ours, checkpointing"].mib["update"] < 0.7 * ways["published"].mib["update"]
    assert ways["ours, checkpointing"].mib["update"] < 0.5 * ways["ours"].mib["update"]


def test_the_published_way_leaves_the_unet_as_it_was(ways):
    assert not ways["unet"].is_gradient_checkpointing
