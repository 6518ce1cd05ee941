"""Rollouts: from prompts to paired trajectories of the current policy with their rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from t2mv_core.bundle import ModelBundle
from t2mv_core.denoiser import CameraFeatures
from t2mv_core.images import decode_latents
from t2mv_core.policy import Noise
from t2mv_core.reference import encode_reference
from t2mv_core.samplers import SAMPLERS, OnStep, SamplingSettings
from t2mv_core.text import TextCondition
from t2mv_core.trajectory import SeededNoise, Trajectory, derive_seed
from t2mv_core.trajectory import concat as concat_trajectories
from t2mv_core.unet.reference_attention import ReferenceFeatures, concat_references

from .scoring import Rewards, Scores


@dataclass(frozen=True)
class Batch:
    """What B sets are drawn of.

    Attributes:
        prompts: B sentences.
        condition: their text condition.
        pictures: for image to multiview, framed, [B, 3, H, W] in [0, 1] on the CPU; None for text.
    """

    prompts: tuple[str, ...]
    condition: TextCondition
    pictures: Tensor | None = None

    def select(self, rows: Sequence[int]) -> Batch:
        """Return some of the sets."""
        pictures = None if self.pictures is None else self.pictures[list(rows)]
        return Batch(tuple(self.prompts[row] for row in rows), self.condition.select(rows), pictures)


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
        """Return the precision context of every UNet evaluation, in sampling and learning alike."""
        return torch.autocast(self.bundle.device.type, torch.bfloat16, enabled=self.has_bf16_autocast)

    def read_pictures(self, batch: Batch) -> ReferenceFeatures | None:
        """Return what the model knows of a batch's pictures, its LoRA in training at work; None without."""
        if batch.pictures is None:
            return None
        with self.autocast():
            return encode_reference(self.bundle, batch.pictures, batch.condition)


@dataclass(frozen=True)
class ScoredSets:
    """B sets of views by one sampler.

    Attributes:
        sampler: its name.
        trajectory: states, actions and log-probabilities; on the CPU, where they wait for the update.
        images: [B, V, 3, H, W], uint8, on the CPU.
        scores: their rewards.
    """

    sampler: str
    trajectory: Trajectory
    images: Tensor
    scores: Scores


@dataclass(frozen=True)
class RolloutSettings:
    """The settings of all rollouts of a run.

    Attributes:
        samplers: one sampler name per trajectory of a prompt.
        sampling: steps, guidance, zigzag.
        batch_size: prompts in one forward pass.
        seed: the run's seed.
        has_own_noise: each trajectory of a prompt starts from initial noise of its own.
    """

    samplers: tuple[str, ...]
    sampling: SamplingSettings
    batch_size: int
    seed: int
    has_own_noise: bool = False


@dataclass(frozen=True)
class Rollout:
    """The sets of one iteration on this process.

    Attributes:
        prompts: B sentences.
        condition: their text condition, shared by all trajectories and steps.
        sets: one ScoredSets per trajectory kind, all in the order of `prompts`.
        reference: what the policy that acted knew of the sets' pictures, a part of every state and so no
            subject of the gradient; on the CPU. None for text to multiview.
    """

    prompts: tuple[str, ...]
    condition: TextCondition
    sets: tuple[ScoredSets, ...]
    reference: ReferenceFeatures | None = None


def paired_noise(
    seed: int, iteration: int, slots: Sequence[int], number: int, has_own_noise: bool = False
) -> Noise:
    """Return the noise of the trajectories number `number` of some prompts.

    The first draw, the initial noise, is the same for all trajectories of a prompt (docs/method.md, section
    5); later draws, the noise of the steps, differ from trajectory to trajectory.

    Args:
        seed: the run's seed.
        iteration: number of the iteration.
        slots: place of each prompt in the iteration, over all processes.
        number: 0 for the first trajectory of each prompt, 1 for the second.
        has_own_noise: the initial noise differs, too; that of number 0 is the same either way.
    """
    own = (number,) if has_own_noise and number > 0 else ()
    initial = SeededNoise([derive_seed(seed, "initial noise", iteration, slot, *own) for slot in slots])
    later = SeededNoise([derive_seed(seed, "step noise", iteration, slot, number) for slot in slots])
    sources = iter([initial])
    return lambda shape: next(sources, later)(shape)


def sample_and_score(
    policy: Policy,
    rewards: Rewards,
    sampler: str,
    batch: Batch,
    noise: Noise,
    settings: SamplingSettings,
    on_step: OnStep | None = None,
    reference: ReferenceFeatures | None = None,
) -> ScoredSets:
    """Sample one batch with one sampler, decode and score it, without a graph.

    Args:
        policy: the model.
        rewards: the scorers.
        sampler: name.
        batch: prompts and pictures.
        noise: of the sets.
        settings: steps, guidance, zigzag.
        on_step: called after every UNet evaluation; may raise to cancel.
        reference: `policy.read_pictures(batch)`.
    """
    inputs = (policy.bundle, batch.condition, policy.cameras, noise, settings, on_step, reference)
    with torch.no_grad():
        with policy.autocast():
            trajectory = SAMPLERS[sampler](*inputs)
        # One view fills a device at SDXL's size, and six take more memory than a checkpointed micro-step.
        images = decode_latents(policy.bundle.vae, trajectory.denoised, chunk_size=1)
        scores = rewards.score(images, batch.prompts, batch.pictures)
    pixels = (images.float() * 255).round().to(torch.uint8).cpu()
    return ScoredSets(sampler, trajectory.to("cpu"), pixels, scores)


def collect(
    policy: Policy,
    rewards: Rewards,
    settings: RolloutSettings,
    iteration: int,
    slots: Sequence[int],
    batch: Batch,
    on_step: OnStep | None = None,
) -> Rollout:
    """Sample every prompt once per entry of `settings.samplers`, from the same initial noise unless told.

    Args:
        policy: the current policy.
        rewards: the scorers.
        settings: see RolloutSettings.
        iteration: number of the iteration; with the slot it fixes the noise.
        slots: places in the iteration of what this process samples.
        batch: prompts and pictures in these places.
        on_step: called after every UNet evaluation; may raise to cancel.
    """
    sets: list[list[ScoredSets]] = [[] for _ in settings.samplers]
    references: list[ReferenceFeatures] = []
    for start in range(0, len(slots), settings.batch_size):
        rows = range(start, min(start + settings.batch_size, len(slots)))
        part, places = batch.select(rows), [slots[row] for row in rows]
        reference = policy.read_pictures(part)
        for number, sampler in enumerate(settings.samplers):
            noise = paired_noise(settings.seed, iteration, places, number, settings.has_own_noise)
            scored = sample_and_score(
                policy, rewards, sampler, part, noise, settings.sampling, on_step, reference
            )
            sets[number].append(scored)
        if reference is not None:
            references.append(reference.to("cpu"))
    reference_features = concat_references(references) if references else None
    return Rollout(batch.prompts, batch.condition, tuple(map(_concat, sets)), reference_features)


def _concat(parts: Sequence[ScoredSets]) -> ScoredSets:
    def join(kind: str) -> dict[str, Tensor]:
        tables = [getattr(part.scores, kind) for part in parts]
        return {name: torch.cat([table[name] for table in tables]) for name in tables[0]}

    return ScoredSets(
        parts[0].sampler,
        concat_trajectories([part.trajectory for part in parts]),
        torch.cat([part.images for part in parts]),
        Scores(join("view"), join("joint"), join("details")),
    )
