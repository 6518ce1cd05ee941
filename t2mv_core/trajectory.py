"""The record of one Markov decision process over all views, and the source of its randomness."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_PER_PROMPT = ("states", "actions", "log_probs", "denoised")


@dataclass(frozen=True)
class Trajectory:
    """The states and actions of a sampler: enough to score every step again under another policy.

    Text embeddings and camera features belong to all steps and stand elsewhere.

    Attributes:
        states: x_t of each step, [B, V, T, C, H, W].
        actions: x_{t'} of each step, [B, V, T, C, H, W].
        log_probs: under the policy that acted, [B, V, T], nats per latent element.
        timesteps: t of each step, [T], int64.
        next_timesteps: t' of each step, [T], int64; -1 is the end.
        denoised: clean latents of the last step, from which the VAE decodes the pictures, [B, V, C, H, W].
    """

    states: Tensor
    actions: Tensor
    log_probs: Tensor
    timesteps: Tensor
    next_timesteps: Tensor
    denoised: Tensor

    def __post_init__(self) -> None:
        """Refuse parts of different sizes."""
        shape = self.states.shape
        is_consistent = self.actions.shape == shape and self.log_probs.shape == shape[:3]
        is_consistent &= self.denoised.shape == (*shape[:2], *shape[3:])
        if not is_consistent or not len(self.timesteps) == len(self.next_timesteps) == shape[2]:
            raise ValueError(
                f"A trajectory's parts disagree: states {tuple(shape)}, actions {tuple(self.actions.shape)}, "
                f"log_probs {tuple(self.log_probs.shape)}, denoised {tuple(self.denoised.shape)}, "
                f"{len(self.timesteps)} timesteps and {len(self.next_timesteps)} next ones."
            )

    def to(self, device: torch.device | str) -> Trajectory:
        """Return a copy on a device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in _PER_PROMPT})


def concat(trajectories: Sequence[Trajectory]) -> Trajectory:
    """Join trajectories of the same timesteps, t and t', along the prompts.

    Raises:
        ValueError: there is none, or they visited different timesteps.
    """
    if not trajectories:
        raise ValueError("There is no trajectory to join; give at least one.")
    first = trajectories[0]
    for name in ("timesteps", "next_timesteps"):
        if any(not torch.equal(getattr(first, name), getattr(other, name)) for other in trajectories[1:]):
            raise ValueError(
                f"Trajectories of different {name} cannot be joined; use one solver and number of steps."
            )
    return replace(
        first, **{name: torch.cat([getattr(t, name) for t in trajectories]) for name in _PER_PROMPT}
    )


class SeededNoise:
    """A source of standard normal numbers with one CPU generator per prompt, independent of its batch."""

    def __init__(self, seeds: Sequence[int]) -> None:
        """Take one seed per prompt, any whole number, modulo 2**64: what a user can type works."""
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

    A draw then depends on (seed, purpose) alone: not on its batch, its process, or an interruption of the
    run. `purpose` is words and counters that name the draw, such as ("noise", 3, 0).
    """
    text = "/".join([str(seed), *(f"{type(part).__name__}:{part}" for part in purpose)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
