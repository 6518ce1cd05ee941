"""The configuration of a training run: frozen dataclasses, YAML presets, `key.sub=value` overrides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .parsing import Typed, apply_override, build_record, home_path, plain_values, settings_first
from .sections import (
    OBJECTIVE_NAMES,
    BaseLoraConfig,
    ConstraintConfig,
    EvaluationConfig,
    ModelConfig,
    OptimConfig,
    OwnRewardConfig,
    RewardConfig,
    RunConfig,
    SamplingConfig,
    TrainConfig,
    require,
)

__all__ = [
    "OBJECTIVE_NAMES", "PRESET_DIR", "BaseLoraConfig", "ConstraintConfig", "EvaluationConfig",
    "ModelConfig", "OptimConfig", "OwnRewardConfig", "RewardConfig", "RunConfig", "SamplingConfig",
    "TrainConfig", "change_settings", "changed_values", "config_from_dict", "config_to_dict",
    "flat_settings", "home_path", "load_config", "preset_names", "read_preset",
    "settings_first",
]  # fmt: skip

PRESET_DIR = Path(__file__).parent / "presets"


def preset_names() -> list[str]:
    """Return the names of the presets in training/config/presets."""
    return sorted(path.stem for path in PRESET_DIR.glob("*.yaml"))


def load_config(preset: str, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a preset, apply overrides from the command line, and fill in the numbers of the model.

    Numbers of t2mv_core/defaults.py that neither states are those of the model; one that the table does not
    know (a folder, a file) has those of the preset's model.

    Args:
        preset: a name of training/config/presets, or the path of a YAML file of the same form.
        overrides: `section.key=value` words: `null`, `3e-4`, text as it is, or YAML in brackets (`[0, 90]`).

    Raises:
        FileNotFoundError: no such preset.
        ValueError: unknown key, wrong type or a value out of range, in a sentence.
    """
    from .yaml_text import read_value

    values = read_preset(preset)
    base = _model_name(values)
    for word in overrides:
        _begin_with_defaults(values, word)
        apply_override(values, word, read_value)
    _fill_in(values, base)
    return config_from_dict(values)


def _begin_with_defaults(values: dict[str, Any], word: str) -> None:
    """Let `reward.joint.geometry=0.5` join the default rewards, as it joins those that a preset states."""
    keys = word.partition("=")[0].split(".")
    if len(keys) < 3 or keys[:2] not in (["reward", "view"], ["reward", "joint"]):
        return
    rewards = values.setdefault("reward", {})
    if isinstance(rewards, dict):
        stated = rewards.setdefault(keys[1], dict(getattr(RewardConfig(), keys[1])))
        if isinstance(stated, str) and not _is_null(stated):  # a word is that name with weight 1
            rewards[keys[1]] = {str(stated): 1.0}


def read_preset(preset: str) -> dict[str, Any]:
    """Read what a preset states, as nested plain values; arguments and errors as of `load_config`."""
    from .yaml_text import read_yaml

    is_file = preset.endswith((".yaml", ".yml"))
    path = home_path(preset) if is_file else PRESET_DIR / f"{preset}.yaml"
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no preset {preset!r}; use one of {', '.join(preset_names())}, "
            "or the path of a YAML file."
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text; save it as UTF-8.") from error
    values = read_yaml(text, path.name) or {}
    require(isinstance(values, dict), f"{path} must hold `section:` blocks with `key: value` lines.")
    values.setdefault("preset", path.stem)
    return values


def change_settings(config: TrainConfig, overrides: Sequence[str]) -> TrainConfig:
    """Return a configuration with `section.key=value` words applied; see `load_config` for what raises."""
    from .yaml_text import read_value

    values = config_to_dict(config)
    for word in overrides:
        apply_override(values, word, read_value)
    return config_from_dict(values)


def _fill_in(values: dict[str, Any], base: str) -> None:
    """Write the model's own numbers where the sampling section states none; `base` is the preset's model."""
    # Not above: inside ComfyUI the core has this name only after nodes/train/session.py has given it.
    from t2mv_core.defaults import find_named_defaults

    model = build_record(ModelConfig, values.get("model", {}), "model.")
    stated = values.get("sampling", {})
    if _is_null(stated):  # a section whose lines are all comments
        stated = {}
    if not isinstance(stated, Mapping):
        return  # refused elsewhere, in words
    # No file is read here; `Subjects` refuses pictures for a model of text, and the other way round.
    is_of_picture = not _is_null(stated.get("references"))
    records = (find_named_defaults(name, model.solver, is_of_picture) for name in (model.name, base))
    own = next(filter(None, records), None)
    if own is not None:
        values["sampling"] = {**own.numbers(), **stated}


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, Typed) and value.is_null)


def _model_name(values: Mapping[str, Any]) -> str:
    model = values.get("model")
    return str(model.get("name", ModelConfig.name)) if isinstance(model, Mapping) else ModelConfig.name


def config_from_dict(values: Mapping[str, Any]) -> TrainConfig:
    """Build a configuration from nested mappings; see `load_config` for what raises."""
    return build_record(TrainConfig, values)


def config_to_dict(config: TrainConfig) -> dict[str, Any]:
    """Return nested plain values, as `config_from_dict` and YAML take them."""
    return plain_values(config)


def flat_settings(config: TrainConfig) -> dict[str, Any]:
    """Return the plain value of every setting by "section.key"."""
    return {
        f"{section}.{key}" if key else section: value
        for section, values in config_to_dict(config).items()
        for key, value in (values.items() if isinstance(values, dict) else [("", values)])
    }


def changed_values(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that differ from their defaults, nested; sections without any are left out."""
    changed: dict[str, Any] = {}
    defaults = flat_settings(TrainConfig())
    for name, value in flat_settings(config).items():
        if value != defaults[name]:
            *section, key = name.split(".")
            block = changed.setdefault(section[0], {}) if section else changed
            block[key] = value
    return changed
