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
from t2mv_core.unet.reference_attention import ReferenceFeatures

from .objectives import Loss, approximate_kl, clip_fraction
from .rollout import Policy, Rollout
from .scoring import NonFiniteError
from .updates import MicroStep, Update


@dataclass(frozen=True)
class UpdateStats:
    """Means over all (prompt, step) pairs of a pass, and over its optimizer steps for the gradient norm."""

    loss: float
    approx_kl: float
    clip_fraction: float
    reference_kl: float
    grad_norm: float


FP16_GRADIENT_SCALE = 2.0**16
"""Of the backward pass through a float16 UNet. ρ is a mean over a view's elements, so at SDXL's size the
gradient of one is near 1e-7, where float16 has a single bit left or none; scaled it is near 1e-2."""
NUM_SUMS = 4
"""The first fields of UpdateStats are summed over pairs before they become means."""


@dataclass(frozen=True)
class LearnerSettings:
    """How log-probabilities become optimizer steps.

    Attributes:
        loss: of log ratios and advantages; see `objectives.Loss`.
        sampling: guidance and view scale of the trajectories.
        clip_range: bound on the log ratio.
        max_grad_norm: bound on the gradient's norm.
        kl_weight: factor of the KL to the policy without the LoRA; at 0 it is not computed.
        splits_pairs: one trajectory of a prompt at a time: half the activations; one forward pass more,
            except in an iteration's first update.
        dpo_beta: β per nat of a set, of a loss that takes log ratios to the reference (a pass without graph
            more) and β; None: the loss takes ρ and the clip range.
    """

    loss: Loss
    sampling: SamplingSettings
    clip_range: float
    max_grad_norm: float
    kl_weight: float = 0.0
    splits_pairs: bool = False
    dpo_beta: float | None = None


class Learner:
    """Turns scored trajectories into optimizer steps.

    Each loss is divided by the number of pairs of its update over *all* processes and the gradients are
    summed, so an update is the same whatever the micro-batch and the number of processes.

    Args:
        policy: the policy whose LoRA is trained.
        reference: the policy to which the KL, or a loss's log ratios, are measured. With pictures it sees
            the features that the acting policy took of them, its LoRA included.
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
        self.policy, self.reference = policy, reference
        self.parameters, self.optimizer = list(parameters), optimizer
        self.accelerator, self.settings, self.on_step = accelerator, settings, on_step
        self._gradient_scale = FP16_GRADIENT_SCALE if policy.bundle.unet.dtype == torch.float16 else 1.0

    def apply(
        self,
        rollout: Rollout,
        advantages: Tensor,
        updates: Sequence[Update],
        on_micro_step: Callable[[], None],
    ) -> UpdateStats:
        """Take one optimizer step per update.

        Args:
            rollout: K scored sets per prompt.
            advantages: A, [B, K, V].
            updates: which pairs to use when.
            on_micro_step: called after every backward pass.

        Raises:
            NonFiniteError: a loss or gradient is not finite; the weights are those of the last good step.
        """
        sums, norms = torch.zeros(NUM_SUMS, dtype=torch.float64), []
        for number, update in enumerate(updates):
            update_sums = torch.zeros(NUM_SUMS, dtype=torch.float64)
            for micro_step in update.micro_steps:
                share = len(micro_step.steps) / update.num_terms
                update_sums += self._accumulate(
                    rollout, advantages, micro_step, share, is_on_policy=not number
                )
                on_micro_step()
            norms.append(self._step(float(update_sums[0])))
            sums += update_sums
        totals = self.accelerator.reduce(sums.float().to(self.accelerator.device), "sum").cpu()
        means = (totals / sum(update.num_terms for update in updates)).tolist()
        return UpdateStats(*[*means, sum(norms) / len(norms)])

    def _accumulate(
        self,
        rollout: Rollout,
        advantages: Tensor,
        micro_step: MicroStep,
        share: float,
        is_on_policy: bool = False,
    ) -> Tensor:
        """Add one micro-step's gradient; return its summed loss, KLs and clip fraction, without graph.

        `share` is the micro-step's of all pairs of its update. `is_on_policy` says that the policy is the one
        that acted: all log ratios are 0 before any rounding.
        """
        settings = self.settings
        loss_of = self._make_loss(rollout, advantages, micro_step)
        if settings.splits_pairs:
            log_ratios, kl = self._backward_split(rollout, loss_of, micro_step, share, is_on_policy)
        else:
            log_ratios, kl = self._backward_together(rollout, loss_of, micro_step, share, is_on_policy)
        clipped = clip_fraction(log_ratios, settings.clip_range)
        num_elements = rollout.sets[0].trajectory.states.shape[-3:].numel()
        diagnostics = (loss_of(log_ratios), approximate_kl(log_ratios, num_elements), clipped, kl)
        return torch.stack(diagnostics).cpu().double() * len(micro_step.steps)

    def _make_loss(
        self, rollout: Rollout, advantages: Tensor, micro_step: MicroStep
    ) -> Callable[[Tensor], Tensor]:
        """Return a micro-step's loss as a function of ρ, [K, b, V]; call it before the policy's passes."""
        settings = self.settings
        gain = advantages[micro_step.prompts].transpose(0, 1).to(self.policy.bundle.device)
        if settings.dpo_beta is None:
            return lambda log_ratios: settings.loss(log_ratios, gain, settings.clip_range)
        reference = self._reference_ratios(rollout, micro_step)
        beta = settings.dpo_beta * rollout.sets[0].trajectory.states.shape[-3:].numel()  # ρ is a mean over it
        return lambda log_ratios: settings.loss(log_ratios - reference, gain, beta)

    @torch.no_grad()
    def _reference_ratios(self, rollout: Rollout, micro_step: MicroStep) -> Tensor:
        """Return log π_ref - log π_old of all trajectories, [K, b, V], one trajectory at a time."""
        ratios = []
        for scored in rollout.sets:
            recorded = recorded_steps(rollout, [scored.trajectory], micro_step)
            distribution = step_distribution(self.reference, recorded, self.settings.sampling)
            ratios.append(log_prob(distribution, recorded.actions) - recorded.log_probs)
        return torch.stack(ratios)

    def _backward_together(
        self,
        rollout: Rollout,
        loss_of: Callable[[Tensor], Tensor],
        micro_step: MicroStep,
        share: float,
        is_on_policy: bool,
    ) -> tuple[Tensor, Tensor]:
        """Score all trajectories in one pass; return log ratios [K, b, V] and the mean KL, without graph.

        On policy the loss gets ρ = 0 with ρ's gradient: what else there is comes of rounding in a batch of
        another size than the rollout's, which in bfloat16 can exceed the clip range.
        """
        log_ratios, kl = self._score(rollout, range(len(rollout.sets)), micro_step)
        found = log_ratios.detach()
        loss = loss_of(log_ratios - found if is_on_policy else log_ratios)
        ((loss + self.settings.kl_weight * kl) * share * self._gradient_scale).backward()
        return found, kl.detach()

    def _backward_split(
        self,
        rollout: Rollout,
        loss_of: Callable[[Tensor], Tensor],
        micro_step: MicroStep,
        share: float,
        is_on_policy: bool,
    ) -> tuple[Tensor, Tensor]:
        """Do the same one trajectory k at a time, by the chain rule ∂L/∂θ = Σ_k ∂L/∂ρ_k · ∂ρ_k/∂θ.

        ∂L/∂ρ_k needs the ρ of all trajectories: 0 on policy, else a pass without graph computes them.
        """
        settings, num_sets = self.settings, len(rollout.sets)
        shape = num_sets, len(micro_step.steps), rollout.sets[0].trajectory.log_probs.shape[1]
        log_ratios = torch.zeros(shape, device=self.policy.bundle.device)
        if not is_on_policy:
            with torch.no_grad():
                log_ratios = torch.cat([self._score(rollout, [k], micro_step)[0] for k in range(num_sets)])
        log_ratios.requires_grad_()
        (weights,) = torch.autograd.grad(loss_of(log_ratios), log_ratios)
        scored = []
        for k in range(num_sets):
            log_ratio, kl = self._score(rollout, [k], micro_step)
            surrogate = (weights[k] * log_ratio[0]).sum() + settings.kl_weight / num_sets * kl
            (surrogate * share * self._gradient_scale).backward()
            scored.append((log_ratio.detach(), kl.detach()))
        return torch.cat([rho for rho, _ in scored]), torch.stack([kl for _, kl in scored]).mean()

    def _score(self, rollout: Rollout, sets: Sequence[int], micro_step: MicroStep) -> tuple[Tensor, Tensor]:
        """Return log ratios ρ of some of the trajectories, [K, b, V], and their mean KL to the reference."""
        recorded = recorded_steps(rollout, [rollout.sets[k].trajectory for k in sets], micro_step)
        kl = torch.zeros((), device=self.policy.bundle.device)
        if self.settings.kl_weight:
            with torch.no_grad():  # before the policy: the LoRA must be on in its backward pass
                reference = step_distribution(self.reference, recorded, self.settings.sampling)
        distribution = step_distribution(self.policy, recorded, self.settings.sampling)
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
                f"The loss ({loss_sum}) or its gradient (norm {norm}) is not finite; the step was not taken. "
                "Resume from the last saved state with a lower optim.lr, without mixed precision, or with "
                "model.dtype=bf16 where it is fp16."
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.on_step()
        return norm

    def _sum_gradients(self) -> None:
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad /= self._gradient_scale
        if self.accelerator.num_processes == 1:
            return
        gradients = [parameter.grad for parameter in self.parameters]
        flat = self.accelerator.reduce(torch.cat([g.flatten() for g in gradients if g is not None]), "sum")
        parts = flat.split([parameter.numel() for parameter in self.parameters])
        for parameter, part in zip(self.parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)


@dataclass(frozen=True)
class RecordedSteps:
    """n steps of trajectories on the policy's device, complete enough to score them again.

    Attributes:
        states: [n, V, C, H, W].
        actions: [n, V, C, H, W].
        log_probs: under the policy that acted, [n, V].
        timesteps: [n].
        next_timesteps: [n].
        condition: of n prompts.
        reference: of their n pictures, None for text to multiview.
    """

    states: Tensor
    actions: Tensor
    log_probs: Tensor
    timesteps: Tensor
    next_timesteps: Tensor
    condition: TextCondition
    reference: ReferenceFeatures | None = None


def recorded_steps(
    rollout: Rollout, trajectories: Sequence[Trajectory], micro_step: MicroStep
) -> RecordedSteps:
    """Gather the micro-step's rows and steps of K trajectories, trajectory by trajectory: n = K·b."""
    rows, steps, first, count = micro_step.prompts, micro_step.steps, trajectories[0], len(trajectories)
    condition = rollout.condition.select(rows.repeat(count))
    device = condition.prompt_embeds.device
    timesteps, next_timesteps = (x[steps].repeat(count) for x in (first.timesteps, first.next_timesteps))
    # Advanced indices around a slice: [B, V, T, ...][rows, :, steps] is [b, V, ...].
    states, actions, old = (
        torch.cat([getattr(t, name)[rows, :, steps] for t in trajectories]).to(device)
        for name in ("states", "actions", "log_probs")
    )
    reference = None if rollout.reference is None else rollout.reference.select(rows.repeat(count)).to(device)
    return RecordedSteps(states, actions, old, timesteps, next_timesteps, condition, reference)


def step_distribution(
    policy: Policy, recorded: RecordedSteps, sampling: SamplingSettings
) -> StepDistribution:
    """Return a policy's distribution in recorded states."""
    bundle, x, t = policy.bundle, recorded.states, recorded.timesteps
    scales = sampling.guidance_scale, sampling.view_scale
    reference = None if recorded.reference is None else recorded.reference.scaled(sampling.ref_scale)
    with policy.autocast():
        noise_pred = predict_noise(bundle, x, t, recorded.condition, policy.cameras, *scales, reference)
        return denoise_step(bundle.schedule, noise_pred, x, t, recorded.next_timesteps)
