"""The policy update: replayed log-probabilities, what reaches the gradient, and what stops it."""

import pytest
import torch

from training.learner import recorded_log_probs
from training.rollout import NonFiniteError
from training.seeds import derive_seed
from training.trainer import Trainer
from training.updates import MicroStep, plan_updates


@pytest.fixture
def trainer(tiny_bundle, plain_rewards, tiny_config):
    return Trainer(tiny_config(optim={"lr": 1e-4}), tiny_bundle, plain_rewards)


@pytest.fixture
def rollout(trainer):
    return trainer._collect(1)


def test_scoring_the_rollout_again_returns_its_log_probabilities(trainer, rollout):
    """ρ = 0 on the first inner step, for both trajectories, at steps that differ from prompt to prompt."""
    trajectories = [scored.trajectory for scored in rollout.sets]
    micro_step = MicroStep(torch.tensor([2, 0, 3]), torch.tensor([1, 0, 0]))
    new, old = recorded_log_probs(trainer.policy, rollout, trajectories, micro_step, trainer.sampling)
    assert new.shape == (6, 2)
    assert new.requires_grad
    assert not old.requires_grad
    torch.testing.assert_close(new.detach(), old, atol=1e-5, rtol=0)
    # rows: prompts 2, 0, 3 of the standard set, then of the ZMV set
    torch.testing.assert_close(old[0], trajectories[0].log_probs[2, :, 1])
    torch.testing.assert_close(old[4], trajectories[1].log_probs[0, :, 0])


def test_each_trajectory_pushes_its_own_action(trainer, rollout):
    """At ρ = 0 the gradient is 2·A·∇(log p_zmv - log p), averaged over pairs and views."""
    gap = torch.tensor([[0.5, -1.0], [2.0, 0.0], [0.0, 1.0], [-1.5, 0.3]])
    updates = plan_updates(4, 2, 4, 2, 4, range(4), derive_seed(0, "test"))
    for micro_step in updates[0].micro_steps:
        trainer.learner._accumulate(rollout, gap, micro_step, updates[0].num_terms, trainer.sampling)
    learned = torch.cat([p.grad.flatten() for p in trainer.learner.parameters])
    total = torch.zeros(())
    for row in range(4):
        for step in range(2):
            one = MicroStep(torch.tensor([row]), torch.tensor([step]))
            log_prob, _ = recorded_log_probs(
                trainer.policy, rollout, [s.trajectory for s in rollout.sets], one, trainer.sampling
            )
            total = total + (2 * gap[row] * (log_prob[1] - log_prob[0])).mean() / 8
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(total, trainer.learner.parameters)])
    assert expected.abs().max() > 0
    torch.testing.assert_close(learned, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_micro_batches_do_not_change_the_gradient(trainer, rollout):
    gap = torch.linspace(-1, 1, 8).reshape(4, 2)
    gradients = []
    for micro_batch in (1, 3, 4):
        update = plan_updates(4, 2, 4, 2, micro_batch, range(4), 5)[0]
        for micro_step in update.micro_steps:
            trainer.learner._accumulate(rollout, gap, micro_step, update.num_terms, trainer.sampling)
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.learner.parameters]))
        trainer.optimizer.zero_grad()
    scale = float(gradients[0].abs().max())
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=0, atol=1e-5 * scale)


def test_a_loss_that_is_no_number_takes_no_step(trainer, rollout):
    before = [parameter.clone() for parameter in trainer.learner.parameters]
    updates = plan_updates(4, 2, 4, 2, 4, range(4), 5)
    with pytest.raises(NonFiniteError, match="the step was not taken"):
        trainer.learner.apply(rollout, torch.full((4, 2), torch.nan), updates, trainer.sampling, lambda: None)
    assert all(map(torch.equal, before, trainer.learner.parameters))
    assert all(parameter.grad is None for parameter in trainer.learner.parameters)


def test_nothing_returned_keeps_a_graph(trainer, rollout):
    update = plan_updates(4, 2, 4, 2, 4, range(4), 5)[0]
    means = trainer.learner._accumulate(
        rollout, torch.zeros(4, 2), update.micro_steps[0], 8, trainer.sampling
    )
    assert not means.requires_grad
    assert not rollout.sets[0].trajectory.states.requires_grad
