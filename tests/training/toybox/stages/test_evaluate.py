"""The evaluate stage remembers what it measured, as long as weights and questions are the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from t2mv_core.loading import load_bundle
from t2mv_core.rewards.registry import load_reward
from t2mv_core.samplers import SamplingSettings
from t2mv_core.toybox.judge import load_judge
from training.algorithm.scoring import Rewards
from training.evaluation.measure import Instruments, Variant
from training.toybox.data.captions import DEV_PROMPTS
from training.toybox.stages import evaluate as evaluate_stage
from training.toybox.stages.evaluate import Memory, fingerprint, measure_model


def test_a_measurement_is_made_once_for_the_same_weights_and_questions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewards = Rewards(
        {"toybox_clip": load_reward("toybox_clip")}, {"toybox_hyperscore": load_reward("toybox_hyperscore")}
    )
    bundle, instruments = load_bundle("toybox"), Instruments(rewards, load_judge())
    variant = Variant("student, 1 step", "standard", SamplingSettings(1, 2.0))
    specs = DEV_PROMPTS[:1]
    first = measure_model(bundle, instruments, variant, specs, Memory(tmp_path, "weights"))
    assert len(list(tmp_path.glob("*.pt"))) == 1

    def not_again(*_args: object) -> None:
        raise RuntimeError("measured again")

    monkeypatch.setattr(evaluate_stage, "measure", not_again)
    again = measure_model(bundle, instruments, variant, specs, Memory(tmp_path, "weights"))
    assert again.values.keys() == first.values.keys()
    for name, table in first.values.items():  # NaN where a measure does not apply
        torch.testing.assert_close(again.values[name], table, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(again.images, first.images)
    for other_specs, memory in (
        (DEV_PROMPTS[1:2], Memory(tmp_path, "weights")),
        (specs, Memory(tmp_path, "other weights")),
    ):
        with pytest.raises(RuntimeError, match="measured again"):
            measure_model(bundle, instruments, variant, other_specs, memory)


def test_the_fingerprint_sees_every_weight_and_configuration(tmp_path: Path) -> None:
    for name in ("model/unet/config.json", "judge/judge.safetensors", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
    before = fingerprint(tmp_path)
    (tmp_path / "notes.txt").write_bytes(b"2")
    (tmp_path / "lcm_lora.safetensors").write_bytes(b"2")  # measured by its own stage
    assert fingerprint(tmp_path) == before
    for name in ("model/unet/config.json", "judge/judge.safetensors"):
        (tmp_path / name).write_bytes(b"2")
        assert fingerprint(tmp_path) != before
        (tmp_path / name).write_bytes(b"1")
