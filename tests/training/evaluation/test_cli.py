"""Measuring: equal noise, the judge's verdicts, reports, and the command line."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from t2mv_core.cameras import DEFAULT_RIG
from t2mv_core.samplers import SamplingSettings
from t2mv_core.toybox.judge import Judge
from t2mv_core.toybox.prompt_lists import find_specs
from training.config import config_to_dict, load_config
from training.data.prompts import load_prompts, load_split
from training.evaluation import cli as evaluate
from training.evaluation.cli import build_parser, make_variants, name_variants, spread
from training.evaluation.measure import Instruments, Questions, Variant, judge_sets, measure
from training.evaluation.report import applicable, differences, write_report
from training.run.trainer import Trainer
from training.toybox.data.scenes import COLOURS, FAMILIES

STANDARD = Variant("standard", "standard", SamplingSettings(num_steps=2))
ZMV = Variant("zmv", "zmv", SamplingSettings(num_steps=2))


@pytest.fixture(scope="module")
def questions():
    prompts = tuple(spread(load_prompts("heldout"), 3))
    return Questions(prompts, (0, 1), batch_size=2, specs=find_specs(prompts))


@pytest.fixture
def instruments(plain_rewards):
    torch.manual_seed(0)
    return Instruments(plain_rewards, Judge(tuple(FAMILIES), tuple(COLOURS), 6))


def test_a_variant_measured_twice_differs_by_nothing(tiny_bundle, instruments, questions, tmp_path):
    first, again, zmv = (
        measure(tiny_bundle, DEFAULT_RIG.azimuths_deg, instruments, variant, questions)
        for variant in (STANDARD, STANDARD, ZMV)
    )
    assert first.images.shape == (3, 6, 3, 16, 16)
    assert {"view_reward", "joint_reward", "joint_overall", "judge_family", "judge_colour"} <= set(
        first.values
    )
    assert all(values.shape == (3, 2) for values in first.values.values())
    assert all(change.mean == 0 for change in differences(again, first).values())
    assert differences(zmv, first)["view_reward"].mean != 0
    assert (first.evaluations_per_set, zmv.evaluations_per_set) == (2, 4)
    path = write_report([first, zmv], questions, tmp_path / "out", "the command", ["A remark."])
    text = path.read_text()
    assert "the command" in text
    assert "A remark." in text
    assert "| zmv | 4 |" in text
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["variants"][1]["settings"]["num_steps"] == 2
    assert report["variants"][1]["measures"]["view_reward"]["count"] == 3
    assert (tmp_path / "out" / "sheet.png").exists()


def test_a_trained_lora_changes_only_its_own_variant(
    tiny_bundle, plain_rewards, tiny_config, questions, instruments
):
    before = measure(tiny_bundle, (0.0, 90.0), Instruments(plain_rewards), STANDARD, questions)
    trainer = Trainer(tiny_config(run={"epochs": 1, "sheet_prompts": 0}), tiny_bundle, plain_rewards)
    trainer.run()
    lora = Variant("lora", "standard", SamplingSettings(num_steps=2), trainer.folder.lora_path(1))
    after = measure(tiny_bundle, (0.0, 90.0), Instruments(plain_rewards), lora, questions)
    base = measure(tiny_bundle, (0.0, 90.0), Instruments(plain_rewards), STANDARD, questions)
    assert torch.equal(base.values["view_reward"], before.values["view_reward"])
    assert not torch.equal(after.values["view_reward"], before.values["view_reward"])


def test_variants_of_different_questions_are_not_compared(tiny_bundle, plain_rewards, questions):
    fewer = Questions(questions.prompts[:2], questions.seeds)
    ours, theirs = (
        measure(tiny_bundle, (0.0,), Instruments(plain_rewards), STANDARD, asked)
        for asked in (questions, fewer)
    )
    with pytest.raises(ValueError, match="measure them in one run"):
        differences(ours, theirs)


def test_azimuth_counts_for_asymmetric_families_only(instruments):
    specs = find_specs(load_prompts("heldout"))
    values = judge_sets(instruments.judge, torch.rand(len(specs), 6, 3, 64, 64), specs)
    for value, spec in zip(values["judge_azimuth"], specs, strict=True):
        assert value.isnan() != FAMILIES[spec.family].is_asymmetric
    assert ((values["judge_family"] == 0) | (values["judge_family"] == 1)).all()


def test_prompts_the_judge_does_not_know_have_no_specs():
    assert find_specs(["a mug made of jam"]) is None


def test_a_short_evaluation_is_spread_over_the_prompts():
    assert spread([str(i) for i in range(100)], 4) == ["0", "25", "50", "75"]
    assert len(spread(["a", "b"], 100)) == 2


def test_variants_are_base_and_loras_with_every_sampler_and_step_count():
    words = ["--lora", "x/a.safetensors", "--steps", "2", "4", "--out", "o", "--zigzag-steps", "2"]
    variants = make_variants(build_parser().parse_args(words))
    assert len(variants) == 2 * 2 * 2
    assert variants[0].name == "standard, 2 steps, base"
    assert variants[-1].lora == Path("x/a.safetensors")
    assert variants[-1].settings == SamplingSettings(num_steps=4, zigzag_steps=2)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--num-prompts", "0"], "--num-prompts=0 must be at least 1"),
        (["--prompts", "nowhere.txt"], "no prompt set or file 'nowhere.txt'"),
        (["--model", "nowhere"], "no model folder 'nowhere'"),
        (["--steps", "0"], "num_steps=0 must be at least 1"),
        (["--lora", "nowhere.safetensors"], "no weights file"),
        (["--view-rewards", "beauty"], "no reward named 'beauty'"),
        (
            ["--joint-rewards", "toybox_clip"],
            "toybox_clip is a view reward; it cannot be used as joint reward",
        ),
    ],
)
def test_bad_input_gets_a_sentence(
    words, sentence, tiny_model_dir, tmp_path, monkeypatch, capsys, instruments
):
    if not words[0].endswith("-rewards"):
        monkeypatch.setattr(evaluate, "load_instruments", lambda *_: instruments)
    model = [] if "--model" in words else ["--model", str(tiny_model_dir)]
    assert evaluate.main([*model, "--num-prompts", "1", "--out", str(tmp_path / "out"), *words]) == 1
    assert sentence in capsys.readouterr().err


def test_the_command_line_writes_a_report(tiny_model_dir, tmp_path, monkeypatch, capsys, instruments):
    monkeypatch.setattr(evaluate, "load_instruments", lambda *_: instruments)
    words = ["--model", str(tiny_model_dir), "--num-prompts", "2", "--seeds", "3", "--steps", "1"]
    assert evaluate.main([*words, "--out", str(tmp_path / "out")]) == 0
    assert "standard, 1 steps, base" in capsys.readouterr().out


def test_loras_of_several_runs_are_told_apart(tmp_path):
    paths = [tmp_path / run / "lora" / "best.safetensors" for run in ("a", "b")]
    assert name_variants(paths) == {None: "base", paths[0]: "a/lora/best", paths[1]: "b/lora/best"}
    assert name_variants(paths[:1]) == {None: "base", paths[0]: "best"}
    assert name_variants([]) == {None: "base"}
    with pytest.raises(ValueError, match="names a file twice"):
        name_variants([paths[0], paths[0]])


def test_a_run_gives_its_settings_and_held_out_prompts(tmp_path):
    config = load_config(
        "demo", ["sampling.num_steps=3", "sampling.held_out_share=0.2", "sampling.view_scale=1.5"]
    )
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config_to_dict(config)))
    arguments = evaluate.parse(["--run", str(tmp_path), "--guidance-scale", "4", "--out", "x"])
    assert (arguments.steps, arguments.view_scale, arguments.guidance_scale) == ([3], 1.5, 4.0)
    assert arguments.held_out == load_split("toybox", 0.2).held_out
    assert arguments.prompts is None
    assert make_variants(arguments)[0].settings.view_scale == 1.5
    assert evaluate.parse(["--out", "x"]).prompts == "heldout"


def test_measures_that_apply_to_nothing_are_left_out():
    values = {"a": torch.ones(2, 1), "b": torch.full((2, 1), torch.nan)}
    assert list(applicable(values)) == ["a"]
