"""What may change when a run goes on, and what would make two runs of one."""

import pytest
import yaml

from t2mv_core.loading import load_bundle
from training.config import changed_values, config_from_dict, config_to_dict, load_config
from training.run.resume import FREE, flat, refuse_another_run
from training.run.trainer import Trainer


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
        ["sampling.batch_size=2", "optim.micro_batch=1", "optim.splits_pairs=true"],
        ["run.epochs=99", "evaluation.every=2", "evaluation.prompts=dev"],
    ],
)
def test_cost_and_length_may_change(saved, words):
    refuse_another_run(saved, load_config("demo", words))


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("objective=zigal_view", "objective"),
        ("sampling.guidance_scale=3", "sampling.guidance_scale"),
        ("reward.joint={toybox_hyperscore.geometry: 1}", "reward.joint"),
        ("model.lora_alpha=1", "model.lora_alpha"),
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
    known = {f"{section}.{key}" for section, values in config_to_dict(load_config("demo")).items()
             if isinstance(values, dict) for key in values}  # fmt: skip
    assert FREE <= known


def test_only_what_differs_from_its_default_is_compared():
    config = config_from_dict({"optim": {"lr": 0.5, "eps": 1e-8}, "objective": "ppo"})
    assert changed_values(config) == {"objective": "ppo", "optim": {"lr": 0.5}}
    assert flat(config) == {"objective": "ppo", "optim.lr": 0.5}


def test_a_resumed_run_takes_the_new_learning_rate(tiny_model_dir, plain_rewards, tiny_config):
    short = {"epochs": 1, "iterations_per_epoch": 1, "sheet_prompts": 0}
    Trainer(tiny_config(run=short), load_bundle(str(tiny_model_dir)), plain_rewards).run()
    longer = tiny_config(run={**short, "epochs": 2}, optim={"lr": 1e-5})
    resumed = Trainer(longer, load_bundle(str(tiny_model_dir)), plain_rewards, resume=True)
    assert resumed.iteration == 1
    assert [group["lr"] for group in resumed.optimizer.param_groups] == [1e-5]
    assert resumed.optimizer.state_dict()["state"]  # the moments are the saved ones
    other = tiny_config(objective="ppo", run={**short, "epochs": 2})
    with pytest.raises(ValueError, match="was started with objective="):
        Trainer(other, load_bundle(str(tiny_model_dir)), plain_rewards, resume=True)
