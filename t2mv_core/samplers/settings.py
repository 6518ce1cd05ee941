"""What a sampler can be told, and what it tells while it runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class SamplingSettings:
    """Settings shared by all samplers; the zigzag ones are read by ZMV only.

    Attributes:
        num_steps: denoising steps T.
        guidance_scale: text guidance w; 1 is none.
        view_scale: view-condition scale s; 1 is as trained.
        zigzag_steps: K, the number of first steps that zigzag.
        zigzag_repeats: zag-zig pairs per zigzag step.
        inverse_guidance_scale: w_inv of the zag, weaker than w.
        inverse_view_scale: s_inv of the zag.
        state_dtype: latents are rounded to it as they are made, and recorded in it; float32 or bfloat16.
    """

    num_steps: int = 8
    guidance_scale: float = 7.0
    view_scale: float = 1.0
    zigzag_steps: int = 1
    zigzag_repeats: int = 1
    inverse_guidance_scale: float = 1.0
    inverse_view_scale: float = 1.0
    state_dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        """Refuse numbers no sampler could use, before any expensive work."""
        if self.num_steps < 1:
            raise ValueError(f"num_steps={self.num_steps} must be at least 1.")
        if not 0 <= self.zigzag_steps <= self.num_steps:
            raise ValueError(
                f"zigzag_steps={self.zigzag_steps} must lie between 0 and num_steps={self.num_steps}."
            )
        if self.zigzag_repeats < 1:
            raise ValueError(
                f"zigzag_repeats={self.zigzag_repeats} must be at least 1; use zigzag_steps=0 for none."
            )
        if self.state_dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"state_dtype={self.state_dtype} must be torch.float32 or torch.bfloat16.")
        for name in ("guidance_scale", "view_scale", "inverse_guidance_scale", "inverse_view_scale"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name}={value} must be a finite number of at least 0.")


@dataclass(frozen=True)
class StepEvent:
    """Reported after every UNet evaluation.

    Attributes:
        index: evaluations done so far, from 1.
        total: evaluations of the whole trajectory.
        kind: "zig" (denoising) or "zag" (inversion).
        timestep: t at which the UNet was asked.
        denoised: clean latents as believed now, [B, V, C, H, W]; decode for a preview.
    """

    index: int
    total: int
    kind: Literal["zig", "zag"]
    timestep: int
    denoised: Tensor


@dataclass
class FirstPrediction:
    """The first prediction of samplers that start from the same latents with the same model and settings.

    Given to several of them in turn, the first makes it and the others take it: a UNet evaluation less each.

    Attributes:
        latents: x_T it was made at, [B, V, C, H, W]; None before.
        noise_pred: ε there, same shape.
    """

    latents: Tensor | None = None
    noise_pred: Tensor | None = None

    def at(self, x: Tensor, predict: Callable[[], Tensor]) -> Tensor:
        """ε at x: what is known when x is the same, bit for bit; else predicted now and remembered."""
        if self.noise_pred is None or self.latents is None or not torch.equal(self.latents, x):
            self.latents, self.noise_pred = x, predict()
        return self.noise_pred


OnStep = Callable[[StepEvent], None]
"""Told of every UNet evaluation; may raise to cancel."""
