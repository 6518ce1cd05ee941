"""The configuration of a training run: frozen dataclasses, YAML presets, `key.sub=value` overrides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .model import BaseLoraConfig, ModelConfig
from .parsing import apply_override, build_record, plain_values
from .rewards import OwnRewardConfig, RewardConfig
from .sections import (
    ConstraintConfig,
    EvaluationConfig,
    OptimConfig,
    RunConfig,
    SamplingConfig,
    require,
    require_choice,
)

__all__ = [
    "OBJECTIVE_NAMES", "PRESET_DIR", "BaseLoraConfig", "ConstraintConfig", "EvaluationConfig",
    "ModelConfig", "OptimConfig", "OwnRewardConfig", "RewardConfig", "RunConfig", "SamplingConfig",
    "TrainConfig", "changed_values", "config_from_dict", "config_to_dict", "load_config", "preset_names",
]  # fmt: skip

PRESET_DIR = Path(__file__).parent / "presets"
OBJECTIVE_NAMES = (
    "mvc_zigal",
    "mvc_zigal_fixed_threshold",
    "zigal_view",
    "zigal_joint",
    "zigal_weighted",
    "reward_difference",
    "ppo",
)
NEED_JOINT_REWARD = ("mvc_zigal", "mvc_zigal_fixed_threshold", "zigal_joint", "zigal_weighted")


@dataclass(frozen=True)
class TrainConfig:
    """Everything a run depends on."""

    objective: str = "mvc_zigal"
    """What is optimised: a name of training.algorithm.objectives.OBJECTIVES."""
    preset: str = "custom"
    """Name of the preset this configuration began with; recorded in the LoRA files."""
    model: ModelConfig = field(default_factory=ModelConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    constraint: ConstraintConfig = field(default_factory=ConstraintConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        """Check what concerns several sections."""
        require_choice("objective", self.objective, OBJECTIVE_NAMES)
        per_update, per_iteration = self.optim.prompts_per_update, self.sampling.prompts_per_iteration
        require(
            per_update is None or per_update <= per_iteration,
            f"optim.prompts_per_update={per_update} exceeds sampling.prompts_per_iteration={per_iteration}; "
            "an update cannot use more prompts than were sampled.",
        )
        num_steps = self.sampling.num_steps
        for name in ("steps_per_update", "trained_steps"):
            steps = getattr(self.optim, name)
            require(
                steps is None or steps <= num_steps,
                f"optim.{name}={steps} exceeds sampling.num_steps={num_steps}.",
            )
        require(
            bool(self.reward.joint) or self.objective not in NEED_JOINT_REWARD,
            f"objective={self.objective} needs a joint reward; set reward.joint, or use zigal_view, "
            "reward_difference or ppo.",
        )
        evaluation = self.evaluation
        require(
            evaluation.stop_measure is None or evaluation.every > 0,
            f"evaluation.stop_measure={evaluation.stop_measure} is never measured; set evaluation.every.",
        )
        require(
            not evaluation.every
            or evaluation.prompts is not None
            or self.sampling.held_out_share > 0
            or self.sampling.prompts.endswith(".jsonl"),
            f"evaluation.every={evaluation.every} needs prompts: set evaluation.prompts (such as dev), or "
            "sampling.held_out_share.",
        )


def preset_names() -> list[str]:
    """Names of the presets in training/config/presets."""
    return sorted(path.stem for path in PRESET_DIR.glob("*.yaml"))


def load_config(preset: str, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a preset and apply overrides from the command line.

    Args:
        preset: a name of training/config/presets, or the path of a YAML file of the same form.
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
        require(isinstance(values, dict), f"{path} must hold `section:` blocks with `key: value` lines.")
        for word in overrides:
            apply_override(values, word, yaml.safe_load)
    except yaml.YAMLError as error:
        raise ValueError(
            f"{path.name} or an override is not valid YAML: {str(error).splitlines()[0]}."
        ) from error
    values.setdefault("preset", path.stem)
    return config_from_dict(values)


def config_from_dict(values: Mapping[str, Any]) -> TrainConfig:
    """Build a configuration from nested mappings; see `load_config` for what raises."""
    return build_record(TrainConfig, values)


def changed_values(config: TrainConfig) -> dict[str, Any]:
    """The settings that differ from their defaults, nested; sections without any are left out."""
    defaults, changed = config_to_dict(TrainConfig()), {}
    for section, values in config_to_dict(config).items():
        if not isinstance(values, dict):
            if values != defaults[section]:
                changed[section] = values
        elif own := {key: value for key, value in values.items() if value != defaults[section][key]}:
            changed[section] = own
    return changed


def config_to_dict(config: TrainConfig) -> dict[str, Any]:
    """Nested plain values, as `config_from_dict` and YAML take them."""
    return plain_values(config)
