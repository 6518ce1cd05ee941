"""Held-out evaluation while training: what is measured, what is kept, when it ends the run."""

import json
import math
from contextlib import nullcontext
from hashlib import sha256

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from t2mv_core.loading import load_bundle
from t2mv_core.samplers import SamplingSettings
from t2mv_core.toybox.judge import Judge
from training.config import config_from_dict
from training.data.prompts import load_prompts, load_split
from training.evaluation import validation
from training.evaluation.measure import Instruments, Questions, Variant, make_questions, measure
from training.evaluation.validation import SEED, check_stop_measure
from training.run.checkpoint import load_checkpoint
from training.run.metrics import read_metrics
from training.run.trainer import Trainer


def count_nothing(num_evaluations):
    """What the trainer gives the monitor to count evaluations with."""
    return lambda event: None


@pytest.fixture
def make_trainer(tiny_model_dir, plain_rewards, tiny_config):
    """Builds trainers of single-iteration epochs in one folder, which evaluate every iteration."""

    def build(resume=False, **sections):
        sections["sampling"] = {"prompts_per_iteration": 2, **sections.get("sampling", {})}
        sections["evaluation"] = {
            "every": 1,
            "prompts": "dev",
            "num_prompts": 3,
            "stop_measure": "view_reward",
            **sections.get("evaluation", {}),
        }
        sections["run"] = {
            "iterations_per_epoch": 1,
            "epochs": 3,
            "sheet_prompts": 0,
            **sections.get("run", {}),
        }
        return Trainer(
            tiny_config(**sections), load_bundle(str(tiny_model_dir)), plain_rewards, resume=resume
        )

    return build


def script(trainer, values):
    """Let evaluations find these view rewards, one after the other, the first before training."""
    found = iter(values)
    trainer.monitor._measure = lambda _: {"view_reward": next(found), "joint_reward": 0.0}


def evaluations(trainer):
    return read_metrics(trainer.folder.evaluations_path)


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_it_measures_the_lora_that_an_epochs_file_holds(
    ema_decay, make_trainer, tiny_model_dir, plain_rewards
):
    trainer = make_trainer(optim={"ema_decay": ema_decay}, evaluation={"every": 2}, run={"epochs": 4})
    trainer.run()
    records = evaluations(trainer)
    assert [record["iteration"] for record in records] == [0, 2, 4]
    prompts = load_prompts("dev")
    asked = tuple(prompts[i * len(prompts) // 3] for i in range(3))
    settings = SamplingSettings(num_steps=2)
    for record in records:
        epoch = int(record["iteration"])
        lora = trainer.folder.lora_path(epoch) if epoch else None
        variant = Variant("alone", "standard", settings, lora)
        bundle = load_bundle(str(tiny_model_dir))
        questions = Questions(asked, (SEED,), azimuths_deg=(0.0, 90.0))
        found = measure(bundle, Instruments(plain_rewards), variant, questions)
        expected = {name: float(values.mean()) for name, values in found.values.items()}
        assert {"view_reward", "joint_reward", "joint_overall"} == expected.keys()
        assert record == pytest.approx({"iteration": epoch, **expected}, abs=1e-5)
    assert len({record["view_reward"] for record in records}) == 3


def test_training_goes_on_as_if_nothing_had_been_measured(make_trainer):
    found = []
    for every, name in ((0, "without"), (1, "with")):
        trainer = make_trainer(
            optim={"ema_decay": 0.9},
            evaluation={"every": every, "stop_measure": None},
            run={"out_dir": str(make_trainer().folder.root / name), "epochs": 2},
        )
        trainer.run()
        found.append(load_checkpoint(trainer.folder.state_path).lora)
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


def test_the_best_lora_is_kept(make_trainer):
    trainer = make_trainer(run={"epochs": 5})
    script(trainer, [0.5, 0.25, 0.75, 0.75, math.nan, 0.5])
    assert trainer.run()
    best = trainer.folder.root / "lora" / "best.safetensors"
    with safe_open(best, framework="pt") as opened:
        facts = opened.metadata()
    assert (facts["step"], facts["evaluation_view_reward"]) == ("2", "0.75")  # the first of the equal ones
    assert (facts["evaluation_prompts"], facts["evaluation_num_prompts"]) == ("dev", "3")
    ours, theirs = load_file(best), load_file(trainer.folder.lora_path(2))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert trainer.monitor.early_stop.best_iteration == 2
    assert [record["iteration"] for record in evaluations(trainer)] == list(range(6))


def test_patience_ends_the_run_and_it_stays_ended(make_trainer):
    stopping = {"evaluation": {"patience": 2}, "run": {"epochs": 9, "save_every": 4}}
    trainer = make_trainer(**stopping)
    script(trainer, [0.1, 0.5, 0.4, 0.5])
    assert trainer.run()
    assert trainer.iteration == 3
    assert trainer.folder.state_path.exists()
    resumed = make_trainer(resume=True, **stopping)
    script(resumed, [])
    assert resumed.run()
    assert resumed.iteration == len(read_metrics(trainer.folder.metrics_path)) == 3
    assert len(evaluations(resumed)) == 4
    # more patience continues it
    patient = make_trainer(resume=True, **{**stopping, "evaluation": {"patience": 3}})
    script(patient, [0.45])
    assert patient.run()
    assert patient.iteration == 4


def test_a_kill_after_a_new_best_between_two_saves_costs_no_lora(make_trainer):
    run = {"save_every": 9, "epochs": 3}
    trainer = make_trainer(run=run)
    script(trainer, [0.5, 0.75, 0.875])  # then it is killed in the last evaluation
    with pytest.raises(StopIteration):
        trainer.run()
    resumed = make_trainer(resume=True, run=run)
    script(resumed, [0.25])
    resumed.run()
    with safe_open(trainer.folder.best_lora_path, framework="pt") as opened:
        assert opened.metadata()["step"] == "2"


def test_a_run_measured_on_other_prompts_is_not_compared(make_trainer):
    trainer = make_trainer(run={"epochs": 1})
    script(trainer, [0.5, 0.75])
    trainer.run()
    for changes in ({"prompts": "heldout"}, {"num_prompts": 2}):
        with pytest.raises(ValueError, match="was measured on other held-out prompts or pictures, so its"):
            make_trainer(resume=True, evaluation=changes)
    without = make_trainer(resume=True, evaluation={"every": 0, "stop_measure": None}, run={"epochs": 2})
    without.run()
    with pytest.raises(ValueError, match="was measured on other held-out prompts"):
        make_trainer(resume=True, evaluation={"prompts": "heldout"})
    assert make_trainer(resume=True, run={"epochs": 9}).iteration == 2
    # what is saved of prompts stays as it is, or the runs of today could not be resumed
    asked = "\n".join(trainer.monitor.questions.prompts).encode()
    assert load_checkpoint(trainer.folder.state_path).early_stop["fingerprint"] == sha256(asked).hexdigest()


def test_prompts_that_are_trained_on_are_not_measured_on(make_trainer, tmp_path, caplog):
    trained, asked = tmp_path / "train.txt", tmp_path / "asked.txt"
    trained.write_text("a cat\na dog\n")
    asked.write_text("A  Cat\nan ant\n")
    sections = {"sampling": {"prompts": str(trained)}, "evaluation": {"prompts": str(asked)}}
    assert make_trainer(**sections).monitor.questions.prompts == ("an ant",)
    assert "1 of 2 held-out prompts are trained on; left out: 'A  Cat'." in caplog.text


def test_the_start_counts_once_though_a_stop_before_the_first_iteration_repeats_it(make_trainer):
    patience = {"evaluation": {"patience": 2}, "run": {"epochs": 9}}
    trainer = make_trainer(**patience)
    script(trainer, [0.5])
    trainer.request_stop()
    assert not trainer.run()
    resumed = make_trainer(resume=True, **patience)
    script(resumed, [0.5, 0.4, 0.3, 0.2])
    assert resumed.run()
    assert resumed.iteration == 2
    assert [record["iteration"] for record in evaluations(resumed)] == [0, 1, 2]
    assert not resumed.folder.best_lora_path.exists()  # no measure chooses one


@pytest.mark.parametrize(
    ("save_every", "killed_in", "kept"), [(3, 5, [0, 1, 2, 3]), (2, 4, [0, 1, 2, 3]), (9, 2, [])]
)
def test_evaluations_after_the_saved_state_are_made_again(make_trainer, save_every, killed_in, kept):
    """Killed with an evaluation more than the saved state; in an evaluation; with no iteration saved."""
    run, evaluation = {"save_every": save_every, "epochs": killed_in}, {"stop_measure": None}
    trainer = make_trainer(run=run, evaluation=evaluation)
    script(trainer, [0.1] * killed_in)  # the last of the run raises StopIteration
    with pytest.raises(StopIteration):
        trainer.run()
    assert [record["iteration"] for record in evaluations(trainer)] == list(range(killed_in))
    resumed = make_trainer(resume=True, run=run, evaluation=evaluation)
    assert [record["iteration"] for record in evaluations(resumed)] == kept
    resumed.run()
    assert [record["iteration"] for record in evaluations(resumed)] == list(range(killed_in + 1))


def test_an_evaluation_recorded_but_not_saved_stands_once(make_trainer):
    """Killed between the record of the evaluation and the saved state that knows of it."""
    run, evaluation = {"save_every": 1, "epochs": 2}, {"stop_measure": None}
    trainer = make_trainer(run=run, evaluation=evaluation)
    script(trainer, [0.1] * 3)
    save, saves = trainer._save, []

    def save_until_killed():
        saves.append(trainer.iteration)
        if saves.count(1) == 2:  # the second one of the first iteration, after its evaluation
            raise KeyboardInterrupt
        save()

    trainer._save = save_until_killed
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    resumed = make_trainer(resume=True, run=run, evaluation=evaluation)
    script(resumed, [0.1] * 3)
    assert resumed.run()
    assert [record["iteration"] for record in evaluations(resumed)] == [0, 1, 2]


def test_held_out_prompts_are_measured_on_and_never_trained_on(make_trainer):
    trainer = make_trainer(
        sampling={"held_out_share": 0.2, "prompts": "animals"},
        evaluation={"prompts": None, "num_prompts": 100},
    )
    split = load_split("animals", 0.2)
    assert 0 < len(split.held_out) < 20
    assert trainer.monitor.questions.prompts == split.held_out
    assert trainer.prompts.prompts == split.train


def test_a_prompt_file_without_held_out_lines_gets_a_sentence(make_trainer, tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"prompt": "a cat"}) + "\n" + json.dumps({"prompt": "a dog"}))
    with pytest.raises(ValueError, match="There are no held-out prompts to evaluate on"):
        make_trainer(sampling={"prompts": str(path)}, evaluation={"prompts": None})
    path.write_text(path.read_text() + "\n" + json.dumps({"prompt": "an ant", "split": "heldout"}))
    trainer = make_trainer(sampling={"prompts": str(path)}, evaluation={"prompts": None})
    assert trainer.monitor.questions.prompts == ("an ant",)


def test_the_judge_sees_its_own_cameras_only(make_trainer, monkeypatch):
    from training.toybox.data.scenes import COLOURS, FAMILIES

    untrained = Judge(tuple(FAMILIES), tuple(COLOURS), ("wooden", "metal"), 6)
    monkeypatch.setattr(validation, "load_judge", lambda: untrained)
    rig = {"azimuths_deg": [0, 45, 90, 180, 270, 315]}
    trainer = make_trainer(sampling=rig, evaluation={"num_prompts": 2, "stop_measure": "judge_colour"})
    trainer.monitor.measure_when_due(0, nullcontext(), trainer.accelerator, count_nothing)
    assert trainer.monitor.early_stop.best_value is not None
    two = make_trainer(run={"out_dir": str(trainer.folder.root / "two")})
    assert two.monitor.questions.specs is None


def test_a_measure_that_no_prompt_has_is_left_out(make_trainer, monkeypatch):
    from training.toybox.data.scenes import COLOURS, FAMILIES

    untrained = Judge(tuple(FAMILIES), tuple(COLOURS), ("wooden", "metal"), 6)
    monkeypatch.setattr(validation, "load_judge", lambda: untrained)
    rig = {"azimuths_deg": [0, 45, 90, 180, 270, 315]}
    trainer = make_trainer(sampling=rig, evaluation={"num_prompts": 2, "stop_measure": "judge_part"})
    prompts = load_prompts("toybox")[:2]  # plain: family and colour
    trainer.monitor.questions = make_questions(trainer.config.sampling, prompts, (SEED,))
    with pytest.raises(ValueError, match="'judge_part' is not among the evaluation's values"):
        trainer.monitor.measure_when_due(0, nullcontext(), trainer.accelerator, count_nothing)


@pytest.mark.parametrize(
    ("reward", "evaluation", "measure", "known"),
    [
        ({}, {}, "view_reward", None),
        ({"view": "pickscore"}, {"view": ["hpsv2"]}, "view_reward", None),
        ({"view": "pickscore"}, {"view": ["hpsv2"]}, "view_reward/hpsv2", None),
        (
            {"view": {"pickscore": 1, "hpsv2": 1}},
            {},
            "view_reward",
            "view_reward/pickscore, view_reward/hpsv2",
        ),
        ({"view": "pickscore"}, {}, "view_reward/pickscore", "view_reward, joint_reward"),
        ({}, {}, "judge_colour", None),
    ],
)
def test_the_watched_reward_must_be_measured(reward, evaluation, measure, known):
    evaluation = {"every": 1, "prompts": "dev", "stop_measure": measure, **evaluation}
    config = config_from_dict({"reward": reward, "evaluation": evaluation})
    if known is None:
        check_stop_measure(config)
    else:
        with pytest.raises(ValueError, match=f"stop_measure={measure} will not be measured.*{known}"):
            check_stop_measure(config)
