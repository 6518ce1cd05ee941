"""Loss values and gradients against hand-computed cases; advantages against their definitions."""

import math

import pytest
import torch

from training.algorithm.objectives import (
    OBJECTIVES,
    approximate_kl,
    clip_fraction,
    combine_advantages,
    mv_dpo_loss,
    mv_pg_loss,
    normalize_advantages,
    ppo_clip_loss,
    zigal_loss,
)
from training.config import OBJECTIVE_NAMES


def leaf(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64, requires_grad=True)


def loss_of(standard, zmv, gap, clip_range):
    """The loss of a pair whose advantages differ by `gap`."""
    gap = torch.tensor([gap], dtype=torch.float64)
    return zigal_loss(torch.stack([standard, zmv]), torch.stack([gap + 0.5, 0 * gap + 0.5]), clip_range)


def test_loss_inside_the_clip_range_is_the_squared_regression_error():
    standard, zmv = leaf(0.03, -0.02), leaf(-0.01, 0.05)
    loss = loss_of(standard, zmv, [0.5, -0.25], clip_range=0.1)
    # view 1: 0.03 + 0.01 - 0.5 = -0.46; view 2: -0.02 - 0.05 + 0.25 = 0.18; mean of squares
    assert loss.item() == pytest.approx((0.46**2 + 0.18**2) / 2, abs=1e-12)
    loss.backward()
    # d/d rho = 2·error/2 views, d/d rho_zmv the opposite. Both branches are equal here: the gradient is
    # theirs.
    torch.testing.assert_close(standard.grad, torch.tensor([[-0.46, 0.18]], dtype=torch.float64))
    torch.testing.assert_close(zmv.grad, torch.tensor([[0.46, -0.18]], dtype=torch.float64))


def test_loss_beyond_the_clip_range_takes_the_worse_branch():
    # c = 0.1, A = 1. View 1: rho = 0.3 runs towards the target; its clipped error (0.1 - 1)² is worse, so no
    # gradient. View 2: rho = -0.3 runs away; its own error (-0.3 - 1)² is worse than the clipped (-0.1 -
    # 1)², so it is pulled back.
    standard, zmv = leaf(0.3, -0.3), leaf(0.0, 0.0)
    loss = loss_of(standard, zmv, [1.0, 1.0], clip_range=0.1)
    assert loss.item() == pytest.approx((0.9**2 + 1.3**2) / 2, abs=1e-12)
    loss.backward()
    torch.testing.assert_close(standard.grad, torch.tensor([[0.0, -1.3]], dtype=torch.float64))
    # The other trajectory is inside its range: clipping the first must not stop its own gradient, -error of
    # the branch.
    torch.testing.assert_close(zmv.grad, torch.tensor([[0.9, 1.3]], dtype=torch.float64))


def test_first_step_descends_towards_the_better_trajectory():
    standard, zmv = leaf(0.0), leaf(0.0)
    loss_of(standard, zmv, [-2.0], clip_range=1e-4).backward()
    # ZMV is better by 2: descending the loss lowers the standard action's density and raises ZMV's.
    assert standard.grad.item() == pytest.approx(4.0)
    assert zmv.grad.item() == pytest.approx(-4.0)


LOSSES = [zigal_loss, ppo_clip_loss, mv_pg_loss, mv_dpo_loss]


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_give_advantages_no_gradient(loss):
    advantages = torch.ones(2, 1, 2, requires_grad=True)
    loss(torch.zeros(2, 1, 2, requires_grad=True), advantages, 1e-4).backward()
    assert advantages.grad is None


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_refuse_what_does_not_fit(loss):
    with pytest.raises(ValueError, match="differ in shape"):
        loss(torch.zeros(2, 3, 6), torch.zeros(2, 3, 1), 1e-4)
    name = "dpo_beta" if loss is mv_dpo_loss else "clip_range"
    with pytest.raises(ValueError, match=f"{name}=0 must be positive"):
        loss(torch.zeros(2, 1, 1), torch.zeros(2, 1, 1), 0)


def test_loss_of_a_pair_takes_the_first_advantage_minus_the_second():
    log_ratios = torch.tensor([[[0.03, -0.3]], [[-0.01, 0.05]]], dtype=torch.float64)
    advantages = torch.tensor([[[0.5, -1.0]], [[0.25, 0.75]]], dtype=torch.float64)
    # Gaps 0.25 and -1.75. View 1: 0.04 - 0.25 = -0.21, nothing clipped. View 2: -0.35 + 1.75 = 1.4, clipped
    # -0.15 + 1.75 = 1.6, the larger.
    assert zigal_loss(log_ratios, advantages, 0.1).item() == pytest.approx((0.21**2 + 1.6**2) / 2, abs=1e-12)


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "loss", "slope"),
    [
        # c = 0.1: exp(rho) is left alone in [0.9, 1.1]. The loss is -A·ratio where that counts, with slope
        # -A·exp(rho); where the clipped term is the lower one it is a constant, with slope 0.
        (0.05, 2.0, -2.0 * math.exp(0.05), -2.0 * math.exp(0.05)),  # inside
        (0.05, -2.0, 2.0 * math.exp(0.05), 2.0 * math.exp(0.05)),
        (-0.05, 2.0, -2.0 * math.exp(-0.05), -2.0 * math.exp(-0.05)),
        (0.2, 2.0, -2.2, 0.0),  # a good action is more likely already: min(2·1.22, 2·1.1)
        (
            0.2,
            -2.0,
            2.0 * math.exp(0.2),
            2.0 * math.exp(0.2),
        ),  # a bad one is: min(-2·1.22, -2·1.1), pulled back
        (-0.2, 2.0, -2.0 * math.exp(-0.2), -2.0 * math.exp(-0.2)),  # a good one is less likely: pulled back
        (-0.2, -2.0, 1.8, 0.0),  # a bad one is less likely already: min(-2·0.82, -2·0.9)
    ],
)
def test_ppo_loss_by_hand(log_ratio, advantage, loss, slope):
    rho = leaf(log_ratio)
    found = ppo_clip_loss(rho, torch.tensor([[advantage]], dtype=torch.float64), clip_range=0.1)
    assert found.item() == pytest.approx(loss, abs=1e-12)
    found.backward()
    assert rho.grad.item() == pytest.approx(slope, abs=1e-12)


def test_ppo_loss_is_ddpos():
    """DDPO's code takes the maximum of the negatives: max(-A·ratio, -A·clip(ratio))."""
    generator = torch.Generator().manual_seed(0)
    rho, gain = (torch.randn(2, 5, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    ratio = (0.1 * rho).exp()
    expected = torch.maximum(-gain * ratio, -gain * ratio.clamp(1 - 0.05, 1 + 0.05)).mean()
    torch.testing.assert_close(ppo_clip_loss(0.1 * rho, gain, 0.05), expected)


def test_the_policy_gradient_sums_the_views_and_clips_nothing():
    """K = 2, B = 1, V = 2; log ratios far beyond the clip range of 0.1."""
    rho = torch.tensor([[[0.5, -1.0]], [[2.0, 0.25]]], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([[[3.0, 3.0]], [[-2.0, -2.0]]], dtype=torch.float64)
    # -3·(0.5 - 1) = 1.5 and 2·(2 + 0.25) = 4.5: their mean
    loss = mv_pg_loss(rho, advantages, 0.1)
    assert loss.item() == pytest.approx(3.0, abs=1e-12)
    loss.backward()
    # -A/2 in every view: each view's log-likelihood counts in full, the two trajectories by half
    expected = torch.tensor([[[-1.5, -1.5]], [[1.0, 1.0]]], dtype=torch.float64)
    torch.testing.assert_close(rho.grad, expected)


def test_the_preference_loss_by_hand():
    """β = 2, two prompts, two views: the first sample is the better one in prompt 1 only."""
    ratios = torch.tensor([[[0.3, 0.2], [0.1, 0.0]], [[0.1, -0.1], [0.4, 0.2]]], requires_grad=True)
    advantages = torch.tensor([[[5.0, 5.0], [-1.0, -1.0]], [[2.0, 2.0], [1.0, 1.0]]])
    # Sums over the views: 0.5 and 0.0 in prompt 1, 0.1 and 0.6 in prompt 2. Better minus worse is 0.5 twice,
    # -log sigmoid(1) = log(1 + exp(-1)), whatever the size of the advantages.
    loss = mv_dpo_loss(ratios, advantages, 2.0)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)), abs=1e-6)
    loss.backward()
    # d/dΔ_better = -β·sigmoid(-1)/2 prompts, the opposite for the worse; the same in every view
    slope = 1 / (1 + math.e)
    expected = torch.tensor([[[-slope] * 2, [slope] * 2], [[slope] * 2, [-slope] * 2]])
    torch.testing.assert_close(ratios.grad, expected)


def test_a_preference_against_the_policy_pulls_harder():
    advantages = torch.tensor([[[1.0]], [[-1.0]]])
    slopes = []
    for ratio in (-3.0, 0.0, 3.0):  # log ratio of the better sample; the worse one's is 0
        ratios = torch.tensor([[[ratio]], [[0.0]]], requires_grad=True)
        mv_dpo_loss(ratios, advantages, 1.0).backward()
        slopes.append(ratios.grad[0].item())
    # -sigmoid(-ratio)
    assert slopes == pytest.approx([-1 / (1 + math.exp(r)) for r in (-3.0, 0.0, 3.0)], abs=1e-6)


def test_samples_of_equal_reward_prefer_nothing():
    ratios = torch.tensor([[[0.7, 0.1]], [[-0.2, 0.0]]], requires_grad=True)
    loss = mv_dpo_loss(ratios, torch.full((2, 1, 2), 0.3), 50.0)
    assert loss.item() == pytest.approx(math.log(2))
    loss.backward()
    assert not ratios.grad.any()


def test_advantages_of_groups_have_their_groups_mean_and_one_deviation():
    # Rows 0 and 2 are one prompt: mean (1 + 3 + 6 + 2)/4 = 3; row 1 is another: mean (10 + 20)/2 = 15.
    rewards = torch.tensor([[1.0, 3.0], [10.0, 20.0], [6.0, 2.0]])
    # centred: -2, 0, 3, -1 and -5, 5; one variance for all, (4 + 0 + 9 + 1 + 25 + 25)/6 = 64/6
    expected = torch.tensor([[-2.0, 0.0], [-5.0, 5.0], [3.0, -1.0]]) / math.sqrt(64 / 6)
    torch.testing.assert_close(normalize_advantages(rewards, [7, 0, 7]), expected)
    # one group for all is no group
    assert torch.equal(normalize_advantages(rewards, [3, 3, 3]), normalize_advantages(rewards))


def test_advantages_are_ddpos():
    """DDPO's code: (r - mean)/(std + eps), numpy's population std; arXiv:2305.13301, section 4.1."""
    rewards = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
    values = rewards.double().numpy()
    expected = (values - values.mean()) / (values.std() + 1e-8)
    torch.testing.assert_close(normalize_advantages(rewards).double(), torch.from_numpy(expected))


def test_equal_rewards_give_no_advantage():
    rewards = torch.full((4, 6), 0.1)
    assert normalize_advantages(rewards).abs().max() < 1e-6
    # equal within each prompt, different between them
    rewards[::2] = 0.7
    assert normalize_advantages(rewards, [0, 1, 0, 1]).abs().max() < 1e-6


@pytest.mark.parametrize("lambda_", [-0.1, math.nan])
def test_combination_refuses_a_multiplier_out_of_range(lambda_):
    with pytest.raises(ValueError, match="must be zero or positive"):
        combine_advantages(torch.zeros(1, 2), torch.zeros(1), lambda_)


def test_combination_refuses_joint_advantages_of_other_sets():
    with pytest.raises(ValueError, match="do not belong together"):
        combine_advantages(torch.zeros(2, 6), torch.zeros(12), 1.0)


def test_the_estimated_kl_is_that_of_gaussians():
    """Samples of one policy under another whose mean lies 0.01 to 0.03 standard deviations apart."""
    generator = torch.Generator().manual_seed(0)
    size = (400, 4, 16, 16)
    shift = 0.02 * (1 + 0.5 * torch.rand(size, generator=generator))
    noise = torch.randn(size, generator=generator)
    log_ratio = (noise.square() - (noise - shift).square()).flatten(1).mean(dim=1) / 2  # σ = 1
    estimate = approximate_kl(log_ratio, 4 * 16 * 16)
    assert estimate.item() == pytest.approx(float(shift.square().mean() / 2), rel=0.2)


def test_diagnostics_have_no_graph():
    log_ratio = torch.tensor([0.0, 2e-4, -3e-4, 1e-5], requires_grad=True)
    assert not approximate_kl(log_ratio, 1).requires_grad
    # 10·(4e-8 + 9e-8 + 1e-10)/4/2
    assert approximate_kl(log_ratio, 10).item() == pytest.approx(1.62625e-7, rel=1e-5)
    assert clip_fraction(log_ratio, 1e-4).item() == 0.5


def test_every_objective_has_a_config_word():
    assert tuple(OBJECTIVES) == OBJECTIVE_NAMES


def test_only_objectives_without_a_fixed_multiplier_use_the_dual_variable():
    fixed = {"zigal_view": 0.0, "zigal_joint": math.inf, "zigal_weighted": 1.0}
    fixed |= dict.fromkeys(("mv_pg", "mv_zigpg", "mv_dpo"), math.inf)
    assert {name: o.fixed_lambda for name, o in OBJECTIVES.items() if not o.uses_dual} == fixed
