"""A distillation LoRA as the student that is refined: the bundled one on the bundled teacher, by command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from t2mv_core.bundle import ModelBundle
from t2mv_core.cameras import DEFAULT_RIG
from t2mv_core.denoiser import encode_cameras
from t2mv_core.formats.safetensors_io import read_safetensors
from t2mv_core.formats.sources import ModelSources
from t2mv_core.loading import load_bundle
from t2mv_core.lora.files import load_lora
from t2mv_core.samplers import SamplingSettings, sample_standard
from t2mv_core.text import encode_text
from t2mv_core.toybox import toybox_path
from t2mv_core.trajectory import SeededNoise
from training import evaluate
from training.mvczigal import main

STUDENT = toybox_path("lcm_lora.safetensors")
WORDS = [
    "--preset", "demo", "model.name=toybox-teacher", "model.solver=lcm", "model.lora_rank=2",
    f"model.base_loras=[{{path: '{STUDENT}'}}]", "sampling.guidance_scale=1", "sampling.num_steps=2",
    "sampling.prompts_per_iteration=2", "optim.prompts_per_update=2", "optim.lr=1e-2", "optim.kl_weight=1",
    "constraint.threshold_prompts=2", "run.iterations_per_epoch=1", "run.trackers=[]", "run.sheet_prompts=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def teacher() -> ModelBundle:
    return load_bundle(ModelSources("toybox-teacher", solver="lcm"))


def draw(bundle: ModelBundle) -> torch.Tensor:
    settings = SamplingSettings(num_steps=2, guidance_scale=1.0)
    with torch.no_grad():
        condition, cameras = encode_text(bundle, ["a red mug"]), encode_cameras(bundle, DEFAULT_RIG)
        return sample_standard(bundle, condition, cameras, SeededNoise([0]), settings).denoised


def test_the_student_is_refined_measured_and_used(teacher: ModelBundle, tmp_path: Path) -> None:
    before = STUDENT.read_bytes()
    whole = tmp_path / "run"
    assert main([*WORDS, "run.epochs=1", f"run.out_dir={whole}"]) == 0
    assert main([*WORDS, "run.epochs=2", f"run.out_dir={whole}", "--resume", "auto"]) == 0
    path = whole / "lora" / "epoch_0002.safetensors"
    assert STUDENT.read_bytes() == before

    records = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    # Before the first step the policy is its reference; it would be far from the teacher without the LoRA.
    assert records[0]["reference_kl"] < 1e-12 < records[1]["reference_kl"]
    metadata = read_safetensors(path)[1]
    assert (metadata["solver"], metadata["base_model"]) == ("lcm", "toybox-teacher")
    assert json.loads(metadata["base_loras"])[0]["file"] == "lcm_lora.safetensors"

    student = load_lora(teacher, STUDENT)
    teacher_alone, untrained, trained = draw(teacher), draw(student), draw(load_lora(student, path))
    assert (untrained - teacher_alone).abs().max() > 1e-3
    assert (trained - untrained).abs().max() > 1e-3
    assert torch.equal(untrained, draw(student))

    words = ["--run", str(whole), "--lora", str(path), "--samplers", "standard", "--num-prompts", "2"]
    report = evaluate.run(*evaluate.parse([*words, "--seeds", "0", "--out", str(tmp_path / "measured")]))
    base, refined = json.loads(report.with_suffix(".json").read_text())["variants"]
    assert base["measures"]["view_reward"]["mean"] != refined["measures"]["view_reward"]["mean"]
