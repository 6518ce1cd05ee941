"""Stage `render`: the training scenes and the held-out scenes."""

from __future__ import annotations

import os

from ..data.dataset import render_dataset
from .stage import StageConfig

NUM_TRAIN_SCENES = 8000
NUM_TEST_SCENES = 600


def run(config: StageConfig) -> None:
    """Render both sets; held-out combinations occur in the second one only."""
    workers = min(8, os.cpu_count() or 1)
    num_train, num_test = (66, 44) if config.quick else (NUM_TRAIN_SCENES, NUM_TEST_SCENES)
    render_dataset(config.data_dir, num_train, seed=2 * config.seed, workers=workers)
    render_dataset(
        config.test_data_dir, num_test, seed=2 * config.seed + 1, workers=workers, allow_held_out=True
    )
