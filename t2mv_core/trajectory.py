"""The record of one Markov decision process over all views, and the source of its randomness."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Trajectory:
    """What a sampler did: enough to score every step again under another policy.

    Text embeddings and camera features are not here; they are shared, not per step.

    Attributes:
        states: x_t of each step, [B, V, T, C, H, W].
        actions: x_{t'} of each step, [B, V, T, C, H, W].
        log_probs: under the policy that acted, [B, V, T], nats per latent element.
        timesteps: t of each step, [T], int64.
        next_timesteps: t' of each step, [T], int64; -1 is the end.
        denoised: clean latents of the last step: the pictures are decoded from these, [B, V, C, H, W].
    """

    states: Tensor
    actions: Tensor
    log_probs: Tensor
    timesteps: Tensor
    next_timesteps: Tensor
    denoised: Tensor

    def __post_init__(self) -> None:
        """Refuse parts that do not belong together."""
        shape = self.states.shape
        belongs = self.actions.shape == shape and self.log_probs.shape == shape[:3]
        if not belongs or len(self.timesteps) != shape[2]:
            raise ValueError(
                f"A trajectory's parts disagree: states {tuple(shape)}, actions {tuple(self.actions.shape)}, "
                f"log_probs {tuple(self.log_probs.shape)}, {len(self.timesteps)} timesteps."
            )

    def __len__(self) -> int:
        """Number of prompts B."""
        return len(self.states)

    @property
    def num_steps(self) -> int:
        """Number of denoising steps T."""
        return len(self.timesteps)

    def select(self, indices: Sequence[int] | Tensor) -> Trajectory:
        """The trajectories of some of the prompts, in the given order."""
        index = torch.as_tensor(indices, dtype=torch.long, device=self.states.device)
        return replace(
            self,
            states=self.states[index],
            actions=self.actions[index],
            log_probs=self.log_probs[index],
            denoised=self.denoised[index],
        )

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Trajectory:
        """A copy on a device; states and actions in `dtype`, log-probabilities always float32."""
        return replace(
            self,
            states=self.states.to(device, dtype),
            actions=self.actions.to(device, dtype),
            log_probs=self.log_probs.to(device),
            denoised=self.denoised.to(device, dtype),
        )


def concat(trajectories: Sequence[Trajectory]) -> Trajectory:
    """Join trajectories of the same timesteps along the prompts.

    Raises:
        ValueError: none given, or they visited different timesteps.
    """
    if not trajectories:
        raise ValueError("There is no trajectory to join; give at least one.")
    first = trajectories[0]
    if any(not torch.equal(first.timesteps, other.timesteps) for other in trajectories[1:]):
        raise ValueError("Trajectories of different timesteps cannot be joined; use equal numbers of steps.")
    return replace(
        first,
        **{
            name: torch.cat([getattr(trajectory, name) for trajectory in trajectories])
            for name in ("states", "actions", "log_probs", "denoised")
        },
    )


class SeededNoise:
    """Standard normal numbers, one CPU generator per prompt: a prompt's noise never depends on its batch."""

    def __init__(self, seeds: Sequence[int]) -> None:
        """One seed per prompt, each in [0, 2**64)."""
        self._generators = [torch.Generator().manual_seed(int(seed) % 2**64) for seed in seeds]

    def __call__(self, shape: torch.Size) -> Tensor:
        """Draw [B, ...]; B must be the number of seeds."""
        if shape[0] != len(self._generators):
            raise ValueError(
                f"Noise for {shape[0]} prompts was asked of {len(self._generators)} seeds; give one each."
            )
        return torch.stack([torch.randn(shape[1:], generator=generator) for generator in self._generators])


def derive_seed(seed: int, *purpose: int | str) -> int:
    """Hash a run's seed with a purpose to a generator seed in [0, 2^63).

    A random draw so depends on (seed, purpose) alone: not on the batch it is made for, nor on the process
    that makes it, nor on whether the run was interrupted before.

    Args:
        seed: the run's seed.
        purpose: words and counters that name the draw, such as ("noise", 3, 0).
    """
    text = "/".join([str(seed), *(f"{type(part).__name__}:{part}" for part in purpose)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
