"""The trainer's command line: sentences for bad input, signals, exit codes."""

import os
import signal

import pytest

import t2mv_core.rewards
from t2mv_core.rewards import RewardSpec
from training.metrics import read_metrics
from training.mvczigal import main

SMALL = [
    "sampling.prompts=animals",
    "sampling.prompts_per_iteration=2",
    "sampling.num_steps=2",
    "sampling.azimuths_deg=[0, 90]",
    "optim.prompts_per_update=null",
    "model.lora_rank=2",
    "model.device=cpu",
    "run.epochs=1",
    "run.iterations_per_epoch=2",
    "run.sheet_prompts=0",
    "run.trackers=[]",
    "reward.view=redness",
    "reward.joint=agreement",
]


@pytest.fixture
def words(tiny_model_dir, plain_rewards, tmp_path, monkeypatch):
    """A run of seconds with rewards of plain arithmetic."""
    for role in ("view", "joint"):
        for name, scorer in getattr(plain_rewards, role).items():
            spec = RewardSpec(role, lambda *_, scorer=scorer: scorer, "test")
            monkeypatch.setitem(t2mv_core.rewards.REWARDS, name, spec)
    return ["--preset", "demo", *SMALL, f"model.name={tiny_model_dir}", f"run.out_dir={tmp_path / 'run'}"]


def test_a_run_ends_with_zero_and_can_be_extended(words, tmp_path):
    assert main(words) == 0
    assert main([*words, "--resume", "auto", "run.epochs=2"]) == 0
    assert [r["iteration"] for r in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3, 4]
    assert (tmp_path / "run" / "lora" / "epoch_0002.safetensors").exists()


def test_sigint_saves_and_the_run_goes_on(words, tmp_path, monkeypatch, plain_rewards):
    handler = signal.getsignal(signal.SIGINT)
    sent = []

    def interrupt(images, prompts):
        if len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 1 and not sent:
            sent.append(signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return plain_rewards.view["redness"](images, prompts)

    spec = RewardSpec("view", lambda *_: interrupt, "test")
    monkeypatch.setitem(t2mv_core.rewards.REWARDS, "interrupting", spec)
    assert main([*words, "reward.view=interrupting"]) == 130
    assert signal.getsignal(signal.SIGINT) is handler
    assert (tmp_path / "run" / "last" / "counters.json").exists()
    assert main([*words, "reward.view=interrupting", "--resume", "auto"]) == 0


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        (["optim.lrr=1"], "did you mean optim.lr?"),
        (["--preset", "nothing"], "There is no preset 'nothing'"),
        (["reward.view=beauty"], "There is no reward named 'beauty'"),
        (["model.name=/nowhere"], "There is no model folder '/nowhere'"),
        (["reward.view=agreement"], "agreement is a joint reward; it cannot be used as view reward"),
        (["sampling.prompts=nowhere.txt"], "There is no prompt set or file 'nowhere.txt'"),
        (["run.trackers=[abacus]"], "run.trackers names 'abacus', which accelerate does not know"),
        (["evaluation.every=1"], "needs prompts: set evaluation.prompts"),
    ],
)
def test_bad_input_gets_one_sentence(words, extra, sentence, capsys):
    assert main([*words, *extra]) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error
