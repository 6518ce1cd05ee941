"""The trainer's command line: sentences for bad input, signals, exit codes."""

import os
import signal

import pytest
import torch

import t2mv_core.rewards.registry
import training.models.rewards
from t2mv_core.rewards.registry import RewardSpec
from training.mvczigal import main
from training.run.metrics import read_metrics

SMALL = [
    "sampling.prompts=animals",
    "sampling.prompts_per_iteration=2",
    "sampling.num_steps=2",
    "sampling.azimuths_deg=[0, 90]",
    "optim.prompts_per_update=null",
    "constraint.threshold_prompts=2",
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
def words(tiny_model_dir, registered_rewards, tmp_path):
    """A run of seconds with rewards of plain arithmetic."""
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
    monkeypatch.setitem(t2mv_core.rewards.registry.REWARDS, "interrupting", spec)
    assert main([*words, "reward.view=interrupting"]) == 130
    assert signal.getsignal(signal.SIGINT) is handler
    assert torch.load(tmp_path / "run" / "last.pt", weights_only=True)["iteration"] == 1
    assert main([*words, "reward.view=interrupting", "--resume", "auto"]) == 0


def test_missing_reward_weights_are_said_before_the_model_is_loaded(words, tmp_path, capsys, unloadable):
    extra = ["reward.view={redness: 1, pickscore: 1}", f"reward.folder={tmp_path}", "reward.joint=hyperscore"]
    assert main([*words, *extra]) == 1
    error = capsys.readouterr().err
    for address in (
        "https://huggingface.co/yuvalkirstain/PickScore_v1",
        "https://github.com/zhangyujie-1998/MATE-3D",
    ):
        assert f"from {address} and put it into {tmp_path}" in error


def test_rewards_of_the_evaluation_are_only_asked_for_when_there_is_one(words, tmp_path, capsys):
    folder = [f"reward.folder={tmp_path}", "evaluation.view=[hpsv2]"]
    assert main([*words, *folder, "evaluation.every=1", "evaluation.prompts=dev"]) == 1
    assert "The weights of the reward hpsv2 are not on this machine" in capsys.readouterr().err
    assert main([*words, *folder]) == 0


def test_rewards_that_only_measure_are_measured_and_not_trained_on(words, tmp_path):
    (tmp_path / "mine.py").write_text(
        "def greenness(images, prompts):\n    return images[:, 1].mean(dim=(1, 2))\n"
    )
    own = f"reward.own={{greenness: {{file: {tmp_path / 'mine.py'}, function: greenness}}}}"
    asked = [
        "evaluation.every=1",
        "evaluation.prompts=dev",
        "evaluation.num_prompts=2",
        "evaluation.view=[greenness]",
    ]
    assert main([*words, own, *asked]) == 0
    evaluations = read_metrics(tmp_path / "run" / "evaluations.jsonl")
    assert {"view_reward", "view_reward/greenness", "joint_reward"} <= evaluations[0].keys()
    metrics = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert "view_reward_standard" in metrics[0]
    assert not any("greenness" in name for name in metrics[0])


@pytest.fixture
def unloadable(monkeypatch):
    """No model can be loaded."""
    monkeypatch.setattr("training.models.base_loras.load_bundle", lambda *_: pytest.fail("it was loaded"))


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        (["stop_measure=view_reward/hpsv2"], "the rewards' measures are view_reward, joint_reward"),
        (["prompts=nowhere.txt"], "There is no prompt set or file 'nowhere.txt'"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_the_model_is_loaded(
    words, extra, sentence, capsys, unloadable
):
    asked = ["evaluation.every=1", "evaluation.prompts=dev", *(f"evaluation.{word}" for word in extra)]
    assert main([*words, *asked]) == 1
    assert sentence in capsys.readouterr().err


def test_a_folder_is_refused_before_the_model_is_loaded(words, tmp_path, capsys, unloadable):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"iteration": 1}\n')
    assert main([*words, "--resume", "auto"]) == 1
    assert "run holds a run whose saved state last.pt is gone" in capsys.readouterr().err
    (tmp_path / "run" / "last.pt").touch()
    assert main(words) == 1
    assert "run holds a run; continue it with resume (--resume auto)" in capsys.readouterr().err
    assert main([*words, f"run.out_dir={tmp_path / 'run' / 'metrics.jsonl'}"]) == 1
    assert "File exists" in capsys.readouterr().err


def test_rewards_go_to_their_own_device(words, monkeypatch):
    devices = []
    load = training.models.rewards.load_rewards
    monkeypatch.setattr(
        "training.models.rewards.load_rewards",
        lambda v, j, device, *more: devices.append(str(device)) or load(v, j, "cpu", *more),
    )
    assert main([*words, "reward.device=mps", "run.iterations_per_epoch=1"]) == 0
    assert devices == ["mps"]


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        (["optim.lrr=1"], "did you mean optim.lr?"),
        (["--preset", "nothing"], "There is no preset 'nothing'"),
        (["reward.view=beauty"], "There is no reward named 'beauty'"),
        (["reward.device=gpu"], "reward.device='gpu' is not known; use auto"),
        (["reward.device=cuda:99"], "reward.device=cuda:99: PyTorch sees"),
        (["model.device=cuda:99"], "model.device=cuda:99: PyTorch sees"),
        (["model.name=/nowhere"], "There is no model folder '/nowhere'"),
        (["reward.view=agreement"], "agreement is a joint reward; it cannot be used as view reward"),
        (["sampling.prompts=nowhere.txt"], "There is no prompt set or file 'nowhere.txt'"),
        (["run.trackers=[abacus]"], "run.trackers names 'abacus', which accelerate does not know"),
        (["evaluation.every=1"], "needs prompts: set evaluation.prompts"),
        (
            ["evaluation.every=1", "evaluation.prompts=dev", "evaluation.stop_measure=judge_colour"],
            "evaluation.stop_measure=judge_colour is measured by the judge",
        ),
    ],
)
def test_bad_input_gets_one_sentence(words, extra, sentence, capsys):
    assert main([*words, *extra]) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error
