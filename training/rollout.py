"""Rollouts: prompts in, paired trajectories by the current policy with their rewards out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from t2mv_core.bundle import ModelBundle
from t2mv_core.denoiser import CameraFeatures
from t2mv_core.images import decode_latents
from t2mv_core.policy import Noise
from t2mv_core.rewards.base import RewardResult
from t2mv_core.samplers import SAMPLERS, OnStep, SamplingSettings
from t2mv_core.text import TextCondition, encode_text
from t2mv_core.trajectory import SeededNoise, Trajectory
from t2mv_core.trajectory import concat as concat_trajectories

from .seeds import derive_seed

Scorer = Callable[[Tensor, Sequence[str]], RewardResult]


class NonFiniteError(FloatingPointError):
    """A reward, a loss or a gradient is not a finite number; training must not go on from it."""


@dataclass(frozen=True)
class Scores:
    """Rewards of B sets of views, float32, on the CPU.

    Attributes:
        view: single-view rewards, [B, V].
        joint: joint-view rewards, [B].
        details: named parts of the joint reward, [B] each.
    """

    view: Tensor
    joint: Tensor
    details: dict[str, Tensor]


@dataclass(frozen=True)
class Rewards:
    """The two reward models of a run.

    Attributes:
        view: pictures [n, 3, H, W] and n prompts -> n scores (fidelity).
        joint: pictures [B·V, 3, H, W] and B prompts -> B scores (consistency of the set).
    """

    view: Scorer
    joint: Scorer

    def score(self, images: Tensor, prompts: Sequence[str]) -> Scores:
        """Score sets of views.

        Args:
            images: [B, V, 3, H, W] in [0, 1].
            prompts: B sentences.

        Raises:
            NonFiniteError: a reward is NaN or infinite.
        """
        num_views = images.shape[1]
        flat = images.flatten(0, 1)
        view = self.view(flat, [prompt for prompt in prompts for _ in range(num_views)]).scores
        joint = self.joint(flat, list(prompts))
        for name, scores in (("view", view), ("joint", joint.scores)):
            bad = ~scores.isfinite().reshape(len(prompts), -1).all(dim=1)
            if bad.any():
                prompt = prompts[int(bad.nonzero()[0])]
                raise NonFiniteError(
                    f"The {name} reward of {prompt!r} is not a finite number; look at its pictures."
                )
        details = {name: part.float().cpu() for name, part in joint.details.items()}
        return Scores(
            view.float().cpu().reshape(len(prompts), num_views), joint.scores.float().cpu(), details
        )


@dataclass(frozen=True)
class Policy:
    """A model as a policy for one rig of cameras.

    Attributes:
        bundle: the model, its LoRA included.
        cameras: camera features of the rig, computed once.
        has_bf16_autocast: run the networks in bf16; means and log-probabilities stay fp32.
    """

    bundle: ModelBundle
    cameras: CameraFeatures
    has_bf16_autocast: bool = False

    def autocast(self) -> torch.autocast:
        """The precision context every UNet evaluation of the policy runs in, sampling and learning alike."""
        return torch.autocast(self.bundle.device.type, torch.bfloat16, enabled=self.has_bf16_autocast)


@dataclass(frozen=True)
class ScoredSets:
    """B sets of views by one sampler.

    Attributes:
        sampler: its name.
        trajectory: states, actions, behaviour log-probabilities.
        images: [B, V, 3, H, W], uint8, on the CPU.
        scores: their rewards.
    """

    sampler: str
    trajectory: Trajectory
    images: Tensor
    scores: Scores


@dataclass(frozen=True)
class RolloutSettings:
    """What does not change from iteration to iteration.

    Attributes:
        samplers: one sampler name per trajectory of a prompt.
        sampling: steps, guidance, zigzag.
        batch_size: prompts in one forward pass.
        seed: the run's seed.
        negative_prompt: for classifier-free guidance.
    """

    samplers: tuple[str, ...]
    sampling: SamplingSettings
    batch_size: int
    seed: int
    negative_prompt: str | None = None


@dataclass(frozen=True)
class Rollout:
    """The sets of one iteration on this process.

    Attributes:
        prompts: B sentences.
        condition: their text condition, shared by all trajectories and steps.
        sets: one ScoredSets per trajectory kind, all in the order of `prompts`.
    """

    prompts: tuple[str, ...]
    condition: TextCondition
    sets: tuple[ScoredSets, ...]


def paired_noise(seed: int, iteration: int, slots: Sequence[int], number: int) -> Noise:
    """Noise of the trajectories number `number` of some prompts: the first draw is shared by all numbers.

    The first draw is a sampler's initial noise, which METHOD.md section 5 wants equal for the trajectories
    of a prompt; later draws (the steps' noise) are each trajectory's own.

    Args:
        seed: the run's seed.
        iteration: number of the iteration.
        slots: place of each prompt in the iteration, over all processes.
        number: 0 for the first trajectory of each prompt, 1 for the second.
    """
    initial = SeededNoise([derive_seed(seed, "initial noise", iteration, slot) for slot in slots])
    later = SeededNoise([derive_seed(seed, "step noise", iteration, slot, number) for slot in slots])
    sources = iter([initial])
    return lambda shape: next(sources, later)(shape)


def sample_and_score(
    policy: Policy,
    rewards: Rewards,
    sampler: str,
    batch: tuple[Sequence[str], TextCondition],
    noise: Noise,
    settings: SamplingSettings,
    on_step: OnStep | None = None,
) -> ScoredSets:
    """Sample one batch of prompts with one sampler, decode and score it; no graph is kept."""
    prompts, condition = batch
    with torch.no_grad():
        with policy.autocast():
            trajectory = SAMPLERS[sampler](policy.bundle, condition, policy.cameras, noise, settings, on_step)
        images = decode_latents(policy.bundle.vae, trajectory.denoised)
        scores = rewards.score(images, prompts)
    pixels = (images.float() * 255).round().to(torch.uint8).cpu()
    return ScoredSets(sampler, trajectory, pixels, scores)


def collect(
    policy: Policy,
    rewards: Rewards,
    settings: RolloutSettings,
    iteration: int,
    requests: Sequence[tuple[int, str]],
    on_step: OnStep | None = None,
) -> Rollout:
    """Sample every prompt once per entry of `settings.samplers`, all from the prompt's one initial noise.

    Args:
        policy: the current policy.
        rewards: the scorers.
        settings: see RolloutSettings.
        iteration: number of the iteration; with the slot it fixes the noise.
        requests: (slot, prompt) of every prompt of this process.
        on_step: called after every UNet evaluation; may raise to cancel.
    """
    sets: list[list[ScoredSets]] = [[] for _ in settings.samplers]
    prompts = [prompt for _, prompt in requests]
    condition = encode_text(policy.bundle, prompts, settings.negative_prompt)
    for start in range(0, len(requests), settings.batch_size):
        rows = range(start, min(start + settings.batch_size, len(requests)))
        batch = ([prompts[row] for row in rows], condition.select(list(rows)))
        slots = [requests[row][0] for row in rows]
        for number, sampler in enumerate(settings.samplers):
            noise = paired_noise(settings.seed, iteration, slots, number)
            scored = sample_and_score(policy, rewards, sampler, batch, noise, settings.sampling, on_step)
            sets[number].append(scored)
    return Rollout(tuple(prompts), condition, tuple(_concat(parts) for parts in sets))


def _concat(parts: Sequence[ScoredSets]) -> ScoredSets:
    return ScoredSets(
        parts[0].sampler,
        concat_trajectories([part.trajectory for part in parts]),
        torch.cat([part.images for part in parts]),
        Scores(
            torch.cat([part.scores.view for part in parts]),
            torch.cat([part.scores.joint for part in parts]),
            {
                name: torch.cat([part.scores.details[name] for part in parts])
                for name in parts[0].scores.details
            },
        ),
    )
