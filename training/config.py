"""The configuration of a training run: frozen dataclasses, YAML presets, `key.sub=value` overrides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .config_values import apply_override, build_record, plain_values

PRESET_DIR = Path(__file__).parent / "configs"
OBJECTIVE_NAMES = (
    "mvc_zigal",
    "zigal_view",
    "zigal_joint",
    "zigal_weighted",
    "reward_difference",
)


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise ValueError(sentence)


def _require_choice(key: str, value: str, allowed: Sequence[str]) -> None:
    _require(value in allowed, f"{key}={value!r} is not known; use one of {', '.join(allowed)}.")


def _require_positive(section: str, **values: float) -> None:
    for name, value in values.items():
        _require(value > 0, f"{section}.{name}={value} must be greater than zero.")


@dataclass(frozen=True)
class ModelConfig:
    """The base model and the LoRA that is trained on it."""

    name: str = "toybox"
    """"toybox", "toybox-teacher", a local diffusers folder or a Hub id."""
    adapter: str | None = None
    """MV-Adapter file or Hub id; none when the model brings its own (the toybox does)."""
    allow_download: bool = False
    """Whether a Hub id may be fetched over the network."""
    dtype: str = "fp32"
    """Precision of the frozen base weights: fp32, bf16 or fp16. The LoRA is always fp32."""
    device: str = "auto"
    """"auto" takes a GPU when there is one; otherwise "cpu", "cuda", "cuda:1", ..."""
    lora_rank: int = 16
    """Rank of every LoRA pair."""
    lora_alpha: float = 16.0
    """The LoRA is scaled by alpha / rank."""

    def __post_init__(self) -> None:
        """Check ranges."""
        _require_choice("model.dtype", self.dtype, ("fp32", "bf16", "fp16"))
        _require_positive("model", lora_rank=self.lora_rank, lora_alpha=self.lora_alpha)


@dataclass(frozen=True)
class SamplingConfig:
    """How the trajectories of an iteration are drawn."""

    prompts: str = "toybox"
    """A built-in prompt set (see training/prompts.py) or the path of a text file with one prompt a line."""
    prompts_per_iteration: int = 16
    """Prompts of one iteration over all processes; each gives two trajectories."""
    batch_size: int = 8
    """Prompts in one forward pass while sampling, per process; a matter of memory only."""
    azimuths_deg: tuple[float, ...] = (0.0, 45.0, 90.0, 180.0, 270.0, 315.0)
    """Camera azimuths in degrees, one per view; elevation 0. A single one trains plain text-to-image."""
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
        _require_positive(
            "sampling",
            prompts_per_iteration=self.prompts_per_iteration,
            batch_size=self.batch_size,
            num_steps=self.num_steps,
            zigzag_repeats=self.zigzag_repeats,
        )
        _require(
            len(self.azimuths_deg) > 0, "sampling.azimuths_deg is empty; give at least one angle in degrees."
        )
        _require(
            0 <= self.zigzag_steps <= self.num_steps,
            f"sampling.zigzag_steps={self.zigzag_steps} must lie between 0 and "
            f"sampling.num_steps={self.num_steps}.",
        )


@dataclass(frozen=True)
class RewardConfig:
    """The reward models."""

    view: str = "toybox_clip"
    """Scorer of single views (fidelity to the prompt), a name of t2mv_core.rewards."""
    joint: str = "toybox_hyperscore"
    """Scorer of a set of views (consistency), a name of t2mv_core.rewards."""


@dataclass(frozen=True)
class ConstraintConfig:
    """The dual variable of the joint-view constraint (METHOD.md section 6)."""

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
        _require_positive("constraint", lambda_max=self.lambda_max, violated_lr=self.violated_lr)
        _require(self.satisfied_lr >= 0, f"constraint.satisfied_lr={self.satisfied_lr} must not be negative.")
        _require(
            0 <= self.lambda_init <= self.lambda_max,
            f"constraint.lambda_init={self.lambda_init} must lie between 0 and lambda_max={self.lambda_max}.",
        )
        _require(
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
    inner_epochs: int = 1
    """How often the trajectories of an iteration are gone through."""
    mixed_precision: str = "no"
    """"bf16" runs the networks under autocast; log-probabilities and the LoRA stay fp32."""

    def __post_init__(self) -> None:
        """Check ranges."""
        _require_positive(
            "optim",
            lr=self.lr,
            eps=self.eps,
            max_grad_norm=self.max_grad_norm,
            clip_range=self.clip_range,
            micro_batch=self.micro_batch,
            inner_epochs=self.inner_epochs,
            prompts_per_update=self.prompts_per_update or 1,
            steps_per_update=self.steps_per_update or 1,
        )
        _require(
            self.prompts_per_update != 0,
            "optim.prompts_per_update=0; give a number of prompts, or null for all.",
        )
        _require(
            self.steps_per_update != 0, "optim.steps_per_update=0; give a number of steps, or null for all."
        )
        _require(self.weight_decay >= 0, f"optim.weight_decay={self.weight_decay} must not be negative.")
        _require(all(0 <= b < 1 for b in self.betas), f"optim.betas={self.betas} must lie in [0, 1).")
        _require_choice("optim.mixed_precision", self.mixed_precision, ("no", "bf16"))


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

    def __post_init__(self) -> None:
        """Check ranges."""
        _require_positive(
            "run",
            epochs=self.epochs,
            iterations_per_epoch=self.iterations_per_epoch,
            save_every=self.save_every,
        )
        _require(self.sheet_prompts >= 0, f"run.sheet_prompts={self.sheet_prompts} must not be negative.")


@dataclass(frozen=True)
class TrainConfig:
    """Everything a run depends on."""

    objective: str = "mvc_zigal"
    """What is optimised: a name of training.objectives.OBJECTIVES."""
    preset: str = "custom"
    """Name of the preset this configuration began with; recorded in the LoRA files."""
    model: ModelConfig = field(default_factory=ModelConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    constraint: ConstraintConfig = field(default_factory=ConstraintConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        """Check what concerns several sections."""
        _require_choice("objective", self.objective, OBJECTIVE_NAMES)
        per_update, per_iteration = self.optim.prompts_per_update, self.sampling.prompts_per_iteration
        _require(
            per_update is None or per_update <= per_iteration,
            f"optim.prompts_per_update={per_update} exceeds sampling.prompts_per_iteration={per_iteration}; "
            "an update cannot use more prompts than were sampled.",
        )
        per_step, num_steps = self.optim.steps_per_update, self.sampling.num_steps
        _require(
            per_step is None or per_step <= num_steps,
            f"optim.steps_per_update={per_step} exceeds sampling.num_steps={num_steps}.",
        )


def preset_names() -> list[str]:
    """Names of the presets in training/configs."""
    return sorted(path.stem for path in PRESET_DIR.glob("*.yaml"))


def load_config(preset: str, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a preset and apply overrides from the command line.

    Args:
        preset: a name of training/configs, or the path of a YAML file of the same form.
        overrides: `section.key=value` words; the value is YAML (`null`, `[0, 90]`, `3e-4`).

    Raises:
        FileNotFoundError: no such preset.
        ValueError: unknown key, wrong type or a value out of range, in a sentence.
    """
    import yaml

    path = PRESET_DIR / f"{preset}.yaml" if not preset.endswith((".yaml", ".yml")) else Path(preset)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no preset {preset!r}; use one of {', '.join(preset_names())}, "
            "or the path of a YAML file."
        )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        for word in overrides:
            apply_override(values, word, yaml.safe_load)
    except yaml.YAMLError as error:
        raise ValueError(
            f"{path.name} or an override is not valid YAML: {str(error).splitlines()[0]}."
        ) from error
    _require(isinstance(values, dict), f"{path} must hold `section:` blocks with `key: value` lines.")
    values.setdefault("preset", path.stem)
    return config_from_dict(values)


def config_from_dict(values: Mapping[str, Any]) -> TrainConfig:
    """Build a configuration from nested mappings; see `load_config` for what raises."""
    return build_record(TrainConfig, values)


def config_to_dict(config: TrainConfig) -> dict[str, Any]:
    """Nested plain values, as `config_from_dict` and YAML take them."""
    return plain_values(config)
