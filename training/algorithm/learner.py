"""The policy update: score recorded steps, take the objective's gradient, step the optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from t2mv_core.denoiser import predict_noise
from t2mv_core.policy import StepDistribution, denoise_step, gaussian_kl, log_prob
from t2mv_core.samplers import SamplingSettings
from t2mv_core.text import TextCondition
from t2mv_core.trajectory import Trajectory

from .objectives import Loss, approximate_kl, clip_fraction
from .rollout import NonFiniteError, Policy, Rollout
from .updates import MicroStep, Update


@dataclass(frozen=True)
class UpdateStats:
    """Means over all (prompt, step) pairs of a pass, and over its optimizer steps for the gradient norm."""

    loss: float
    approx_kl: float
    clip_fraction: float
    reference_kl: float
    grad_norm: float


NUM_SUMS = 4
"""The first fields of UpdateStats are sums over pairs."""


@dataclass(frozen=True)
class LearnerSettings:
    """How log-probabilities become optimizer steps.

    Attributes:
        loss: of log ratios and advantages; see `objectives.Loss`.
        clip_range: bound on the log ratio.
        max_grad_norm: bound on the gradient's norm.
        kl_weight: factor of the KL to the policy without the LoRA; 0 does not compute it.
        splits_pairs: one trajectory of a prompt at a time: half the activations; one forward pass more,
            except in an iteration's first update.
    """

    loss: Loss
    clip_range: float
    max_grad_norm: float
    kl_weight: float = 0.0
    splits_pairs: bool = False


class Learner:
    """Turns scored trajectories into optimizer steps.

    Each loss is divided by the number of pairs of its update over *all* processes and the gradients are
    summed, so an update is the same whatever the micro-batch and the number of processes.

    Args:
        policy: the policy whose LoRA is trained.
        reference: the policy the KL is taken to.
        parameters: the LoRA's parameters.
        optimizer: over these parameters.
        accelerator: for sums over processes.
        settings: see LearnerSettings.
        on_step: called after every optimizer step (the average of the LoRA follows there).
    """

    def __init__(
        self,
        policy: Policy,
        reference: Policy,
        parameters: Sequence[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        settings: LearnerSettings,
        on_step: Callable[[], None] = lambda: None,
    ) -> None:
        self.policy = policy
        self.reference = reference
        self.parameters = list(parameters)
        self.optimizer = optimizer
        self.accelerator = accelerator
        self.settings = settings
        self.on_step = on_step

    def apply(
        self,
        rollout: Rollout,
        advantages: Tensor,
        updates: Sequence[Update],
        sampling: SamplingSettings,
        on_micro_step: Callable[[], None],
    ) -> UpdateStats:
        """Take one optimizer step per update.

        Args:
            rollout: K scored sets per prompt.
            advantages: A, [B, K, V].
            updates: which pairs to use when.
            sampling: guidance and view scale of the trajectories.
            on_micro_step: called after every backward pass.

        Raises:
            NonFiniteError: a loss or gradient is not finite; the weights are those of the last good step.
        """
        sums = torch.zeros(NUM_SUMS, dtype=torch.float64)
        norms = []
        for number, update in enumerate(updates):
            update_sums = torch.zeros(NUM_SUMS, dtype=torch.float64)
            for micro_step in update.micro_steps:
                update_sums += self._accumulate(
                    rollout, advantages, micro_step, update.num_terms, sampling, is_on_policy=number == 0
                )
                on_micro_step()
            norms.append(self._step(float(update_sums[0])))
            sums += update_sums
        totals = self.accelerator.reduce(sums.float().to(self.accelerator.device), "sum").cpu()
        means = (totals / sum(update.num_terms for update in updates)).tolist()
        return UpdateStats(means[0], means[1], means[2], means[3], sum(norms) / len(norms))

    def _accumulate(
        self,
        rollout: Rollout,
        advantages: Tensor,
        micro_step: MicroStep,
        num_terms: int,
        sampling: SamplingSettings,
        is_on_policy: bool = False,
    ) -> Tensor:
        """Add one micro-step's gradient; return its summed loss, KLs and clip fraction, without graph.

        `is_on_policy` says that the policy is the one that acted: all log ratios are 0 before any rounding.
        """
        settings, count = self.settings, len(micro_step.steps)
        gain = advantages[micro_step.prompts].transpose(0, 1).to(self.policy.bundle.device)
        share = count / num_terms
        if settings.splits_pairs:
            log_ratios, kl = self._backward_split(rollout, gain, micro_step, sampling, share, is_on_policy)
        else:
            log_ratios, kl = self._backward_together(rollout, gain, micro_step, sampling, share)
        loss = settings.loss(log_ratios, gain, settings.clip_range)
        diagnostics = (loss, approximate_kl(log_ratios), clip_fraction(log_ratios, settings.clip_range), kl)
        return torch.stack(diagnostics).double().cpu() * count

    def _backward_together(
        self, rollout: Rollout, gain: Tensor, micro_step: MicroStep, sampling: SamplingSettings, share: float
    ) -> tuple[Tensor, Tensor]:
        """All trajectories of the prompts in one pass; log ratios [K, b, V] and mean KL, without graph."""
        settings = self.settings
        log_ratios, kl = self._score(rollout, range(len(rollout.sets)), micro_step, sampling)
        loss = settings.loss(log_ratios, gain, settings.clip_range)
        ((loss + settings.kl_weight * kl) * share).backward()
        return log_ratios.detach(), kl.detach()

    def _backward_split(
        self,
        rollout: Rollout,
        gain: Tensor,
        micro_step: MicroStep,
        sampling: SamplingSettings,
        share: float,
        is_on_policy: bool,
    ) -> tuple[Tensor, Tensor]:
        """The same gradient by the chain rule, ∂L/∂θ = Σ_k ∂L/∂ρ_k · ∂ρ_k/∂θ, one trajectory k at a time.

        ∂L/∂ρ_k takes the ρ of all trajectories: on policy they are 0, else a pass without graph finds them.
        """
        settings, num_sets = self.settings, len(rollout.sets)
        if is_on_policy:
            log_ratios = torch.zeros_like(gain)
        else:
            with torch.no_grad():
                scored = [self._score(rollout, [k], micro_step, sampling) for k in range(num_sets)]
            log_ratios = torch.cat([log_ratio for log_ratio, _ in scored])
        log_ratios.requires_grad_()
        (weights,) = torch.autograd.grad(settings.loss(log_ratios, gain, settings.clip_range), log_ratios)
        found = []
        for k in range(num_sets):
            log_ratio, kl = self._score(rollout, [k], micro_step, sampling)
            surrogate = (weights[k] * log_ratio[0]).sum() + settings.kl_weight / num_sets * kl
            (surrogate * share).backward()
            found.append((log_ratio.detach(), kl.detach()))
        return torch.cat([log_ratio for log_ratio, _ in found]), torch.stack([kl for _, kl in found]).mean()

    def _score(
        self, rollout: Rollout, sets: Sequence[int], micro_step: MicroStep, sampling: SamplingSettings
    ) -> tuple[Tensor, Tensor]:
        """Log ratios ρ of some of the trajectories, [K, b, V], and their mean KL to the reference."""
        recorded = recorded_steps(rollout, [rollout.sets[k].trajectory for k in sets], micro_step)
        kl = torch.zeros((), device=self.policy.bundle.device)
        if self.settings.kl_weight:
            with torch.no_grad():  # before the policy: the LoRA must be on in its backward pass
                reference = step_distribution(self.reference, recorded, sampling)
        distribution = step_distribution(self.policy, recorded, sampling)
        if self.settings.kl_weight:
            kl = gaussian_kl(distribution, reference).mean()
        log_ratio = log_prob(distribution, recorded.actions) - recorded.log_probs
        return log_ratio.unflatten(0, (len(sets), -1)), kl

    def _step(self, loss_sum: float) -> float:
        """Sum the gradients over processes, check, clip, step; return the norm before clipping."""
        self._sum_gradients()
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.settings.max_grad_norm))
        if not (math.isfinite(norm) and math.isfinite(loss_sum)):
            self.optimizer.zero_grad(set_to_none=True)
            raise NonFiniteError(
                f"The loss ({loss_sum}) or its gradient (norm {norm}) is not a finite number; "
                "the step was not taken. Resume from the last saved state with a lower optim.lr, or "
                "without mixed precision."
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.on_step()
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


@dataclass(frozen=True)
class RecordedSteps:
    """n steps of trajectories on the policy's device, with what the denoiser needs to judge them again.

    Attributes:
        states: [n, V, C, H, W].
        actions: [n, V, C, H, W].
        log_probs: under the policy that acted, [n, V].
        timesteps: [n].
        next_timesteps: [n].
        condition: of n prompts.
    """

    states: Tensor
    actions: Tensor
    log_probs: Tensor
    timesteps: Tensor
    next_timesteps: Tensor
    condition: TextCondition


def recorded_steps(
    rollout: Rollout, trajectories: Sequence[Trajectory], micro_step: MicroStep
) -> RecordedSteps:
    """The micro-step's rows and steps of K trajectories, trajectory by trajectory: n = K·b."""
    rows, steps, first = micro_step.prompts, micro_step.steps, trajectories[0]
    condition = rollout.condition.select(rows.repeat(len(trajectories)))
    device = condition.prompt_embeds.device
    timesteps, next_timesteps = (
        x[steps].repeat(len(trajectories)) for x in (first.timesteps, first.next_timesteps)
    )
    # Advanced indices around a slice: [B, V, T, ...][rows, :, steps] is [b, V, ...].
    states, actions, old = (
        torch.cat([getattr(t, name)[rows, :, steps] for t in trajectories]).to(device)
        for name in ("states", "actions", "log_probs")
    )
    return RecordedSteps(states, actions, old, timesteps, next_timesteps, condition)


def step_distribution(
    policy: Policy, recorded: RecordedSteps, sampling: SamplingSettings
) -> StepDistribution:
    """What a policy would do in recorded states."""
    bundle = policy.bundle
    with policy.autocast():
        noise_pred = predict_noise(
            bundle,
            recorded.states,
            recorded.timesteps,
            recorded.condition,
            policy.cameras,
            sampling.guidance_scale,
            sampling.view_scale,
        )
        return denoise_step(
            bundle.schedule, noise_pred, recorded.states, recorded.timesteps, recorded.next_timesteps
        )
