"""The policy update: score recorded steps, regress the advantage gap, step the optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from t2mv_core.denoiser import predict_noise
from t2mv_core.policy import act, denoise_step
from t2mv_core.samplers import SamplingSettings
from t2mv_core.trajectory import Trajectory

from .objectives import approximate_kl, clip_fraction, zigal_loss
from .rollout import NonFiniteError, Policy, Rollout
from .updates import MicroStep, Update


@dataclass(frozen=True)
class UpdateStats:
    """Means over all (prompt, step) pairs of a pass, and over its optimizer steps for the gradient norm."""

    loss: float
    approx_kl: float
    clip_fraction: float
    grad_norm: float


class Learner:
    """Turns scored trajectories into optimizer steps.

    Each loss is divided by the number of pairs of its update over *all* processes and the gradients are
    summed, so an update is the same whatever the micro-batch and the number of processes.

    Args:
        policy: the policy whose LoRA is trained.
        parameters: the LoRA's parameters.
        optimizer: over these parameters.
        accelerator: for sums over processes.
        clip_range: bound on the log ratio.
        max_grad_norm: bound on the gradient's norm.
    """

    def __init__(
        self,
        policy: Policy,
        parameters: Sequence[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        clip_range: float,
        max_grad_norm: float,
    ) -> None:
        self.policy = policy
        self.parameters = list(parameters)
        self.optimizer = optimizer
        self.accelerator = accelerator
        self.clip_range = clip_range
        self.max_grad_norm = max_grad_norm

    def apply(
        self,
        rollout: Rollout,
        advantage_gap: Tensor,
        updates: Sequence[Update],
        sampling: SamplingSettings,
        on_micro_step: Callable[[], None],
    ) -> UpdateStats:
        """Take one optimizer step per update.

        Args:
            rollout: two scored sets per prompt.
            advantage_gap: A, first minus second set, [B, V].
            updates: which pairs to use when.
            sampling: guidance and view scale of the trajectories.
            on_micro_step: called after every backward pass.

        Raises:
            NonFiniteError: a loss or gradient is not finite; the weights are those of the last good step.
        """
        sums = torch.zeros(3, dtype=torch.float64)
        norms = []
        for update in updates:
            update_sums = torch.zeros(3, dtype=torch.float64)
            for micro_step in update.micro_steps:
                update_sums += self._accumulate(
                    rollout, advantage_gap, micro_step, update.num_terms, sampling
                )
                on_micro_step()
            norms.append(self._step(float(update_sums[0])))
            sums += update_sums
        totals = self.accelerator.reduce(sums.float().to(self.accelerator.device), "sum").cpu()
        means = (totals / sum(update.num_terms for update in updates)).tolist()
        return UpdateStats(means[0], means[1], means[2], sum(norms) / len(norms))

    def _accumulate(
        self,
        rollout: Rollout,
        advantage_gap: Tensor,
        micro_step: MicroStep,
        num_terms: int,
        sampling: SamplingSettings,
    ) -> Tensor:
        """Add one micro-step's gradient; return its summed loss, KL and clip fraction, without graph."""
        rows, steps = micro_step.prompts, micro_step.steps
        trajectories = [scored.trajectory for scored in rollout.sets]
        log_prob, old_log_prob = recorded_log_probs(self.policy, rollout, trajectories, micro_step, sampling)
        standard, zmv = (log_prob - old_log_prob).chunk(2)
        gap = advantage_gap[rows].to(standard.device)
        loss = zigal_loss(standard, zmv, gap, self.clip_range)
        (loss * (len(steps) / num_terms)).backward()
        both = torch.cat([standard, zmv])
        means = torch.stack([loss.detach(), approximate_kl(both), clip_fraction(both, self.clip_range)])
        return means.double().cpu() * len(steps)

    def _step(self, loss_sum: float) -> float:
        """Sum the gradients over processes, check, clip, step; return the norm before clipping."""
        self._sum_gradients()
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm))
        if not (math.isfinite(norm) and math.isfinite(loss_sum)):
            self.optimizer.zero_grad(set_to_none=True)
            raise NonFiniteError(
                f"The loss ({loss_sum}) or its gradient (norm {norm}) is not a finite number; "
                "the step was not taken. Resume from the last saved state with a lower optim.lr, or "
                "without mixed precision."
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _sum_gradients(self) -> None:
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self.accelerator.num_processes == 1:
            return
        gradients = [parameter.grad for parameter in self.parameters]
        flat = self.accelerator.reduce(torch.cat([g.flatten() for g in gradients if g is not None]), "sum")
        for parameter, part in zip(
            self.parameters, flat.split([p.numel() for p in self.parameters]), strict=True
        ):
            parameter.grad = part.view_as(parameter)


def recorded_log_probs(
    policy: Policy,
    rollout: Rollout,
    trajectories: Sequence[Trajectory],
    micro_step: MicroStep,
    sampling: SamplingSettings,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of recorded actions, now and then; all trajectories in one forward pass.

    Args:
        policy: the policy with its current weights.
        rollout: for the text condition of its prompts.
        trajectories: K trajectories of the same prompts.
        micro_step: rows and steps, b of each.
        sampling: guidance and view scale of the trajectories.

    Returns:
        log π_θ and log π_old, each [K·b, V], trajectory by trajectory, float32, nats per latent element.
    """
    bundle, rows, steps = policy.bundle, micro_step.prompts, micro_step.steps
    first = trajectories[0]
    timestep, next_timestep = (
        x[steps].repeat(len(trajectories)) for x in (first.timesteps, first.next_timesteps)
    )
    # Advanced indices around a slice: [B, V, T, ...][rows, :, steps] is [b, V, ...].
    states, actions, old = (
        torch.cat([getattr(t, name)[rows, :, steps] for t in trajectories]).to(bundle.device)
        for name in ("states", "actions", "log_probs")
    )
    condition = rollout.condition.select(rows.repeat(len(trajectories)))
    with policy.autocast():
        noise_pred = predict_noise(
            bundle, states, timestep, condition, policy.cameras, sampling.guidance_scale, sampling.view_scale
        )
        distribution = denoise_step(bundle.schedule, noise_pred, states, timestep, next_timestep)
    return act(distribution, action=actions)[1], old
