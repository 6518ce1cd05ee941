"""The training loop on a tiny random model: what it leaves behind, how it stops, what it refuses."""

import math
from dataclasses import replace

import pytest
import torch
import yaml
from safetensors import safe_open

from t2mv_core.bundle import load_bundle
from t2mv_core.lora import load_lora
from t2mv_core.rewards.base import RewardResult
from training.config import config_from_dict
from training.metrics import METRICS, read_metrics
from training.objectives import OBJECTIVES
from training.rollout import NonFiniteError, Rewards
from training.trainer import Trainer


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_every_objective_trains(objective, tiny_bundle, plain_rewards, tiny_config):
    trainer = Trainer(
        tiny_config(objective, run={"epochs": 1, "sheet_prompts": 0}), tiny_bundle, plain_rewards
    )
    assert trainer.run()
    records = read_metrics(trainer.folder.metrics_path)
    assert [record["iteration"] for record in records] == [1, 2]
    assert all(set(record) == set(METRICS) and all(map(math.isfinite, record.values())) for record in records)
    assert records[1]["approx_kl"] > 0


def test_a_run_leaves_its_folder(tiny_model_dir, tiny_bundle, plain_rewards, tiny_config):
    config = tiny_config()
    trainer = Trainer(config, tiny_bundle, plain_rewards)
    trainer.run()
    root = trainer.folder.root
    for name in (
        "curves.png",
        "samples/epoch_0001.png",
        "samples/epoch_0002.png",
        "lora/epoch_0001.safetensors",
        "last",
    ):
        assert (root / name).exists(), name
    assert config_from_dict(yaml.safe_load((root / "config.yaml").read_text())) == config
    lora = root / "lora" / "epoch_0002.safetensors"
    with safe_open(lora, framework="pt") as opened:
        facts = opened.metadata()
    assert (facts["rank"], facts["alpha"], facts["step"], facts["preset"]) == ("2", "2.0", "4", "custom")
    assert facts["base_model"] == str(tiny_model_dir)
    records = read_metrics(root / "metrics.jsonl")
    mean = (records[2]["view_reward_standard"] + records[3]["view_reward_standard"]) / 2
    assert float(facts["view_reward_mean"]) == pytest.approx(mean)
    loaded = load_lora(load_bundle(str(tiny_model_dir)), lora)
    assert loaded.loras[0].num_matched > 0
    assert loaded.loras[0].unmatched == ()


def test_only_the_lora_is_trained(tiny_bundle, plain_rewards, tiny_config):
    before = {name: tensor.clone() for name, tensor in tiny_bundle.unet.state_dict().items()}
    trainer = Trainer(tiny_config(run={"epochs": 1}), tiny_bundle, plain_rewards)
    trainer.run()
    after = {
        name.replace(".base_layer", ""): tensor for name, tensor in tiny_bundle.unet.state_dict().items()
    }
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    changed = [bool(p.any()) for name, p in after.items() if "lora_B" in name]
    assert all(changed)


def test_learning_follows_the_advantage(tiny_bundle, plain_rewards, tiny_config):
    """After an update on one rollout, the better trajectory of every pair has gained density on the other."""
    # 200 times more lr than curvature wants, one view, so that the direction is plain
    config = tiny_config(
        "zigal_view",
        optim={"lr": 1e-3, "prompts_per_update": None, "clip_range": 1.0},
        sampling={"azimuths_deg": [0]},
    )
    trainer = Trainer(config, tiny_bundle, plain_rewards)
    rollout = trainer._collect(1)
    gap, _ = trainer._advantage_gap(rollout, *trainer._gather_rewards(rollout))
    first = trainer._update(1, rollout, gap)
    second = trainer._update(2, rollout, gap)
    assert second.loss < first.loss


def test_a_stop_during_the_rollout_discards_it_and_saves(tiny_bundle, plain_rewards, tiny_config):
    trainer = Trainer(tiny_config(run={"save_every": 5}), tiny_bundle, plain_rewards)

    def stop_in_second_iteration(images, prompts):
        if trainer.iteration == 1:
            trainer.request_stop()
        return plain_rewards.view(images, prompts)

    trainer.rewards = replace(plain_rewards, view=stop_in_second_iteration)
    assert not trainer.run()
    assert trainer.iteration == 1
    assert len(read_metrics(trainer.folder.metrics_path)) == 1
    assert trainer.prompts.num_drawn == 4
    assert (trainer.folder.root / "last" / "counters.json").exists()


def test_a_stop_during_the_update_finishes_the_iteration(tiny_bundle, plain_rewards, tiny_config):
    trainer = Trainer(tiny_config(), tiny_bundle, plain_rewards)
    apply = trainer.learner.apply

    def apply_and_stop(*arguments):
        trainer.request_stop()
        return apply(*arguments)

    trainer.learner.apply = apply_and_stop
    assert not trainer.run()
    assert trainer.iteration == len(read_metrics(trainer.folder.metrics_path)) == 1


def test_a_reward_that_is_no_number_stops_before_the_update(tiny_bundle, plain_rewards, tiny_config):
    trainer = Trainer(tiny_config(), tiny_bundle, plain_rewards)
    trainer.rewards = Rewards(
        plain_rewards.view, lambda images, prompts: RewardResult(torch.full((len(prompts),), torch.nan))
    )
    before = [parameter.clone() for parameter in trainer.learner.parameters]
    with pytest.raises(NonFiniteError, match="joint reward of 'a photo of"):
        trainer.run()
    assert all(map(torch.equal, before, trainer.learner.parameters))


def test_a_folder_with_a_run_is_refused_without_resume(tiny_model_dir, plain_rewards, tiny_config):
    config = tiny_config(run={"epochs": 1, "iterations_per_epoch": 1, "sheet_prompts": 0})
    Trainer(config, load_bundle(str(tiny_model_dir)), plain_rewards).run()
    with pytest.raises(FileExistsError, match="holds a run at iteration 1; continue it with --resume auto"):
        Trainer(config, load_bundle(str(tiny_model_dir)), plain_rewards)
    other = tiny_config(model={"lora_rank": 4})
    with pytest.raises(ValueError, match=r"model.lora_rank the run was started with"):
        Trainer(other, load_bundle(str(tiny_model_dir)), plain_rewards, resume=True)
