"""A bfloat16 base with a float32 LoRA: what the presets of 24 and 12 GB cards set, in small."""

import math
from dataclasses import replace

import pytest
import torch

from t2mv_core.loading import load_bundle
from t2mv_core.policy import denoise_step, log_prob, sample
from training.algorithm.learner import FP16_GRADIENT_SCALE, recorded_steps, step_distribution
from training.algorithm.objectives import zigal_loss
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


def gradient_of_half(scale):
    """Gradient of a loss of SDXL's size with respect to a UNet's float16 output, divided by the scale."""
    generator = torch.Generator().manual_seed(0)
    schedule = load_bundle("toybox").schedule
    states = torch.randn(2, 6, 4, 96, 96, generator=generator)
    noise_pred = torch.randn(states.shape, generator=generator).half().requires_grad_()
    steps = torch.full((2,), 999), torch.full((2,), 879)
    distribution = denoise_step(schedule, noise_pred, states, *steps)
    actions = sample(distribution, lambda size: torch.randn(size, generator=generator)).detach()
    new = log_prob(distribution, actions)
    advantages = torch.tensor([0.2, -0.2])[:, None, None].expand(2, 1, 6) / 16  # of 16 prompts in an update
    loss = zigal_loss((new - new.detach()).unflatten(0, (2, 1)), advantages, 1e-4)
    (gradient,) = torch.autograd.grad(scale * loss, noise_pred)
    return gradient.float() / scale


def test_a_float16_gradient_vanishes_unless_it_is_scaled():
    plain, scaled = gradient_of_half(1.0), gradient_of_half(FP16_GRADIENT_SCALE)
    assert (plain == 0).float().mean() > 0.05
    assert (scaled == 0).float().mean() < 1e-3
    assert scaled.isfinite().all()


def test_the_scale_leaves_the_step_as_it_is(tiny_model_dir, plain_rewards, tiny_config):
    """On a float32 model, where it does nothing: the gradient that reaches the optimizer is the same."""
    gradients = []
    for scale in (1.0, FP16_GRADIENT_SCALE):
        trainer = Trainer(tiny_config(), load_bundle(str(tiny_model_dir)), plain_rewards)
        trainer.learner._gradient_scale = scale
        rollout, table = trainer._collect(1)
        (first, *_) = iteration_updates(trainer.config, trainer.slots, 1)
        advantages = trainer._advantages(table)[list(trainer.slots)]
        for micro_step in first.micro_steps:
            trainer.learner._accumulate(rollout, advantages, micro_step, 1.0)
        trainer.learner._sum_gradients()
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.learner.parameters]))
    assert gradients[0].abs().max() > 0
    assert torch.allclose(*gradients, rtol=1e-5, atol=0)
