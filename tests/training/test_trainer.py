"""The training loop on a tiny random model."""

import json
import math

import pytest
import torch

from training.metrics import METRICS, read_metrics
from training.objectives import OBJECTIVES
from training.trainer import Trainer


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_every_objective_runs_and_leaves_a_run_folder(objective, tiny_bundle, plain_rewards, tiny_config):
    trainer = Trainer(tiny_config(objective), tiny_bundle, plain_rewards)
    assert trainer.run()
    root = trainer.folder.root
    records = read_metrics(root / "metrics.jsonl")
    assert [r["iteration"] for r in records] == [1, 2, 3, 4]
    assert all(set(r) == set(METRICS) and all(map(math.isfinite, r.values())) for r in records)
    for name in ("config.yaml", "curves.png", "samples/epoch_0002.png", "lora/epoch_0001.safetensors", "last"):
        assert (root / name).exists(), name
