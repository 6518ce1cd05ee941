"""Trackers by name."""

import pytest

from training.models.policy import available_trackers


def test_trackers_are_known_and_installed():
    assert available_trackers([]) == []
    with pytest.raises(ValueError, match="'tensorbord', which accelerate does not know"):
        available_trackers(["tensorbord"])
    with pytest.raises(ValueError, match="'aim', which is not installed"):
        available_trackers(["aim"])
