"""Stages stop and go on without losing or repeating anything."""

from pathlib import Path

import pytest
import torch
from torch import nn

from training.toybox.stages.stage import Checkpointer, trapezoid_lr, update_rng


def _train(path: Path, stop_after: int | None, total: int = 6) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    checkpointer = Checkpointer(path, {"layer": layer, "optimizer": optimizer}, interval_s=0.0)
    for update in checkpointer.updates(total, "test"):
        if update == stop_after:
            break
        rows = torch.from_numpy(update_rng(0, update).normal(size=(4, 3))).float()
        loss = (layer(rows) + torch.randn(4, 2)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return layer


def test_a_stopped_stage_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = _train(tmp_path / "whole.pt", None)
    _train(tmp_path / "parts.pt", 3)
    resumed = _train(tmp_path / "parts.pt", None)
    assert torch.equal(whole.weight, resumed.weight)


def test_a_finished_stage_does_nothing(tmp_path: Path) -> None:
    first = _train(tmp_path / "state.pt", None)
    saved = (tmp_path / "state.pt").stat().st_mtime_ns
    again = _train(tmp_path / "state.pt", None)
    assert torch.equal(first.weight, again.weight)
    assert (tmp_path / "state.pt").stat().st_mtime_ns == saved


def test_trapezoid_rises_stays_and_falls() -> None:
    rates = [trapezoid_lr(update, 1000, 1.0, warmup=100, decay_share=0.3) for update in range(1000)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[99] == rates[400] == rates[700] == 1.0
    assert rates[850] == pytest.approx(0.5)  # 150 of the last 300 updates are left
    assert min(rates[701:]) == pytest.approx(0.01)


def test_the_plateau_does_not_depend_on_the_total() -> None:
    assert trapezoid_lr(300, 1000, 2.0) == trapezoid_lr(300, 2000, 2.0) == 2.0
