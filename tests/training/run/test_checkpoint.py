"""The saved state: round trip, failing writes, damage; and what may change when a run goes on."""

import os

import pytest
import torch
import yaml

from t2mv_core.loading import load_bundle
from training.config import changed_values, config_from_dict, config_to_dict, flat_settings, load_config
from training.models.policy import make_average
from training.run.checkpoint import FREE, Checkpoint, load_checkpoint, refuse_another_run, save_checkpoint
from training.run.trainer import Trainer


def checkpoint(iteration: int, has_average: bool = True) -> Checkpoint:
    weight = torch.nn.Parameter(torch.full((2, 2), float(iteration)))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    weight.grad = torch.ones(2, 2)
    optimizer.step()
    average = make_average(0.9, [weight])
    average.step([weight])
    return Checkpoint(
        iteration,
        {"base_loras": "[]"},
        {"x": weight.detach()},
        optimizer.state_dict(),
        average.state_dict() if has_average else None,
        {"lambda": 0.1 * iteration, "threshold": None},
        {"num_drawn": iteration},
        {"measure": None},
    )


def test_everything_comes_back(tmp_path):
    path, saved = tmp_path / "last.pt", checkpoint(3)
    save_checkpoint(saved, path)
    loaded = load_checkpoint(path)
    for name in ("iteration", "base_loras", "dual", "prompts", "early_stop"):
        assert getattr(loaded, name) == getattr(saved, name)
    assert torch.equal(loaded.lora["x"], saved.lora["x"])
    moments = [state["state"][0]["exp_avg"] for state in (loaded.optimizer, saved.optimizer)]
    assert torch.equal(*moments)
    assert loaded.average["optimization_step"] == 1
    assert torch.equal(loaded.average["shadow_params"][0], saved.average["shadow_params"][0])
    save_checkpoint(checkpoint(4, has_average=False), path)
    assert load_checkpoint(path).average is None
    assert os.listdir(tmp_path) == ["last.pt"]


def test_nothing_saved_is_none(tmp_path):
    (tmp_path / ".last.pt.7.tmp").write_bytes(b"half")  # killed while writing the first state
    assert load_checkpoint(tmp_path / "last.pt") is None


@pytest.mark.parametrize("size", [0, 10, -10])
def test_damage_gets_a_sentence(tmp_path, size):
    path = tmp_path / "last.pt"
    save_checkpoint(checkpoint(1), path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match="cannot be read"):
        load_checkpoint(path)


class Shout:
    def __reduce__(self):
        return (print, ("code from a file",))


@pytest.mark.parametrize("content", [{"iteration": 1}, {"iteration": Shout()}, [1]])
def test_a_file_of_something_else_gets_a_sentence_and_runs_no_code(tmp_path, capsys, content):
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(ValueError, match="cannot be read"):
        load_checkpoint(tmp_path / "last.pt")
    assert capsys.readouterr().out == ""


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config_to_dict(load_config("demo"))))
    return path


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["optim.lr=1e-5"],
        ["constraint.unit=raw"],  # λ and b mean the same in both
        ["sampling.batch_size=2", "optim.micro_batch=1", "optim.splits_pairs=true"],
        ["run.epochs=99", "evaluation.every=2", "evaluation.prompts=dev"],
    ],
)
def test_cost_and_length_may_change(saved, words):
    before, config = flat_settings(load_config("demo")), load_config("demo", words)
    changed = {key for key, value in flat_settings(config).items() if value != before[key]}
    assert changed == {word.partition("=")[0] for word in words}  # none is demo's own value
    assert refuse_another_run(saved, config) is None


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("objective=zigal_view", "objective"),
        ("sampling.guidance_scale=2", "sampling.guidance_scale"),
        ("reward.joint={toybox_hyperscore.geometry: 1}", "reward.joint"),
        ("model.lora_alpha=1", "model.lora_alpha"),
        ("model.unet=/m/other", "model.unet"),
        ("model.vae=/m/other.safetensors", "model.vae"),
        ("run.seed=5", "run.seed"),
        ("optim.clip_range=1e-3", "optim.clip_range"),
    ],
)
def test_what_is_optimised_may_not(saved, word, key):
    with pytest.raises(ValueError, match=f"was started with {key}="):
        refuse_another_run(saved, load_config("demo", [word]))


def test_a_damaged_configuration_gets_a_sentence(saved):
    saved.write_text("objective: [")
    with pytest.raises(ValueError, match="cannot be read"):
        refuse_another_run(saved, load_config("demo"))


def test_free_settings_exist():
    assert flat_settings(load_config("demo")).keys() >= FREE


def test_changed_values_are_those_that_differ_from_their_defaults():
    config = config_from_dict({"optim": {"lr": 0.5, "eps": 1e-8}, "objective": "ppo"})
    assert changed_values(config) == {"objective": "ppo", "optim": {"lr": 0.5}}


def test_a_run_of_an_earlier_version_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / "last").mkdir()
    with pytest.raises(ValueError, match="a run of an earlier version"):
        load_checkpoint(tmp_path / "last.pt")
    assert (tmp_path / "last").is_dir()


def test_a_resumed_run_takes_the_new_learning_rate(tiny_model_dir, plain_rewards, tiny_config):
    short = {"epochs": 1, "iterations_per_epoch": 1, "sheet_prompts": 0}
    Trainer(tiny_config(run=short), load_bundle(str(tiny_model_dir)), plain_rewards).run()
    longer = tiny_config(run={**short, "epochs": 2}, optim={"lr": 1e-5})
    resumed = Trainer(longer, load_bundle(str(tiny_model_dir)), plain_rewards, resume=True)
    assert resumed.iteration == 1
    assert [group["lr"] for group in resumed.optimizer.param_groups] == [1e-5]
    assert resumed.optimizer.state_dict()["state"]  # the moments are the saved ones
