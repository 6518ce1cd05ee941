"""The comparison: what is asked of every method, what makes a result valid, and what is concluded."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from t2mv_core.samplers import SamplingSettings
from training import compare
from training.algorithm.objectives import OBJECTIVES
from training.config import BaseLoraConfig, ModelConfig, change_settings, config_to_dict, load_config
from training.data.prompts import load_prompts
from training.evaluation.intervals import Interval, bootstrap, bootstrap_two_way, student_interval
from training.evaluation.measure import Measurement, Variant
from training.experiments.chance import largest_lambdas_by_chance
from training.experiments.claims import CLAIMS, verdict
from training.experiments.comparison import (
    Task,
    candidate_seeds,
    chosen_lora,
    keep_best,
    make_tasks,
    run_task,
    training_record,
)
from training.experiments.comparison_report import write_comparison
from training.experiments.costs import training_costs
from training.experiments.methods import ABLATIONS, CONTROLS, DEFAULT_METHODS, METHODS
from training.experiments.results import COLUMNS, MethodResult, load_results, paired_difference
from training.run.folder import RunFolder

ROOT = Path(__file__).parents[3]
TINY = [
    "run.epochs=1",
    "run.iterations_per_epoch=1",
    "sampling.prompts_per_iteration=2",
    "optim.prompts_per_update=1",
    "constraint.threshold_prompts=2",
]


@pytest.fixture
def task(tmp_path):
    config = load_config("comparison", TINY)
    prompts = tuple(load_prompts("heldout")[:3])
    return Task("none", 0, config, prompts, tmp_path / "runs", tmp_path / "work")


def result(method, seed, **values):
    return {"method": method, "seed": seed, "values": values}


def found(method, seeds, values):
    """Values [P, S] as a method's results."""
    return MethodResult(values, [result(method, seed) for seed in seeds])


def test_every_claim_is_about_known_methods_and_columns():
    parts = [part for claim in CLAIMS.values() for part in claim]
    assert parts
    assert {method for part in parts for method in part[:2]} <= set(METHODS)
    assert {measure for *_, measure, _ in parts} <= set(COLUMNS)
    assert {m.objective for m in METHODS.values()} - {None} == set(OBJECTIVES)
    assert {*DEFAULT_METHODS, *CONTROLS, *ABLATIONS} <= set(METHODS)


def test_an_ablation_differs_from_the_method_in_its_settings_alone(task):
    method, ablation = (replace(task, method=name) for name in ("mvc_zigal", "mvc_zigal_no_cameras"))
    sampling = replace(method.own_config.sampling, inverse_view_scale=0.0)
    assert ablation.own_config.sampling == sampling != method.own_config.sampling
    assert replace(ablation.own_config, sampling=method.own_config.sampling, run=method.own_config.run) == (
        method.own_config
    )
    assert ablation.key() != method.key()


def test_the_best_candidate_of_each_prompt_is_kept_with_all_its_measures():
    """By the sum of both rewards' z-scores: here the second of the first prompt, the first of the second."""
    values = {
        "view_reward": torch.tensor([[0.5, 0.6, 0.4], [0.9, 0.2, 0.1]]),
        "joint_reward": torch.tensor([[1.0, 3.0, 2.0], [2.0, 2.0, 1.0]]),
        "judge_colour": torch.tensor([[0.0, 1.0, 0.0], [float("nan")] * 3]),
    }
    variant = Variant("best", "standard", SamplingSettings(num_steps=4))
    kept = keep_best(Measurement(variant, values, torch.zeros(2, 6, 3, 1, 1), 2.0, 4.0))
    torch.testing.assert_close(kept.values["view_reward"], torch.tensor([[0.6], [0.9]]))
    torch.testing.assert_close(kept.values["joint_reward"], torch.tensor([[3.0], [2.0]]))
    assert kept.values["judge_colour"][0, 0] == 1.0
    assert kept.values["judge_colour"][1].isnan()
    assert (kept.seconds_per_set, kept.evaluations_per_set) == (6.0, 12.0)


def test_a_reward_that_differs_between_prompts_has_its_say_within_each():
    """Over all prompts, whose view rewards lie far apart, the second candidate's lead would be nothing."""
    values = {
        "view_reward": torch.tensor([[0.5, 0.6, 0.5], [9.0, 9.0, 9.0]]),
        "joint_reward": torch.tensor([[1.0, 0.9, 0.0], [0.5, 0.4, 0.45]]),
    }
    variant = Variant("best", "standard", SamplingSettings(num_steps=4))
    kept = keep_best(Measurement(variant, values, torch.zeros(2, 6, 3, 1, 1), 2.0, 4.0))
    torch.testing.assert_close(kept.values["joint_reward"], torch.tensor([[0.9], [0.5]]))


def test_one_candidate_is_kept_as_it_is_and_the_first_is_everybodys():
    values = {"view_reward": torch.tensor([[0.5], [0.9]]), "joint_reward": torch.tensor([[1.0], [2.0]])}
    variant = Variant("one", "standard", SamplingSettings(num_steps=4))
    kept = keep_best(Measurement(variant, values, torch.zeros(2, 6, 3, 1, 1), 2.0, 4.0))
    assert all(torch.equal(kept.values[name], values[name]) for name in values)
    assert candidate_seeds(1000, 1) == (1000,)
    seeds = candidate_seeds(1000, 5)
    assert seeds[0] == 1000
    assert len(set(seeds)) == 5


def test_tasks_come_seed_by_seed_and_the_teacher_once(task):
    tasks = make_tasks(
        ["none", "ppo", "teacher"], [3, 4], task.config, task.prompts, task.results_dir, task.work_dir
    )
    assert [(t.method, t.seed) for t in tasks] == [
        ("none", 3),
        ("ppo", 3),
        ("teacher", 3),
        ("none", 4),
        ("ppo", 4),
    ]
    assert tasks[1].own_config.objective == "ppo"
    assert tasks[1].own_config.run.seed == 3
    with pytest.raises(ValueError, match="no method 'pppo'"):
        make_tasks(["pppo"], [0], task.config, task.prompts, task.results_dir, task.work_dir)


def test_a_result_counts_only_for_the_base_loras_it_was_made_with(task, tmp_path):
    lora = tmp_path / "few_step.safetensors"
    lora.write_bytes(b"one")
    model = ModelConfig("toybox-teacher", solver="lcm", base_loras=(BaseLoraConfig(str(lora)),))
    student = replace(task, config=replace(task.config, model=model))
    key = student.key()
    assert key == student.key() != task.key()
    lora.write_bytes(b"two")
    assert student.key() != key


def test_a_comparison_on_a_few_step_lora_measures_that_student(task, monkeypatch, tmp_path):
    loaded = []

    def refuse(model):
        loaded.append(model)
        raise ValueError("enough seen")

    monkeypatch.setattr("training.experiments.comparison.load_base_model", refuse)
    model = ModelConfig("toybox-teacher", solver="lcm")
    for method in ("none", "teacher"):
        with pytest.raises(ValueError, match="enough seen"):
            run_task(replace(task, method=method, config=replace(task.config, model=model)))
    assert loaded == [model, ModelConfig("toybox-teacher")]  # the teacher is always the plain one


def test_a_result_counts_only_for_the_configuration_that_made_it(task):
    task.results_dir.mkdir()
    saved = {"key": task.key(), "config": config_to_dict(task.own_config)}
    task.result_path.write_text(json.dumps(saved))
    assert task.read_result() is not None
    assert replace(task, work_dir=task.work_dir / "elsewhere").read_result() is not None
    assert replace(task, prompts=task.prompts[:2]).read_result() is None
    other = replace(task, config=replace(task.config, optim=replace(task.config.optim, lr=1.0)))
    assert other.read_result() is None
    assert other.own_config.run.out_dir != task.own_config.run.out_dir
    # A default that was another one then is in no key, but the result says it; a later setting is not there.
    saved["config"]["optim"]["clip_range"] = 0.5
    task.result_path.write_text(json.dumps(saved))
    assert task.read_result() is None
    del saved["config"]["optim"]["clip_range"]
    task.result_path.write_text(json.dumps(saved))
    assert task.read_result() is not None


def test_the_published_results_are_those_of_the_bundled_model_and_the_preset():
    """Otherwise `python -m training.compare` would train them all again, and the page be void."""
    folder = ROOT / "docs" / "results" / "claims"
    tasks = compare.tasks_of(compare.build_parser().parse_args(["--out", str(folder)]))
    there = [task for task in tasks if task.result_path.is_file()]
    assert len(there) >= 7
    assert [task.name for task in there if task.read_result() is None] == []


def costs_of(task, objective, *settings):
    return training_costs(change_settings(replace(task.config, objective=objective), settings), 3)


def test_all_methods_get_the_same_number_of_sets_and_updates(task):
    costs = {objective: costs_of(task, objective) for objective in OBJECTIVES}
    assert {cost["sampled_sets"] for cost in costs.values()} == {3 * 2 * 2}
    assert {cost["optimizer_steps"] for cost in costs.values()} == {3 * 2}


def test_costs_are_counted_in_unet_evaluations_of_a_set(task):
    """Three iterations of two prompts: standard 4 evaluations, ZMV 6; an update scores 4 steps of 2 sets."""
    view, constrained = costs_of(task, "zigal_view"), costs_of(task, "mvc_zigal")
    assert costs_of(task, "mv_pg")["sampling_evaluations"] == 6 * 8
    assert view["sampling_evaluations"] == 6 * 10
    assert constrained["sampling_evaluations"] == 6 * 10 + 2 * 4  # the first threshold, of two prompts
    stated = costs_of(task, "mvc_zigal", "constraint.threshold_init=0.5")
    assert stated["sampling_evaluations"] == 6 * 10
    assert view["update_evaluations"] == 6 * 4 * 2
    for reference in (costs_of(task, "mv_dpo"), costs_of(task, "zigal_view", "optim.kl_weight=1")):
        assert reference["update_evaluations"] == 2 * view["update_evaluations"]
    both = costs_of(task, "mv_dpo", "optim.kl_weight=1")
    assert both["update_evaluations"] == 3 * view["update_evaluations"]
    # two updates an iteration, of one prompt each: the second one looks twice
    split = costs_of(task, "zigal_view", "optim.splits_pairs=true")
    assert split["update_evaluations"] == 1.5 * view["update_evaluations"]
    evaluated = costs_of(
        task, "mvc_zigal", "evaluation.every=2", "evaluation.num_prompts=5", "evaluation.prompts=dev"
    )
    assert (view["held_out_evaluations"], evaluated["held_out_evaluations"]) == (0, 2 * 5 * 4)


def test_the_record_of_a_training_keeps_the_curves_of_both_trajectories():
    record = {"rollout_seconds": 2.0, "update_seconds": 1.0, "lambda": 0.1, "loss": 3.0}
    rewards = {"view_reward_zmv": 0.5, "joint_reward_again": 0.25, "view_reward_zmv/pickscore": 0.2}
    assert training_record([record | rewards] * 2) == {
        "iterations": 2,
        "seconds": 6.0,
        "curves": {"lambda": [0.1] * 2, "view_reward_zmv": [0.5] * 2, "joint_reward_again": [0.25] * 2},
    }


def test_a_training_that_found_nothing_better_is_measured_without_a_lora(task, tmp_path):
    folder, stopped = RunFolder(tmp_path), replace(task, method="mvc_zigal_stopped").own_config
    (tmp_path / "lora").mkdir()
    for epoch in (9, 9999, 10000):
        folder.lora_path(epoch).touch()
    assert chosen_lora(task.own_config, folder) == folder.lora_path(10000)
    assert chosen_lora(stopped, folder) is None
    folder.best_lora_path.touch()
    assert chosen_lora(stopped, folder) == folder.best_lora_path


def test_differences_pair_equal_seeds():
    ours = found("a", [0, 1], {"view_reward": torch.tensor([[1.0, 10.0], [2.0, 20.0]])})
    theirs = found("b", [1, 0], {"view_reward": torch.tensor([[9.0, 0.5], [19.0, 1.5]])})
    gaps = paired_difference({"a": ours, "b": theirs}, "a", "b", "view_reward")
    assert gaps.tolist() == [[1.0, 0.5], [1.0, 0.5]]
    with pytest.raises(ValueError, match="no seed in common"):
        paired_difference({"a": ours, "b": found("b", [7], theirs.values)}, "a", "b", "view_reward")


@pytest.mark.parametrize(
    ("low", "high", "sign", "word"),
    [
        (0.1, 0.3, 1, "shown"),
        (0.1, 0.3, -1, "contradicted"),
        (-0.3, -0.1, -1, "shown"),
        (-0.3, -0.1, 1, "contradicted"),
        (-0.1, 0.3, 1, "not shown"),
    ],
)
def test_verdicts(low, high, sign, word):
    interval = Interval((low + high) / 2, low, high, 9)
    near = [factor * interval.mean for factor in (0.9, 1.0, 1.1)]
    assert verdict(interval, near, sign) == word
    assert verdict(interval, near[:2], sign) == "not shown"  # two trainings are too few
    scattered = [factor * interval.mean for factor in (0.1, 0.9, 2.0)]  # of one sign, far apart
    assert verdict(interval, scattered, sign) == "not shown"


def test_an_effect_that_is_not_there_is_seldom_shown():
    """2000 claims on three trainings that differ by chance alone, with the prompts' noise small beside it."""
    generator = torch.Generator().manual_seed(0)
    trainings = torch.randn(2000, 1, 3, generator=generator)
    prompts = 0.1 * torch.randn(2000, 40, 3, generator=generator)
    said = [
        verdict(Interval(float(gaps.mean()), *reached(gaps.mean(dim=0)), 40), gaps.mean(dim=0).tolist(), 1)
        for gaps in trainings + prompts
    ]
    assert 0.02 < 1 - said.count("not shown") / len(said) < 0.08


def reached(means):
    """What the bootstrap gives where the trainings' spread dominates: from the lowest to the highest."""
    return float(means.min()), float(means.max())


def test_lambda_rises_by_chance_only_where_prompts_differ(task):
    equal, differing = torch.ones(20, 2), torch.linspace(0, 1, 20)[:, None].expand(-1, 2)
    whole = load_config("comparison")
    assert largest_lambdas_by_chance(equal, task.config) == (0.0, 0.0)
    low, high = largest_lambdas_by_chance(differing, whole)
    assert 0 < low < high
    assert largest_lambdas_by_chance(differing, change_settings(whole, ["run.epochs=10"]))[1] > high
    with pytest.raises(ValueError, match="has no constraint"):
        largest_lambdas_by_chance(differing, replace(whole, objective="zigal_view"))


def test_student_interval_by_hand():
    low, high = student_interval([1.0, 2.0, 3.0])  # s = 1, t(2) = 4.3027
    assert (low, high) == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)
    with pytest.raises(ValueError, match="1 trainings have no spread"):
        student_interval([1.0])


def test_the_two_way_interval_knows_about_the_spread_of_trainings():
    generator = torch.Generator().manual_seed(1)
    noise = 0.01 * torch.randn(200, 3, generator=generator)
    values = noise + torch.tensor([0.0, 1.0, 2.0])
    both, prompts_only = bootstrap_two_way(values), bootstrap(values)
    assert both.mean == pytest.approx(prompts_only.mean)
    # three equally likely columns drawn three times: all from the first in 1 of 27 draws, more than 2.5 %
    assert both.low == pytest.approx(0.0, abs=0.01)
    assert both.high == pytest.approx(2.0, abs=0.01)
    assert prompts_only.high - prompts_only.low < 0.01
    flat = bootstrap_two_way(noise[:, :1])
    assert flat.low == pytest.approx(bootstrap(noise[:, :1]).low, abs=3e-4)


def test_a_method_is_measured_and_reported(task):
    """The whole way on the bundled model: no RL, and a LoRA of one iteration."""
    methods = ["none", "mvc_zigal", "mv_zigpg"]  # the last has no trajectory of standard sampling
    tasks = make_tasks(methods, [0], task.config, task.prompts, task.results_dir, task.work_dir)
    assert all(run_task(one) for one in tasks)
    written = [one.result_path.stat().st_mtime_ns for one in tasks]
    assert all(run_task(one) for one in tasks)
    assert [one.result_path.stat().st_mtime_ns for one in tasks] == written
    assert not any(str(task.work_dir.parent) in one.result_path.read_text() for one in tasks)
    results = load_results(tasks)
    assert sorted(results) == sorted(methods)
    assert results["none"].values["view_reward"].shape == (3, 1)
    assert results["mvc_zigal"].costs[0]["optimizer_steps"] == 2
    path = write_comparison(tasks, task.results_dir.parent, "the command")
    text = path.read_text()
    assert "the command" in text
    assert "mvc_zigal against none, view reward" in text
    assert "Not finished" not in text
    for name in ("report.json", "curves.png", "samples.png"):
        assert (path.parent / name).exists()


def test_the_command_refuses_what_it_does_not_know(capsys, tmp_path):
    assert compare.main(["--methods", "none", "run.epochs=0", "--out", str(tmp_path)]) == 1
    assert "run.epochs=0 must be at least 1" in capsys.readouterr().err
    assert compare.main(["--methods", "dpo", "--out", str(tmp_path)]) == 1
    assert "There is no method 'dpo'" in capsys.readouterr().err
    assert compare.main(["--report-only", "--out", str(tmp_path), "--work", str(tmp_path)]) == 1
    assert "There is no result" in capsys.readouterr().err


def lives(group: int) -> bool:
    """Whether a process of this group is there."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, 0)
        return True
    return False


def wait_until(is_so, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_comparison_that_is_told_to_end_leaves_no_training_behind(tmp_path):
    """The pool hands out a second training in advance: it must not begin either."""
    options = ["--jobs", "1", "--num-prompts", "1", "--out", tmp_path / "out", "--work", tmp_path]
    methods = ["--methods", "zigal_view", "zigal_joint", "mvc_zigal", "--seeds", "0"]
    sizes = ["sampling.prompts_per_iteration=1", "optim.prompts_per_update=1", "sampling.num_steps=1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "training.compare", *methods, *options, *sizes],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        begun = tmp_path.glob
        wait_until(lambda: list(begun("zigal_view*/metrics.jsonl")) or process.poll() is not None, 300)
        process.terminate()
        errors = process.communicate(timeout=120)[1]
        assert process.returncode == 130, errors
        assert "the same command goes on" in errors
        wait_until(lambda: not lives(process.pid), 20)
    finally:
        if lives(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
    assert [path.name.partition("_seed")[0] for path in begun("*_seed*")] == ["zigal_view"]
    assert len(list(begun("*/last.pt"))) == 1
