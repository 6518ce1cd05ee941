"""What a constrained run measures before its first iteration, and when it does not."""

import statistics
from dataclasses import replace

import pytest

from training.algorithm.scoring import Rewards
from training.models.policy import reference_policy
from training.run.checkpoint import load_checkpoint
from training.run.untrained import measure_untrained

SHORT = {"run": {"epochs": 1, "iterations_per_epoch": 1}}


@pytest.fixture
def watched(plain_rewards):
    """The plain rewards; what the joint one scores is noted: (prompt, score)."""
    noted = []

    def agreement(images, prompts):
        result = plain_rewards.joint["agreement"](images, prompts)
        noted.extend(zip(prompts, result.scores.tolist(), strict=True))
        return result

    return Rewards(plain_rewards.view, {"agreement": agreement}), noted


@pytest.fixture
def two_prompts(tmp_path):
    (tmp_path / "two.txt").write_text("a cat\na dog\n")
    return {"prompts": str(tmp_path / "two.txt"), "prompts_per_iteration": 2}


def refuse_to_score(images, prompts):
    raise AssertionError("Single views were scored.")


def test_threshold_and_spread_are_those_of_the_base_models_sets(runs, watched):
    trainer = runs.trainer("run", constraint={"threshold_prompts": 5})
    rewards, noted = watched
    trainer.rewards = replace(rewards, view={"redness": refuse_to_score})
    trainer._start_dual()
    scores = [score for _, score in noted]
    assert len(scores) == len({prompt for prompt, _ in noted}) == 5
    assert trainer.dual.threshold == pytest.approx(statistics.fmean(scores))
    assert trainer.dual.spread == pytest.approx(statistics.pstdev(scores))
    assert trainer.dual.lambda_ == 0.0
    of_base = measure_untrained(
        reference_policy(trainer.policy),
        rewards,
        trainer.config,
        trainer.subjects,
        trainer.accelerator,
        lambda total: lambda step: None,
    )
    assert of_base == scores


def test_a_short_list_repeats_with_other_noise_and_the_log_says_so(runs, watched, two_prompts, caplog):
    trainer = runs.trainer("run", sampling=two_prompts, constraint={"threshold_prompts": 5})
    trainer.rewards, noted = watched
    with caplog.at_level("INFO", logger="training.run.trainer"):
        trainer._start_dual()
    counts = sorted([prompt for prompt, _ in noted].count(prompt) for prompt in ("a cat", "a dog"))
    assert counts == [2, 3]
    assert len({score for _, score in noted}) == 5
    assert "joint reward over 5 sets of 2 prompts is -0." in caplog.text


def test_the_display_counts_every_evaluation(runs):
    trainer = runs.trainer("run", constraint={"threshold_prompts": 5}, sampling={"batch_size": 2})
    phases, steps = [], []
    trainer.display.phase = lambda *phase: phases.append(phase)
    trainer.display.advance = lambda: steps.append(1)
    trainer._start_dual()
    assert phases == [("first threshold", 6)]  # 3 batches of at most 2 prompts, 2 steps
    assert len(steps) == 6


@pytest.mark.parametrize(
    ("sections", "threshold"),
    [
        ({"objective": "zigal_view"}, None),
        ({"constraint": {"threshold_init": -0.5}}, -0.5),
        ({"constraint": {"threshold_prompts": 0}}, None),
    ],
    ids=["no constraint", "given", "left to the iteration"],
)
def test_what_nobody_needs_is_not_measured(runs, watched, sections, threshold):
    trainer = runs.trainer("run", **SHORT, **sections)
    trainer.rewards, noted = watched
    trainer._start_dual()
    assert noted == []
    assert getattr(trainer.dual, "threshold", None) == threshold


def test_a_resumed_run_does_not_measure_again(runs, watched):
    trainer = runs.trainer("run")
    trainer._collect = lambda iteration: 1 / 0  # the process dies in the first iteration
    with pytest.raises(ZeroDivisionError):
        trainer.run()
    saved = load_checkpoint(trainer.folder.state_path)
    assert (saved.iteration, saved.dual) == (0, trainer.dual.state_dict())
    resumed = runs.trainer("run", resume=True)
    resumed.rewards, noted = watched
    resumed._start_dual()
    assert noted == []
    runs.train("run", resume=True)
    runs.assert_identical(runs.outcome("run"), runs.undisturbed())


def test_a_stop_while_measuring_measures_anew(runs):
    trainer = runs.trainer("run")
    trainer.display.advance = trainer.request_stop
    assert not trainer.run()
    assert load_checkpoint(trainer.folder.state_path).dual["threshold"] is None
    runs.train("run", resume=True)
    runs.assert_identical(runs.outcome("run"), runs.undisturbed())
