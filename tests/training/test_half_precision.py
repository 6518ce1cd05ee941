"""A bfloat16 base with a float32 LoRA: what the presets of 24 and 12 GB cards set, in small."""

import math
from dataclasses import replace

import pytest
import torch

from t2mv_core.loading import load_bundle
from t2mv_core.policy import log_prob
from training.algorithm.learner import recorded_steps, step_distribution
from training.config import load_config
from training.models.policy import LORA_NAME, iteration_updates
from training.run.trainer import Trainer


@pytest.fixture
def trainer(tiny_model_dir, plain_rewards, tiny_config):
    small_card = load_config("lcm-sdxl-12gb")
    config = tiny_config(
        model={"dtype": "bf16", "gradient_checkpointing": True},
        sampling={"state_dtype": small_card.sampling.state_dtype},
        optim={"lr": 1e-2, "mixed_precision": "bf16", "splits_pairs": True, "micro_batch": 1},
    )
    return Trainer(config, load_bundle(str(tiny_model_dir), dtype=torch.bfloat16), plain_rewards)


def test_an_iteration_moves_the_lora_and_nothing_else(trainer):
    unet = trainer.policy.bundle.unet
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    record, _ = trainer._iterate(1)
    assert all(math.isfinite(value) for value in record.values())
    assert record["loss"] > 0
    assert record["grad_norm"] > 0
    moved = {name for name, value in unet.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    for name, value in unet.state_dict().items():
        is_lora = f".{LORA_NAME}." in name
        assert value.dtype == (torch.float32 if is_lora else torch.bfloat16), name
        assert is_lora or name not in moved


def test_log_ratios_are_zero_where_the_policy_acted(trainer):
    """To 1e-5, a tenth of the clip range: log-probabilities are float32, from float32 means."""
    rollout = trainer._collect(1)[0]
    (first, *_) = iteration_updates(trainer.config, trainer.slots, 1)
    for micro_step in first.micro_steps:
        for scored in rollout.sets:
            recorded = recorded_steps(rollout, [scored.trajectory], micro_step)
            with torch.no_grad():
                distribution = step_distribution(trainer.policy, recorded, trainer.sampling)
            assert distribution.mean.dtype == recorded.log_probs.dtype == torch.float32
            assert (log_prob(distribution, recorded.actions) - recorded.log_probs).abs().max() < 1e-5


def test_the_lora_gets_no_copy_of_its_input_under_autocast(trainer):
    """Its input stays bfloat16: a float32 copy per projection would be kept for the backward pass."""
    seen = []
    for name, module in trainer.policy.bundle.unet.named_modules():
        if name.endswith(f".lora_A.{LORA_NAME}"):
            module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    rollout = trainer._collect(1)[0]
    (first, *_) = iteration_updates(trainer.config, trainer.slots, 1)
    recorded = recorded_steps(rollout, [rollout.sets[0].trajectory], first.micro_steps[0])
    step_distribution(trainer.policy, recorded, trainer.sampling)
    assert set(seen) == {torch.bfloat16}
    seen.clear()
    step_distribution(replace(trainer.policy, has_bf16_autocast=False), recorded, trainer.sampling)
    assert set(seen) == {torch.float32}  # nobody else brings both to one dtype there
