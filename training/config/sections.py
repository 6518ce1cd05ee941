"""The sections of a training configuration: one frozen record per concern, each field with its sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


def require(condition: bool, sentence: str) -> None:
    """Raise ValueError with the sentence unless the condition holds."""
    if not condition:
        raise ValueError(sentence)


def require_choice(key: str, value: str, allowed: Sequence[str]) -> None:
    """Raise ValueError unless the value is one of the allowed words."""
    require(value in allowed, f"{key}={value!r} is not known; use one of {', '.join(allowed)}.")


def require_positive(section: str, **values: float) -> None:
    """Raise ValueError unless all values are greater than zero."""
    for name, value in values.items():
        require(value > 0, f"{section}.{name}={value} must be greater than zero.")
        require(value < math.inf, f"{section}.{name}={value} must be a finite number.")


@dataclass(frozen=True)
class SamplingConfig:
    """How the trajectories of an iteration are drawn."""

    prompts: str = "toybox"
    """A built-in prompt set (see training/data/prompts.py) or the path of a .txt or .jsonl file."""
    held_out_share: float = 0.0
    """Share of the prompts that is never trained on, in [0, 1): evaluation uses them; chosen by hash."""
    prompts_per_iteration: int = 16
    """Prompts of one iteration over all processes; each gives two trajectories."""
    batch_size: int = 8
    """Prompts in one forward pass while sampling, per process; a matter of memory only."""
    azimuths_deg: tuple[float, ...] = (0.0, 45.0, 90.0, 180.0, 270.0, 315.0)
    """Camera azimuths in degrees, one per view; elevation 0. A single one trains plain text-to-image."""
    num_views: int | None = None
    """Only the first so many of azimuths_deg; none: all. 1 trains plain text-to-image."""
    state_dtype: str = "fp32"
    """fp32, or bf16: latents are rounded as they are made and kept in half the memory."""
    negative_prompt: str | None = None
    """For models with classifier-free guidance; none is the empty prompt."""
    num_steps: int = 4
    """Denoising steps."""
    guidance_scale: float = 7.0
    """Text guidance w."""
    view_scale: float = 1.0
    """Factor s of the camera features."""
    zigzag_steps: int = 1
    """ZMV: how many of the first steps zigzag."""
    zigzag_repeats: int = 1
    """ZMV: zigzags per zigzag step, 1 or 2."""
    inverse_guidance_scale: float = 1.0
    """ZMV: guidance of the zag."""
    inverse_view_scale: float = 1.0
    """ZMV: view scale of the zag."""

    def __post_init__(self) -> None:
        """Check ranges."""
        require_positive(
            "sampling",
            prompts_per_iteration=self.prompts_per_iteration,
            batch_size=self.batch_size,
            num_steps=self.num_steps,
            zigzag_repeats=self.zigzag_repeats,
        )
        require(
            len(self.azimuths_deg) > 0, "sampling.azimuths_deg is empty; give at least one angle in degrees."
        )
        require(self.zigzag_repeats <= 2, f"sampling.zigzag_repeats={self.zigzag_repeats} must be 1 or 2.")
        for name in ("guidance_scale", "view_scale", "inverse_guidance_scale", "inverse_view_scale"):
            value = getattr(self, name)
            require(
                0 <= value < math.inf, f"sampling.{name}={value} must be a finite number of at least zero."
            )
        require(
            all(map(math.isfinite, self.azimuths_deg)),
            f"sampling.azimuths_deg={list(self.azimuths_deg)} must be finite angles in degrees.",
        )
        require_choice("sampling.state_dtype", self.state_dtype, ("fp32", "bf16"))
        require(
            self.num_views is None or 1 <= self.num_views <= len(self.azimuths_deg),
            f"sampling.num_views={self.num_views} must lie between 1 and the "
            f"{len(self.azimuths_deg)} angles of sampling.azimuths_deg.",
        )
        require(
            0 <= self.held_out_share < 1,
            f"sampling.held_out_share={self.held_out_share} must be at least 0 and less than 1.",
        )
        require(
            0 <= self.zigzag_steps <= self.num_steps,
            f"sampling.zigzag_steps={self.zigzag_steps} must lie between 0 and "
            f"sampling.num_steps={self.num_steps}.",
        )


@dataclass(frozen=True)
class ConstraintConfig:
    """The dual variable of the joint-view constraint (docs/method.md, section 6)."""

    lambda_init: float = 0.0
    """Multiplier before the first iteration."""
    lambda_max: float = 5.0
    """Upper bound of the multiplier."""
    violated_lr: float = 0.1
    """Step size of the multiplier while the joint reward is under its threshold."""
    satisfied_lr: float = 0.01
    """Step size while the constraint holds."""
    threshold_decay: float = 0.99
    """Decay of the threshold's exponential mean per iteration, in [0, 1]; 1 keeps it fixed."""
    threshold_init: float | None = None
    """Threshold before the first iteration, in joint reward; none: the first mean joint reward."""

    def __post_init__(self) -> None:
        """Check ranges."""
        require_positive("constraint", lambda_max=self.lambda_max, violated_lr=self.violated_lr)
        require(
            0 <= self.satisfied_lr < math.inf,
            f"constraint.satisfied_lr={self.satisfied_lr} must be a finite number of at least zero.",
        )
        require(
            self.threshold_init is None or math.isfinite(self.threshold_init),
            f"constraint.threshold_init={self.threshold_init} must be a finite number, or null.",
        )
        require(
            0 <= self.lambda_init <= self.lambda_max,
            f"constraint.lambda_init={self.lambda_init} must lie between 0 and lambda_max={self.lambda_max}.",
        )
        require(
            0 <= self.threshold_decay <= 1,
            f"constraint.threshold_decay={self.threshold_decay} must lie between 0 and 1.",
        )


@dataclass(frozen=True)
class OptimConfig:
    """The policy update."""

    lr: float = 1e-4
    """Learning rate of AdamW."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    weight_decay: float = 1e-4
    """AdamW's weight decay."""
    max_grad_norm: float = 5.0
    """The gradient is scaled down to at most this norm."""
    clip_range: float = 1e-4
    """Bound on the log ratio of a step, nats per latent element."""
    prompts_per_update: int | None = None
    """Prompts of one optimizer step over all processes; none: all of the iteration."""
    micro_batch: int = 1
    """Prompts (two trajectories each) in one forward and backward pass, per process; a matter of memory only.
    Gradients accumulate over prompts_per_update / (processes x micro_batch) of them."""
    steps_per_update: int | None = None
    """Denoising steps of each prompt in one optimizer step, in random order; none: all."""
    trained_steps: int | None = None
    """How many of a prompt's denoising steps are learned from at all, drawn anew each pass; none: all."""
    splits_pairs: bool = False
    """One trajectory of a prompt at a time: half the activations; one forward pass more, except in the first
    update of an iteration."""
    kl_weight: float = 0.0
    """Factor of the KL to the model without the LoRA, nats per latent element; 0 does not compute it."""
    ema_decay: float | None = None
    """Decay of the LoRA's moving average per optimizer step; with it LoRA files hold the average."""
    inner_epochs: int = 1
    """How often the trajectories of an iteration are gone through."""
    mixed_precision: str = "no"
    """"bf16" runs the networks under autocast; log-probabilities and the LoRA stay fp32."""

    def __post_init__(self) -> None:
        """Check ranges."""
        require_positive(
            "optim",
            lr=self.lr,
            eps=self.eps,
            max_grad_norm=self.max_grad_norm,
            clip_range=self.clip_range,
            micro_batch=self.micro_batch,
            inner_epochs=self.inner_epochs,
            prompts_per_update=self.prompts_per_update or 1,
            steps_per_update=self.steps_per_update or 1,
            trained_steps=self.trained_steps or 1,
        )
        require(self.trained_steps != 0, "optim.trained_steps=0; give a number of steps, or null for all.")
        require(
            math.isfinite(self.kl_weight) and self.kl_weight >= 0,
            f"optim.kl_weight={self.kl_weight} must be zero or positive.",
        )
        require(
            self.ema_decay is None or 0 < self.ema_decay < 1,
            f"optim.ema_decay={self.ema_decay} must lie between 0 and 1; null keeps no average.",
        )
        require(
            self.prompts_per_update != 0,
            "optim.prompts_per_update=0; give a number of prompts, or null for all.",
        )
        require(
            self.steps_per_update != 0, "optim.steps_per_update=0; give a number of steps, or null for all."
        )
        require(
            0 <= self.weight_decay < math.inf, f"optim.weight_decay={self.weight_decay} must not be negative."
        )
        require(all(0 <= b < 1 for b in self.betas), f"optim.betas={self.betas} must lie in [0, 1).")
        require_choice("optim.mixed_precision", self.mixed_precision, ("no", "bf16"))


@dataclass(frozen=True)
class EvaluationConfig:
    """Held-out evaluation while training, and when it ends the run."""

    every: int = 0
    """Iterations between two evaluations; 0 never evaluates."""
    prompts: str | None = None
    """Prompt set or file; none: the held-out part of sampling.prompts."""
    num_prompts: int = 16
    """How many of them, at even distances."""
    view: tuple[str, ...] = ()
    """Scorers of single views that measure beside reward.view and that nothing learns from."""
    joint: tuple[str, ...] = ()
    """Scorers of sets that measure beside reward.joint and that nothing learns from."""
    stop_measure: str | None = None
    """Measure whose best LoRA is kept as lora/best.safetensors, such as view_reward or judge_colour."""
    patience: int = 0
    """Evaluations in a row without a new best that end the run; 0 never ends it."""

    def __post_init__(self) -> None:
        """Check ranges."""
        require_positive("evaluation", num_prompts=self.num_prompts)
        for name in ("every", "patience"):
            value = getattr(self, name)
            require(value >= 0, f"evaluation.{name}={value} must not be negative.")
        require(
            not self.patience or (self.every > 0 and self.stop_measure is not None),
            f"evaluation.patience={self.patience} needs evaluation.every and evaluation.stop_measure.",
        )


@dataclass(frozen=True)
class RunConfig:
    """Length, place and record of the run."""

    out_dir: str = "runs/mvczigal"
    """Run folder."""
    seed: int = 0
    """Every random draw derives from it."""
    epochs: int = 5
    """Length of the run; every epoch leaves a LoRA file."""
    iterations_per_epoch: int = 10
    """Iterations (rollout and update) of an epoch."""
    save_every: int = 1
    """Iterations between two saves of the full state."""
    sheet_prompts: int = 4
    """Rows of the sample sheet written at every epoch; 0 writes none."""
    keep_loras: int | None = None
    """How many of the newest lora/epoch_*.safetensors to keep; none: all. lora/best stays."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Where metrics go beside metrics.jsonl: accelerate's trackers, such as tensorboard or wandb."""

    def __post_init__(self) -> None:
        """Check ranges."""
        require_positive(
            "run",
            epochs=self.epochs,
            iterations_per_epoch=self.iterations_per_epoch,
            save_every=self.save_every,
        )
        require(bool(self.out_dir.strip()), "run.out_dir is empty; name a folder.")
        require(self.keep_loras != 0, "run.keep_loras=0 would keep no LoRA; give 1 or more, or null for all.")
        require(
            self.keep_loras is None or self.keep_loras > 0,
            f"run.keep_loras={self.keep_loras} must not be negative.",
        )
        require(self.sheet_prompts >= 0, f"run.sheet_prompts={self.sheet_prompts} must not be negative.")
