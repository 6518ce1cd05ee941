"""The report says how much of each LoRA acted, and what in its file contradicts the evaluation."""

import json
import logging

import pytest
import torch

from t2mv_core.formats.safetensors_io import write_safetensors
from t2mv_core.lora.adapters import adaptable_layers
from t2mv_core.samplers import SamplingSettings
from training import evaluate
from training.evaluation.loras import examine_loras, find_contradictions
from training.evaluation.measure import Instruments

FACTS = {"solver": "lcm", "guidance_scale": "7.0", "num_steps": "2"}


@pytest.fixture
def write_lora(tiny_bundle, tmp_path):
    """Writes a LoRA over the linear layers of the attentions, every other one as a DoRA."""

    def write(metadata, is_half_dora=False, size=0.1):
        tensors = {}
        names = [name for name in adaptable_layers(tiny_bundle.unet) if ".attn" in name and ".to_" in name]
        for index, name in enumerate(names):
            layer = tiny_bundle.unet.get_submodule(name)
            stem = f"lora_unet_{name.replace('.', '_')}"
            tensors[f"{stem}.lora_down.weight"] = torch.ones(2, layer.in_features)
            tensors[f"{stem}.lora_up.weight"] = torch.full((layer.out_features, 2), size)
            tensors[f"{stem}.alpha"] = torch.tensor(2.0)
            if is_half_dora and index % 2:
                tensors[f"{stem}.dora_scale"] = torch.ones(layer.out_features, 1)
        path = tmp_path / "half_dora.safetensors"
        write_safetensors(tensors, path, metadata)
        return path, len(names)

    return write


def test_what_was_left_out_is_counted_in_report_and_log(
    write_lora, tiny_model_dir, plain_rewards, tmp_path, monkeypatch, caplog
):
    path, count = write_lora({"num_steps": "8", "evaluation_view_reward": "1"}, is_half_dora=True)
    acting, left_out = count - count // 2, count // 2
    monkeypatch.setattr(evaluate, "load_instruments", lambda *_: Instruments(plain_rewards))
    words = [f"model.name={tiny_model_dir}", "--num-prompts", "1", "--seeds", "0", "--samplers", "standard"]
    words += ["--steps", "1", "--lora", str(path), "--out", str(tmp_path / "out")]
    with caplog.at_level(logging.INFO):
        report = evaluate.run(*evaluate.parse(words))
    kind = f"{left_out} modules ({4 * left_out} keys) are of another kind of adapter (DoRA), "
    kind += "which T2MV applies only in Load LoRA, native"
    contradiction = "its file states num_steps=8, this evaluation has 1"
    text = report.read_text()
    assert f"**half_dora**: {acting} modules act, {left_out} are left out." in text
    assert f"* {kind}." in text
    assert f"* {contradiction}." in text
    assert "**Chosen on other settings' prompts**: half_dora was chosen" in text
    (record,) = json.loads(report.with_name("report.json").read_text())["loras"]
    assert (record["modules"], record["modules_left_out"]) == (acting, left_out)
    assert (record["name"], record["keys_left_out"]) == ("half_dora", 4 * left_out)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert f"{path}: {kind}" in warnings
    assert f"{path}: {contradiction}" in warnings


def test_a_lora_without_effect_says_so(write_lora, tiny_bundle):
    path, count = write_lora({}, size=0.0)
    (record,) = examine_loras(tiny_bundle, {path: "zeros"}, SamplingSettings(num_steps=2), [2])
    assert record.modules == count
    assert "it changes nothing" in record.sentences[1]


@pytest.mark.parametrize("facts", [{}, FACTS, {**FACTS, "guidance_scale": "7", "num_steps": "None"}])
def test_silent_and_agreeing_files_pass(tiny_bundle, facts):
    moved = f"C:\\models\\{tiny_bundle.name.rpartition('/')[2]}"
    facts = {**facts, "base_model": f"{moved}.SFT", "ss_base_model_version": "sdxl_base_v1-0"}
    settings = SamplingSettings(num_steps=2, guidance_scale=7.0)
    assert find_contradictions(facts, tiny_bundle, settings, [2, 4]) == []


@pytest.mark.parametrize(
    ("fact", "value", "now"),
    [
        ("base_model", "lcm-sdxl", None),
        ("solver", "ddim-trailing", "lcm"),
        ("sampler", "ddim", "lcm"),
        ("guidance_scale", "1.5", "7"),
        ("num_steps", "8", "2, 4"),
    ],
)
def test_a_fact_that_contradicts_the_evaluation_is_named(tiny_bundle, fact, value, now):
    settings = SamplingSettings(num_steps=2, guidance_scale=7.0)
    now = tiny_bundle.name if now is None else now
    assert find_contradictions({**FACTS, fact: value}, tiny_bundle, settings, [2, 4]) == [
        f"its file states {fact}={value}, this evaluation has {now}"
    ]


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        ("modelspec.architecture", "stable-diffusion-v1/lora"),
        ("modelspec.architecture", "flux-1-dev/lora"),
        ("ss_base_model_version", "sd_v1"),
        ("ss_base_model_version", "sd3m"),
    ],
)
def test_a_lora_for_another_kind_of_model_is_named(tiny_bundle, fact, value):
    settings = SamplingSettings(num_steps=2)
    (sentence,) = find_contradictions({fact: value}, tiny_bundle, settings, [2])
    assert f"{fact}={value}, which is another kind of model" in sentence
