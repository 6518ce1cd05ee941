"""Shared by the tests of the recipe: a few really rendered scenes."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.toybox.dataset import Dataset, load_dataset, render_dataset


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Twelve scenes of the training set."""
    folder: Path = tmp_path_factory.mktemp("rendered")
    render_dataset(folder, num_scenes=12, seed=0)
    return load_dataset(folder)
