"""Shared by all tests: a few really rendered scenes, and no time limit for an example of a property."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from training.toybox.data.dataset import Dataset

# An example's first run may import or compile; how long it takes on a busy machine says nothing of the code.
settings.register_profile("t2mv", deadline=None)
settings.load_profile("t2mv")


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Twelve scenes of the toybox's training set, of twelve families."""
    from training.toybox.data.dataset import load_dataset, render_dataset

    folder: Path = tmp_path_factory.mktemp("rendered")
    render_dataset(folder, num_scenes=12, seed=0)
    return load_dataset(folder)
