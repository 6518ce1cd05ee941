"""Measuring: equal noise, the judge's verdicts, reports, and the command line."""

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from t2mv_core.rewards.inputs import PromptTokens
from t2mv_core.samplers import SamplingSettings
from t2mv_core.text import clip_tokenizer
from t2mv_core.toybox.judge import Judge
from t2mv_core.toybox.prompt_lists import PromptSpec, find_specs
from training import demo, evaluate
from training.config import config_to_dict, load_config
from training.data.prompts import load_prompts, load_split
from training.evaluate import find_prompts, make_variants, name_variants
from training.evaluation.measure import Instruments, Questions, Variant, judge_sets, measure, spread
from training.evaluation.report import applicable, differences, write_report
from training.run.trainer import Trainer
from training.toybox.data.scenes import COLOURS, FAMILIES

STANDARD = Variant("standard", "standard", SamplingSettings(num_steps=2))
ZMV = Variant("zmv", "zmv", SamplingSettings(num_steps=2))


@pytest.fixture(scope="module")
def questions():
    prompts = spread(load_prompts("heldout"), 3)
    return Questions(prompts, (0, 1), batch_size=2, specs=find_specs(prompts))


@pytest.fixture
def instruments(plain_rewards):
    torch.manual_seed(0)
    return Instruments(plain_rewards, Judge(tuple(FAMILIES), tuple(COLOURS), ("wooden", "metal"), 6))


def test_a_variant_measured_twice_differs_by_nothing(tiny_bundle, instruments, questions, tmp_path):
    first, again, zmv = (
        measure(tiny_bundle, instruments, variant, questions) for variant in (STANDARD, STANDARD, ZMV)
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


@pytest.mark.parametrize("num_kept", [1, 2, 3])
def test_only_the_first_prompts_pictures_are_kept(tiny_bundle, instruments, questions, num_kept):
    whole = measure(tiny_bundle, instruments, STANDARD, questions)
    found = measure(tiny_bundle, instruments, STANDARD, replace(questions, num_kept=num_kept))
    assert torch.equal(found.images, whole.images[:num_kept])
    assert found.images.untyped_storage().nbytes() == found.images.nbytes
    assert torch.equal(found.values["view_reward"], whole.values["view_reward"])


def test_variants_of_different_questions_are_not_compared(tiny_bundle, plain_rewards, questions):
    ours, theirs = (
        measure(
            tiny_bundle, Instruments(plain_rewards), STANDARD, Questions(prompts, (0,), azimuths_deg=(0.0,))
        )
        for prompts in (questions.prompts, questions.prompts[:2])
    )
    with pytest.raises(ValueError, match="measure them in one run"):
        differences(ours, theirs)


def test_azimuth_counts_for_asymmetric_families_only(instruments):
    specs = find_specs(load_prompts("heldout"))
    values = judge_sets(instruments.judge, torch.rand(len(specs), 6, 3, 64, 64), specs)
    for value, spec in zip(values["judge_azimuth"], specs, strict=True):
        assert value.isnan() != FAMILIES[spec.family].is_asymmetric
    assert ((values["judge_family"] == 0) | (values["judge_family"] == 1)).all()


def test_part_and_relation_count_where_the_prompt_names_them(instruments):
    specs = [
        PromptSpec("", "mug", "red", part, companion)
        for part, companion in ((None, None), ("blue", None), (None, "green"), ("wooden", "green"))
    ]
    values = judge_sets(instruments.judge, torch.rand(len(specs), 6, 3, 64, 64), specs)
    assert values["judge_part"].isnan().tolist() == [True, False, True, False]
    assert values["judge_relation"].isnan().tolist() == [True, True, False, False]


def test_a_short_evaluation_is_spread_over_the_prompts():
    assert spread([str(i) for i in range(100)], 4) == ("0", "25", "50", "75")
    assert len(spread(["a", "b"], 100)) == 2


def test_variants_are_base_and_loras_with_every_sampler_and_step_count():
    settings = SamplingSettings(num_steps=4, zigzag_steps=2)
    variants = make_variants(settings, [Path("x/a.safetensors")], ["standard", "zmv"], [2, 4])
    assert len(variants) == 2 * 2 * 2
    assert variants[0].name == "standard, 2 steps, base"
    assert variants[-1].lora == Path("x/a.safetensors")
    assert variants[-1].settings == settings


def test_a_lora_is_measured_at_every_strength(tiny_bundle, plain_rewards, tiny_config, questions):
    asked = Questions(questions.prompts, (0,), azimuths_deg=(0.0, 90.0))
    before = measure(tiny_bundle, Instruments(plain_rewards), STANDARD, asked)
    trainer = Trainer(tiny_config(run={"epochs": 1, "sheet_prompts": 0}), tiny_bundle, plain_rewards)
    trainer.run()
    path, settings = trainer.folder.lora_path(1), SamplingSettings(num_steps=2)
    variants = make_variants(settings, [path], ["standard"], [2], [0.0, 0.5, 1.0])
    names = [variant.name.rpartition(", ")[2] for variant in variants]
    assert names == ["base", "epoch_0001 at 0", "epoch_0001 at 0.5", "epoch_0001"]
    found = [measure(tiny_bundle, Instruments(plain_rewards), variant, asked) for variant in variants]
    base, zero, half, whole = (one.values["view_reward"] for one in found)
    assert torch.equal(base, before.values["view_reward"])  # an attached LoRA changes its variant only
    assert torch.equal(zero, base)
    assert not torch.equal(half, base)
    assert not torch.equal(half, whole)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--num-prompts", "0"], "--num-prompts=0 must be at least 1"),
        (["--strengths", "nan"], "must be finite numbers"),
        (["--prompts", "nowhere.txt"], "no prompt set or file 'nowhere.txt'"),
        (["model.name=nowhere"], "no model folder 'nowhere'"),
        (["--steps", "0"], "num_steps=0 must be at least 1"),
        (["reward.view=beauty"], "no reward named 'beauty'"),
        (["reward.joint=toybox_clip"], "toybox_clip is a view reward; it cannot be used as joint reward"),
        (["sampling.num_step=2"], "did you mean sampling.num_steps?"),
        (["--samplers", "zmv", "smpling.num_steps=2"], "did you mean sampling?"),
        (["--preset", "nowhere"], "no preset 'nowhere'"),
        (["word"], "'word' is not an override"),
        (["--device", "tpu"], "model.device='tpu' is not known"),
    ],
)
def test_bad_input_gets_a_sentence(
    words, sentence, tiny_model_dir, tmp_path, monkeypatch, capsys, instruments
):
    if not words[0].startswith("reward"):
        monkeypatch.setattr(evaluate, "load_instruments", lambda *_: instruments)
    model = [f"model.name={tiny_model_dir}", "--num-prompts", "1", "--out", str(tmp_path / "out")]
    assert evaluate.main([*model, *words]) == 1
    assert sentence in capsys.readouterr().err


def test_the_reports_command_can_be_typed_again(tiny_model_dir, tmp_path, monkeypatch, capsys, instruments):
    monkeypatch.setattr(evaluate, "load_instruments", lambda *_: instruments)
    words = [f"model.name={tiny_model_dir}", "--num-prompts", "2", "--seeds", "3", "--steps", "1"]
    assert evaluate.parse([*words, "--strengths", "0.5", "1", "--out", "x"])[0].strengths == [0.5, 1]
    monkeypatch.setattr("sys.argv", ["evaluate", *words, "--out", str(tmp_path / "my report")])
    assert evaluate.main() == 0
    report = json.loads((tmp_path / "my report" / "report.json").read_text("utf-8"))
    assert shlex.split(report["command"])[-1] == str(tmp_path / "my report")
    assert "standard, 1 steps, base" in capsys.readouterr().out
    assert "**Few prompts**" in (tmp_path / "my report" / "report.md").read_text("utf-8")


def test_a_failure_keeps_the_report_of_the_variants_before_it(
    tiny_model_dir, tmp_path, monkeypatch, capsys, instruments
):
    def look(bundle, instruments, variant, questions):
        if variant.sampler == "zmv":
            raise FloatingPointError("not a number")
        return measure(bundle, instruments, variant, questions)

    monkeypatch.setattr(evaluate, "load_instruments", lambda *_: instruments)
    monkeypatch.setattr(evaluate, "measure", look)
    words = [f"model.name={tiny_model_dir}", "--num-prompts", "2", "--seeds", "3", "--steps", "1"]
    assert evaluate.main([*words, "--out", str(tmp_path / "out")]) == 1
    assert "not a number" in capsys.readouterr().err
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    (variant,) = report["variants"]
    assert variant["sampler"] == "standard"
    assert report["remarks"][0] == "**Not finished**: 1 of 2 variants."


def test_a_folder_that_cannot_be_written_is_noticed_before_the_model_is_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "load_base_model", lambda *_: pytest.fail("loaded"))
    (tmp_path / "file").touch()
    assert evaluate.main(["--out", str(tmp_path / "file")]) == 1
    assert "File exists" in capsys.readouterr().err


def test_a_report_on_prompts_that_are_trained_on_says_so(
    tiny_model_dir, tmp_path, monkeypatch, caplog, instruments
):
    monkeypatch.setattr(evaluate, "load_instruments", lambda *_: instruments)
    (tmp_path / "train.txt").write_text("a cat\na dog\n")
    (tmp_path / "asked.txt").write_text("A CAT\nan ant\n")
    settings = [f"model.name={tiny_model_dir}", f"sampling.prompts={tmp_path / 'train.txt'}"]
    words = [*settings, "--prompts", str(tmp_path / "asked.txt"), "--seeds", "3", "--steps", "1"]
    assert evaluate.main([*words, "--out", str(tmp_path / "out")]) == 0
    sentence = "**Not held out**: these settings train on 1 of 2 prompts ('A CAT')."
    assert sentence in (tmp_path / "out" / "report.md").read_text("utf-8")
    assert sentence in caplog.text
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert (report["remarks"], report["prompts"]) == ([sentence], ["A CAT", "an ant"])
    (tmp_path / "train.txt").unlink()
    assert evaluate.main([*words, "--out", str(tmp_path / "again")]) == 0
    assert "trained on is not known" in (tmp_path / "again" / "report.md").read_text("utf-8")


def test_a_tilde_on_the_command_line_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    arguments, _ = evaluate.parse(["--out=~/o", "--prompts=~/p.txt", "--lora", "~/l.safetensors"])
    assert (arguments.out, arguments.lora) == (tmp_path / "o", [tmp_path / "l.safetensors"])
    assert arguments.prompts == f"{tmp_path}/p.txt"


def test_a_report_says_what_is_not_read_as_it_may_be_meant(
    tiny_model_dir, tmp_path, monkeypatch, instruments
):
    tokens = PromptTokens(clip_tokenizer(600), 4, "reader")
    monkeypatch.setattr(instruments.rewards.view["redness"], "tokens", tokens, raising=False)
    monkeypatch.setattr(evaluate, "load_instruments", lambda *_: instruments)
    (tmp_path / "asked.txt").write_text("a (b:2)\na b\n")
    words = [f"model.name={tiny_model_dir}", "--prompts", str(tmp_path / "asked.txt"), "--seeds", "3"]
    assert evaluate.main([*words, "--steps", "1", "--out", str(tmp_path / "out")]) == 0
    sentence = "T2MV reads as plain words, unlike other programs: “(b:2)” (in 1 of 2 prompts)."
    assert sentence in (tmp_path / "out" / "report.md").read_text("utf-8")
    remarks = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))["remarks"]
    assert remarks[-2] == sentence
    assert remarks[-1].startswith("reader reads 2 tokens of a prompt; it does not read “")


def test_a_report_says_what_of_the_models_files_has_no_effect(
    tiny_model_dir, tmp_path, monkeypatch, caplog, instruments
):
    monkeypatch.setattr(evaluate, "load_instruments", lambda *_: instruments)
    folder = shutil.copytree(tiny_model_dir, tmp_path / "model")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), "unheard_of": 1}))
    words = [f"model.name={folder}", "--num-prompts", "2", "--seeds", "3", "--steps", "1"]
    assert evaluate.main([*words, "--out", str(tmp_path / "out")]) == 0
    sentence = "T2MV does not know the scheduler's unheard_of, and ignores it."
    assert sentence in (tmp_path / "out" / "report.md").read_text("utf-8")
    assert caplog.text.count(sentence) == 1


def test_loras_of_several_runs_are_told_apart(tmp_path):
    paths = [tmp_path / run / "lora" / "best.safetensors" for run in ("a", "b")]
    assert name_variants(paths) == {None: "base", paths[0]: "a/lora/best", paths[1]: "b/lora/best"}
    assert name_variants(paths[:1]) == {None: "base", paths[0]: "best"}
    assert name_variants([]) == {None: "base"}
    with pytest.raises(ValueError, match="names a file twice"):
        name_variants([paths[0], paths[0]])


def test_a_run_gives_its_settings_and_held_out_prompts(tmp_path):
    changes = ["sampling.num_steps=3", "sampling.held_out_share=0.2", "sampling.view_scale=1.5"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config_to_dict(load_config("demo", changes))))
    words = ["--run", str(tmp_path), "--out", "x", "--lora", "a=1.safetensors", "sampling.guidance_scale=4"]
    arguments, config = evaluate.parse([*words, "--device", "cuda:1"])
    assert (config.sampling.num_steps, config.sampling.view_scale) == (3, 1.5)
    assert (config.sampling.guidance_scale, config.model.device) == (4.0, "cuda:1")
    assert arguments.lora == [Path("a=1.safetensors")]
    assert find_prompts(arguments, config) == load_split("toybox_all", 0.2).held_out
    arguments, config = evaluate.parse(["--out", "x", "--num-prompts", "100"])
    assert find_prompts(arguments, config) == tuple(load_prompts("heldout"))
    arguments, config = evaluate.parse(["--out", "x", "evaluation.prompts=dev"])
    assert find_prompts(arguments, config) == tuple(load_prompts("dev"))


def test_prompts_that_chose_the_best_lora_are_left_out_or_named():
    words = ["--out", "x", "sampling.held_out_share=0.2", "evaluation.every=5", "evaluation.num_prompts=16"]
    arguments, config = evaluate.parse([*words, "evaluation.stop_measure=view_reward"])
    split = load_split(config.sampling.prompts, 0.2)
    watched = spread(split.held_out, 16)
    found = find_prompts(arguments, config)
    assert set(found) == set(split.held_out) - set(watched)
    assert evaluate.remark_on_prompts(found, config) == []
    # all prompts of a list chose: it is measured on none the less, and the report says so
    words = ["evaluation.stop_measure=view_reward", "evaluation.prompts=dev", "evaluation.num_prompts=999"]
    arguments, config = evaluate.parse(["--out", "x", "evaluation.every=5", *words])
    found = find_prompts(arguments, config)
    assert tuple(found) == tuple(load_prompts("dev"))
    (remark,) = evaluate.remark_on_prompts(found, config)
    assert remark.startswith(f"**Chosen on these prompts**: by {len(found)} of {len(found)} of them")
    _, config = evaluate.parse(["--out", "x", "evaluation.every=5", *words[1:]])  # chooses nothing
    assert evaluate.remark_on_prompts(found, config) == []


def test_measures_that_apply_to_nothing_are_left_out():
    values = {"a": torch.ones(2, 1), "b": torch.full((2, 1), torch.nan)}
    assert list(applicable(values)) == ["a"]


class StopError(ValueError):
    """Ends a command where a test has seen enough."""


@pytest.mark.parametrize(("setting", "has_gpu", "expected"), [
    ("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu"),
])  # fmt: skip
@pytest.mark.parametrize("command", ["evaluate", "demo"])
def test_a_graphics_card_is_used_unless_the_configuration_says_otherwise(
    command, setting, has_gpu, expected, tmp_path, monkeypatch, capsys
):
    devices = []

    def load_bundle(_sources, device, _dtype):
        devices.append(str(device))
        raise StopError("seen enough")

    monkeypatch.setattr("training.models.base_loras.load_bundle", load_bundle)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(has_gpu))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    config = load_config("demo", [f"model.device={setting}", "sampling.batch_size=3"])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config_to_dict(config)))
    out = ["--out", str(tmp_path / "out")]
    if command == "evaluate":
        assert evaluate.main(["--run", str(tmp_path), *out]) == 1
    else:
        assert demo.main(["--preset", str(tmp_path / "config.yaml"), *out]) == 1
    assert "seen enough" in capsys.readouterr().err
    assert devices == [expected]


def test_the_batch_size_is_the_runs(tiny_model_dir, tmp_path, monkeypatch, instruments):
    asked = []

    def look(_bundle, _instruments, _variant, questions):
        asked.append(questions.batch_size)
        raise StopError

    monkeypatch.setattr(evaluate, "load_instruments", lambda *_: instruments)
    monkeypatch.setattr(evaluate, "measure", look)
    config = load_config("demo", [f"model.name={tiny_model_dir}", "sampling.batch_size=3"])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config_to_dict(config)))
    assert evaluate.main(["--run", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert asked == [3]


def test_a_lora_that_is_not_there_is_noticed_before_the_model_is_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "load_base_model", lambda *_: pytest.fail("loaded"))
    assert evaluate.main(["--lora", str(tmp_path / "best.safetensors"), "--out", str(tmp_path / "out")]) == 1
    assert "There is no LoRA at" in capsys.readouterr().err
