"""The reward models of a run: found before anything is loaded, then loaded by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from t2mv_core.rewards.registry import (
    OVER_VIEWS,
    REWARDS,
    RewardPlaces,
    check_rewards,
    no_such_part,
    reward_kind,
    take_part,
)
from t2mv_core.rewards.registry import load_rewards as load_by_name
from t2mv_core.rewards.sources import FOLDER_NAME

from ..algorithm.rollout import Rewards, Scorer
from ..config import TrainConfig
from ..config.rewards import OwnRewardConfig, RewardConfig
from .own_rewards import OwnReward, load_own_reward

REWARD_DTYPES = {"auto": None, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Words of `reward.dtype`."""
_ROOT = Path(__file__).parents[2]


def default_folder() -> Path:
    """models/t2mv_rewards of the ComfyUI in whose custom_nodes this project lies, else of this project."""
    parents = _ROOT.parents
    base = parents[1] if _ROOT.parent.name == "custom_nodes" else _ROOT
    return base / "models" / FOLDER_NAME


def reward_places(config: RewardConfig) -> RewardPlaces:
    """Where a run looks for the weights of published rewards."""
    folder = Path(config.folder) if config.folder is not None else default_folder()
    paths = {name: Path(path) for name, path in config.paths.items()}
    return RewardPlaces(paths, (folder,), config.allow_download)


def check_reward_models(view: Iterable[str], joint: Iterable[str], config: RewardConfig) -> None:
    """Refuse rewards that do not exist, are in the wrong role, or whose weights are missing; loads nothing.

    Raises:
        ValueError: an unknown name, a reward in the wrong role, or an own reward that cannot be used.
        FileNotFoundError: weights or files are missing, with where to get them and where to put them.
    """
    for name in config.own:
        if name in REWARDS:
            raise ValueError(f"reward.own.{name}: there is a reward of that name already; choose another.")
    unknown = [name for name in config.paths if name not in REWARDS]
    if unknown:
        raise ValueError(
            f"reward.paths.{unknown[0]}: there is no reward of that name; use one of {', '.join(REWARDS)}."
        )
    names = {"view": list(view), "joint": list(joint)}
    for role, in_role in names.items():
        for name in in_role:
            kind = _kind(name, config.own)
            if kind != role:
                raise ValueError(f"{name} is a {kind} reward; it cannot be used as {role} reward.")
    asked = [name for in_role in names.values() for name in in_role]
    for name in asked:
        if _is_own(name, config.own):  # only what is asked for: the file is run
            load_own_reward(config.own[name.partition(".")[0]])
    check_rewards([name for name in asked if not _is_own(name, config.own)], reward_places(config))


def check_stop_measure(config: TrainConfig) -> None:
    """Refuse a watched reward that the evaluation will not measure; the judge's measures are not looked at.

    Raises:
        ValueError: names what will be measured.
    """
    measure = config.evaluation.stop_measure
    if measure is None or not measure.startswith(("view_reward", "joint_reward")):
        return
    known: list[str] = []
    for role in ("view", "joint"):
        learned, measuring = getattr(config.reward, role), getattr(config.evaluation, role)
        only = frozenset(measuring) - frozenset(learned)
        known += measure_names(role, dict.fromkeys((*learned, *measuring)), only).values()
    if measure not in known:
        raise ValueError(
            f"evaluation.stop_measure={measure} will not be measured; the rewards' measures are "
            f"{', '.join(known)}."
        )


def measure_names(role: str, names: Iterable[str], only_measuring: frozenset[str]) -> dict[str, str]:
    """Return the name of each reward's measure; see `reward_values` of training/evaluation/measure.py."""
    names = list(names)
    learned = [name for name in names if name not in only_measuring]
    return {name: f"{role}_reward" + ("" if learned == [name] else f"/{name}") for name in names}


def load_rewards(
    view: Iterable[str],
    joint: Iterable[str],
    device: torch.device | str,
    config: RewardConfig | None = None,
) -> Rewards:
    """Load the reward models of a run by name, each once however many of its parts are used.

    Args:
        view: names, "pickscore" or "image_reward" for example.
        joint: names, parts among them: "hyperscore.geometry", "pickscore.min".
        device: where to.
        config: precision, places of weights and own rewards; the names in it are not looked at.

    Raises:
        ValueError, FileNotFoundError: see `check_reward_models`; or a weights file is not what it should be.
    """
    config = config or RewardConfig()
    view, joint = list(view), list(joint)
    check_reward_models(view, joint, config)
    names = [name for name in dict.fromkeys((*view, *joint)) if not _is_own(name, config.own)]
    scorers: dict[str, Scorer] = dict(
        load_by_name(names, device, REWARD_DTYPES[config.dtype], reward_places(config))
    )
    for name in dict.fromkeys((*view, *joint)):
        if _is_own(name, config.own):
            scorers[name] = _own_scorer(name, config.own)
    return Rewards({name: scorers[name] for name in view}, {name: scorers[name] for name in joint})


def _is_own(name: str, own: Mapping[str, OwnRewardConfig]) -> bool:
    return name.partition(".")[0] in own


def _kind(name: str, own: Mapping[str, OwnRewardConfig]) -> str:
    model, _, part = name.partition(".")
    if model not in own:
        return reward_kind(name)
    allowed = OVER_VIEWS if own[model].kind == "view" else ()
    if part and part not in allowed:
        raise ValueError(no_such_part(model, part, allowed))
    return "joint" if part else own[model].kind


def _own_scorer(name: str, own: Mapping[str, OwnRewardConfig]) -> Scorer:
    model, _, part = name.partition(".")
    return take_part(OwnReward(model, own[model]), part)
