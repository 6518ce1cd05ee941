"""The policy update: replayed log-probabilities, what reaches the gradient, and what stops it."""

import math
from dataclasses import replace

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from t2mv_core.loading import load_bundle
from t2mv_core.policy import log_prob
from t2mv_core.trajectory import derive_seed
from training.algorithm.learner import recorded_steps, step_distribution
from training.algorithm.scoring import NonFiniteError
from training.algorithm.updates import MicroStep, plan_updates
from training.models.policy import iteration_updates
from training.run.trainer import Trainer


@pytest.fixture
def make_trainer(tiny_model_dir, plain_rewards, tiny_config, tmp_path):
    """Builds trainers on freshly loaded models, each in a folder of its own."""
    counter = iter(range(100))

    def build(objective="mvc_zigal", **sections):
        sections["optim"] = {"lr": 1e-4, **sections.get("optim", {})}
        sections["run"] = {"out_dir": str(tmp_path / f"run{next(counter)}")}
        return Trainer(tiny_config(objective, **sections), load_bundle(str(tiny_model_dir)), plain_rewards)

    return build


@pytest.fixture
def trainer(make_trainer):
    return make_trainer()


def collect(trainer):
    return trainer._collect(1)[0]


@pytest.fixture
def rollout(trainer):
    return collect(trainer)


@pytest.fixture
def advantages():
    return torch.randn(4, 2, 2, generator=torch.Generator().manual_seed(1))


def move_lora(trainer, scale=0.1):
    """Away from where it acted: else every log ratio is 0 and a LoRA that starts at zero has no effect."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainer.learner.parameters:
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def gradient_of(trainer, rollout, advantages, micro_batch=2, is_on_policy=False, **settings):
    """Gradient and summed statistics of all 8 pairs of a rollout; settings replace the learner's."""
    learner = trainer.learner
    learner.settings = replace(learner.settings, **settings)
    (update,) = plan_updates(4, 2, 2, 4, 2, micro_batch, range(4), derive_seed(0, "test"))
    sums = sum(
        learner._accumulate(rollout, advantages, micro_step, len(micro_step.steps) / 8, is_on_policy)
        for micro_step in update.micro_steps
    )
    gradient = torch.cat([p.grad.flatten() for p in learner.parameters])
    trainer.optimizer.zero_grad()
    assert gradient.abs().max() > 0
    return gradient, sums


def assert_close(ours, theirs, tolerance=1e-5):
    """Gradients equal to a share of their largest element."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * float(theirs.abs().max()))


def pairs():
    return [MicroStep(torch.tensor([row]), torch.tensor([step])) for row in range(4) for step in range(2)]


def distribution_of(trainer, rollout, number, micro_step, policy=None):
    """What the policy would do in a recorded state of trajectory `number`, and that record."""
    recorded = recorded_steps(rollout, [rollout.sets[number].trajectory], micro_step)
    return step_distribution(policy or trainer.policy, recorded, trainer.sampling), recorded


def test_scoring_the_rollout_again_returns_its_log_probabilities(trainer, rollout):
    """ρ = 0 on the first inner step, for both trajectories, at steps that differ from prompt to prompt."""
    trajectories = [scored.trajectory for scored in rollout.sets]
    micro_step = MicroStep(torch.tensor([2, 0, 3]), torch.tensor([1, 0, 0]))
    recorded = recorded_steps(rollout, trajectories, micro_step)
    new, old = (
        log_prob(step_distribution(trainer.policy, recorded, trainer.sampling), recorded.actions),
        recorded.log_probs,
    )
    assert new.shape == (6, 2)
    assert new.requires_grad
    assert not old.requires_grad
    torch.testing.assert_close(new.detach(), old, atol=1e-5, rtol=0)
    # rows: prompts 2, 0, 3 of the standard set, then of the ZMV set
    torch.testing.assert_close(old[0], trajectories[0].log_probs[2, :, 1])
    torch.testing.assert_close(old[4], trajectories[1].log_probs[0, :, 0])


@pytest.mark.parametrize("splits_pairs", [False, True])
def test_rounding_does_not_reach_the_gradient_on_policy(trainer, rollout, advantages, splits_pairs):
    """As if the rollout's batches, of another size, had rounded otherwise: ρ of ten clip ranges, not 0."""
    expected, _ = gradient_of(trainer, rollout, advantages, is_on_policy=True, splits_pairs=False)
    noise = torch.Generator().manual_seed(0)
    for scored in rollout.sets:
        log_probs = scored.trajectory.log_probs
        log_probs += 10 * trainer.learner.settings.clip_range * torch.randn(log_probs.shape, generator=noise)
    rounded, sums = gradient_of(trainer, rollout, advantages, is_on_policy=True, splits_pairs=splits_pairs)
    assert_close(rounded, expected)
    assert sums[2] > 4  # the metric shows it: more than half of 8 pairs are beyond the clip range
    disturbed, _ = gradient_of(trainer, rollout, advantages, is_on_policy=False, splits_pairs=splits_pairs)
    assert (disturbed - expected).abs().max() > 0.1 * expected.abs().max()


@pytest.mark.parametrize("sets", [[0, 1], [1]])
def test_log_ratios_are_zero_for_states_kept_in_half_the_memory(make_trainer, sets):
    trainer = make_trainer(sampling={"state_dtype": "bf16", "num_steps": 3})
    rollout = collect(trainer)
    for scored in rollout.sets:
        assert scored.trajectory.states.dtype == scored.trajectory.actions.dtype == torch.bfloat16
        assert scored.trajectory.log_probs.dtype == torch.float32
    for step in range(3):
        micro_step = MicroStep(torch.arange(4), torch.full((4,), step))
        log_ratios, _ = trainer.learner._score(rollout, sets, micro_step)
        assert log_ratios.shape == (len(sets), 4, 2)
        assert log_ratios.abs().max() < 1e-5


def test_each_trajectory_pushes_its_own_action(trainer, rollout, advantages):
    """At ρ = 0 the gradient is 2·A·∇(log p_zmv - log p), averaged over pairs and views."""
    learned, _ = gradient_of(trainer, rollout, advantages, micro_batch=4)
    gap = advantages[:, 0] - advantages[:, 1]
    total = torch.zeros(())
    for pair in pairs():
        standard, zmv = (
            log_prob(distribution, recorded.actions)[0]
            for distribution, recorded in (distribution_of(trainer, rollout, k, pair) for k in (0, 1))
        )
        total = total + (2 * gap[pair.prompts[0]] * (zmv - standard)).mean() / 8
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(total, trainer.learner.parameters)])
    assert expected.abs().max() > 0
    torch.testing.assert_close(learned, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_the_policy_gradient_is_the_naive_one(make_trainer, advantages):
    """PPO at ρ = 0: -A·∇log p, averaged over trajectories, pairs and views."""
    trainer = make_trainer("ppo")
    rollout = collect(trainer)
    learned, _ = gradient_of(trainer, rollout, advantages, micro_batch=3)
    total = torch.zeros(())
    for pair in pairs():
        for k in (0, 1):
            distribution, recorded = distribution_of(trainer, rollout, k, pair)
            gain = advantages[pair.prompts[0], k]
            total = total - (gain * log_prob(distribution, recorded.actions)[0]).mean() / 16
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(total, trainer.learner.parameters)])
    assert_close(learned, expected, 1e-4)


@pytest.mark.parametrize("objective", ["mv_pg", "mv_zigpg"])
def test_the_papers_policy_gradient_is_the_sum_of_the_views(make_trainer, objective):
    """-A_joint·Σ_v ∇log p^v, averaged over trajectories and pairs."""
    trainer = make_trainer(objective)
    rollout, table = trainer._collect(1)
    assert {scored.sampler for scored in rollout.sets} == {"zmv" if objective == "mv_zigpg" else "standard"}
    learned, _ = gradient_of(trainer, rollout, trainer._advantages(table), micro_batch=3)
    rewards = table.joint["agreement"].double()
    gains = (rewards - rewards.mean()) / rewards.std(correction=0)
    total = torch.zeros(())
    for pair in pairs():
        for k in (0, 1):
            distribution, recorded = distribution_of(trainer, rollout, k, pair)
            gain = float(gains[pair.prompts[0], k])
            total = total - gain * log_prob(distribution, recorded.actions)[0].sum() / 16
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(total, trainer.learner.parameters)])
    assert_close(learned, expected, 1e-4)


@pytest.mark.parametrize("splits_pairs", [False, True])
def test_preferences_are_measured_against_the_model_without_the_lora(
    make_trainer, tiny_model_dir, splits_pairs
):
    """DPO's loss of the joint log-densities under the moved policy and the bare model, loaded anew."""
    trainer = make_trainer("mv_dpo", optim={"dpo_beta": 0.5})
    move_lora(trainer, 0.05)
    rollout, table = trainer._collect(1)  # by a policy that is not the reference
    move_lora(trainer, 0.05)
    bare = replace(trainer.policy, bundle=load_bundle(str(tiny_model_dir)))
    total, margins = torch.zeros(()), []
    for pair in pairs():
        gaps = []
        for k in (0, 1):
            ours, recorded = distribution_of(trainer, rollout, k, pair)
            with torch.no_grad():
                theirs, _ = distribution_of(trainer, rollout, k, pair, bare)
            gaps.append(
                Normal(ours.mean, ours.std).log_prob(recorded.actions).sum()
                - Normal(theirs.mean, theirs.std).log_prob(recorded.actions).sum()
            )
        first, second = table.joint["agreement"][pair.prompts[0]]
        margin = (gaps[0] - gaps[1]) * (1 if first > second else -1)
        margins.append(margin.item())
        total = total + torch.log1p(torch.exp(-0.5 * margin)) / 8
    assert min(margins) < 0 < max(margins)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(total, trainer.learner.parameters)])
    learned, sums = gradient_of(trainer, rollout, trainer._advantages(table), splits_pairs=splits_pairs)
    assert_close(learned, expected, 1e-3)
    assert float(sums[0]) / 8 == pytest.approx(total.item(), rel=1e-4)


@pytest.mark.parametrize("objective", ["mvc_zigal", "ppo"])
@pytest.mark.parametrize("kl_weight", [0.0, 2.0])
def test_one_trajectory_at_a_time_gives_the_same_gradient(make_trainer, advantages, objective, kl_weight):
    trainer = make_trainer(objective)
    rollout = collect(trainer)
    move_lora(trainer)
    # log ratios of this LoRA lie around 1e-3: some are clipped, some not
    settings = {"clip_range": 1e-3, "kl_weight": kl_weight}
    together, sums = gradient_of(trainer, rollout, advantages, **settings, splits_pairs=False)
    split, split_sums = gradient_of(trainer, rollout, advantages, **settings, splits_pairs=True)
    assert 0 < sums[2] / 8 < 1
    assert (sums[3] > 0) == (kl_weight > 0)
    assert_close(split, together)
    torch.testing.assert_close(split_sums, sums, rtol=1e-4, atol=1e-6)


def test_preferences_on_policy_know_that_the_policy_has_left_the_reference(make_trainer):
    """On policy ρ is 0, the log ratio to the reference is not: split and together must agree."""
    trainer = make_trainer("mv_dpo")
    move_lora(trainer, 0.05)
    rollout, table = trainer._collect(1)
    advantages, gradients = trainer._advantages(table), []
    micro_step = MicroStep(torch.arange(4), torch.tensor([0, 1, 0, 1]))
    for splits_pairs in (False, True):
        trainer.learner.settings = replace(trainer.learner.settings, splits_pairs=splits_pairs)
        sums = trainer.learner._accumulate(rollout, advantages, micro_step, 1.0, is_on_policy=True)
        assert abs(float(sums[0]) / 4 - math.log(2)) > 1e-4
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.learner.parameters]))
        trainer.optimizer.zero_grad()
    assert_close(gradients[1], gradients[0], 1e-3)


@pytest.mark.parametrize("objective", ["mvc_zigal", "ppo"])
def test_the_first_update_of_split_pairs_takes_no_pass_more(make_trainer, advantages, objective):
    """On policy the log ratios are 0: known without the pass that later updates need."""
    found, calls = [], []
    for splits_pairs in (False, True):
        optim = {"splits_pairs": splits_pairs, "prompts_per_update": 2, "micro_batch": 1}
        trainer = make_trainer(objective, optim=optim)
        rollout = collect(trainer)
        gradients, evaluations = [], []
        step = trainer.optimizer.step

        def keep(trainer=trainer, gradients=gradients, step=step):
            gradients.append(torch.cat([p.grad.flatten() for p in trainer.learner.parameters]))
            step()

        trainer.optimizer.step = keep
        trainer.policy.bundle.unet.register_forward_pre_hook(lambda *_, seen=evaluations: seen.append(0))
        trainer._update(1, rollout, advantages)
        found.append(gradients)
        calls.append(len(evaluations))
    # 2 updates of 2 prompts x 2 steps, one prompt a pass: 8 passes; split, 4 x 2, then 4 x 2 and as many more
    assert calls == [8, 8 + 16]
    for ours, theirs in zip(*found, strict=True):
        assert_close(ours, theirs, 1e-4)


@pytest.mark.parametrize(("kl_weight", "splits_pairs"), [(0.0, False), (2.0, True)])
def test_gradient_checkpointing_gives_the_same_gradient(make_trainer, advantages, kl_weight, splits_pairs):
    """Activations are computed again in the backward pass, where the LoRA has to be on."""
    found, calls = [], []
    for has_checkpointing in (False, True):
        trainer = make_trainer(
            model={"gradient_checkpointing": has_checkpointing},
            optim={"kl_weight": kl_weight, "splits_pairs": splits_pairs, "clip_range": 1.0},
        )
        rollout = collect(trainer)
        move_lora(trainer)
        seen = []
        block = trainer.policy.bundle.unet.up_blocks[0].attentions[0].transformer_blocks[0]
        block.register_forward_pre_hook(lambda *_, seen=seen: seen.append(0))
        found.append(gradient_of(trainer, rollout, advantages)[0])
        calls.append(len(seen))
    assert calls[1] > calls[0]  # else nothing was checkpointed
    assert_close(found[1], found[0])


def test_without_a_lora_there_is_no_kl(make_trainer):
    trainer = make_trainer(optim={"kl_weight": 1.0})
    rollout = collect(trainer)
    for micro_step in pairs():
        assert trainer.learner._score(rollout, [0, 1], micro_step)[1].item() == 0.0


def test_the_kl_is_torchs_and_pulls_towards_the_model_without_the_lora(
    make_trainer, advantages, tiny_model_dir
):
    """Mean KL of Normals over pairs, trajectories, views, C, H, W; the model without the LoRA loaded anew."""
    trainer = make_trainer()
    rollout = collect(trainer)
    move_lora(trainer)
    bare = replace(trainer.policy, bundle=load_bundle(str(tiny_model_dir)))
    total = torch.zeros(())
    for pair in pairs():
        for k in (0, 1):
            ours, _ = distribution_of(trainer, rollout, k, pair)
            with torch.no_grad():
                theirs, _ = distribution_of(trainer, rollout, k, pair, bare)
            kl = kl_divergence(Normal(ours.mean, ours.std), Normal(theirs.mean, theirs.std))
            assert kl.shape == (1, 2, 4, 8, 8)
            total = total + kl.mean() / 16
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(total, trainer.learner.parameters)])
    without, _ = gradient_of(trainer, rollout, advantages, kl_weight=0.0)
    for weight in (3.0, 100.0):
        pulled, sums = gradient_of(trainer, rollout, advantages, kl_weight=weight)
        assert_close((pulled - without) / weight, expected, 1e-3)
        assert float(sums[3]) / 8 == pytest.approx(total.item(), rel=1e-4)


def test_the_kl_is_reported_per_pair(make_trainer, advantages):
    trainer = make_trainer(optim={"kl_weight": 2.0, "micro_batch": 3})
    rollout = collect(trainer)
    move_lora(trainer)
    expected = torch.stack(
        [trainer.learner._score(rollout, [0, 1], pair)[1].detach() for pair in pairs()]
    ).mean()
    trainer.optimizer.param_groups[0]["lr"] = 0.0  # several updates, all on this LoRA
    stats = trainer._update(1, rollout, advantages)
    assert stats.reference_kl == pytest.approx(expected.item(), rel=1e-4)
    assert stats.reference_kl > 0


def test_only_some_of_a_prompts_steps_are_learned_from(make_trainer):
    """trained_steps = 2 of 5: every prompt brings 2 different steps to every pass, other ones each time."""
    trainer = make_trainer(
        sampling={"num_steps": 5, "prompts_per_iteration": 3, "zigzag_steps": 1},
        optim={"trained_steps": 2, "inner_epochs": 2, "steps_per_update": 5, "prompts_per_update": 2},
    )
    drawn = []
    for iteration in (1, 2):
        updates = iteration_updates(trainer.config, trainer.slots, iteration)
        assert len(updates) == 4  # 2 passes of 2 + 1 prompts; steps_per_update is cut to 2
        assert [update.num_terms for update in updates] == [4, 2] * 2
        for inner_epoch in range(2):
            steps = {slot: [] for slot in range(3)}
            for update in updates[2 * inner_epoch : 2 * inner_epoch + 2]:
                for micro_step in update.micro_steps:
                    for slot, step in zip(
                        micro_step.prompts.tolist(), micro_step.steps.tolist(), strict=True
                    ):
                        steps[slot].append(step)
            assert all(len(set(own)) == len(own) == 2 for own in steps.values())
            drawn.append(tuple(map(tuple, steps.values())))
    assert len(set(drawn)) == 4
    rollout = collect(trainer)
    seen = []
    score = trainer.learner._score
    trainer.learner._score = lambda *given: seen.append(given[2]) or score(*given)
    trainer._update(1, rollout, torch.ones(3, 2, 2))
    assert sum(len(micro_step.steps) for micro_step in seen) == 2 * 3 * 2


def test_the_average_follows_every_optimizer_step(make_trainer, advantages):
    trainer = make_trainer(optim={"ema_decay": 0.9, "lr": 1e-2, "prompts_per_update": 1})
    rollout = collect(trainer)
    start = [p.detach().clone() for p in trainer.learner.parameters]
    after_step = []
    step = trainer.optimizer.step

    def step_and_look(*arguments, **named):
        step(*arguments, **named)
        after_step.append([p.detach().clone() for p in trainer.learner.parameters])

    trainer.optimizer.step = step_and_look
    trainer._update(1, rollout, advantages)
    assert len(after_step) == trainer.ema.optimization_step == 4  # 4 prompts, one per update
    averages = start
    for number, values in enumerate(after_step):
        decay = min(0.9, (1 + number) / (10 + number)) if number else 0.0
        averages = [decay * s + (1 - decay) * p for s, p in zip(averages, values, strict=True)]
    for shadow, expected in zip(trainer.ema.shadow_params, averages, strict=True):
        torch.testing.assert_close(shadow, expected, atol=1e-6, rtol=1e-5)
    assert not torch.equal(trainer.ema.shadow_params[1], trainer.learner.parameters[1])


def test_a_loss_that_is_no_number_takes_no_step(make_trainer, advantages):
    trainer = make_trainer(optim={"ema_decay": 0.9, "prompts_per_update": None})
    rollout = collect(trainer)
    before = [parameter.clone() for parameter in trainer.learner.parameters]
    broken = advantages.clone()
    broken[3, 1, 1] = torch.nan
    with pytest.raises(NonFiniteError, match="the step was not taken"):
        trainer._update(1, rollout, broken)
    assert all(map(torch.equal, before, trainer.learner.parameters))
    assert all(parameter.grad is None for parameter in trainer.learner.parameters)
    assert trainer.ema.optimization_step == 0


@pytest.mark.parametrize("settings", [{}, {"splits_pairs": True, "kl_weight": 1.0}])
def test_nothing_returned_keeps_a_graph(trainer, rollout, advantages, settings):
    trainer.learner.settings = replace(trainer.learner.settings, **settings)
    update = plan_updates(4, 2, 2, 4, 2, 4, range(4), 5)[0]
    means = trainer.learner._accumulate(rollout, advantages, update.micro_steps[0], share=0.5)
    assert not means.requires_grad
    assert not rollout.sets[0].trajectory.states.requires_grad
