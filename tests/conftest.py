"""Shared by all tests: a few really rendered scenes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from training.toybox.data.dataset import Dataset


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Twelve scenes of the toybox's training set, of twelve families."""
    from training.toybox.data.dataset import load_dataset, render_dataset

    folder: Path = tmp_path_factory.mktemp("rendered")
    render_dataset(folder, num_scenes=12, seed=0)
    return load_dataset(folder)
