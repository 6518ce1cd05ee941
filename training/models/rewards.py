"""The reward models of a run, published ones and functions of the user's, loaded by name."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from t2mv_core.cameras import DEFAULT_RIG
from t2mv_core.rewards.base import RewardKind, RewardResult, check_request
from t2mv_core.rewards.registry import (
    OVER_VIEWS,
    REWARDS,
    check_rewards,
    no_such_part,
    reward_kind,
    take_part,
)
from t2mv_core.rewards.registry import load_rewards as load_by_name
from t2mv_core.rewards.sources import FOLDER_NAME, RewardPlaces

from ..algorithm.scoring import Rewards, Scorer
from ..config import OwnRewardConfig, RewardConfig
from .policy import camera_rig, check_device

if TYPE_CHECKING:
    from typing_extensions import Self

REWARD_DTYPES = {"auto": None, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Words of `reward.dtype`."""
RewardFunction = Callable[[Tensor, list[str]], Any]
"""(images [n, 3, H, W] in [0, 1], prompts) -> scores: a tensor or a list of numbers, higher is better."""
_ROOT = Path(__file__).parents[2]


def default_folder() -> Path:
    """Return models/t2mv_rewards of the ComfyUI in whose custom_nodes we lie, else of this project."""
    base = _ROOT.parents[1] if _ROOT.parent.name == "custom_nodes" else _ROOT
    return base / "models" / FOLDER_NAME


def reward_places(config: RewardConfig) -> RewardPlaces:
    """Return where a run looks for the weights of published rewards."""
    folder = Path(config.folder) if config.folder is not None else default_folder()
    paths = {name: Path(path) for name, path in config.paths.items()}
    return RewardPlaces(paths, (folder,), config.allow_download)


def check_reward_models(
    view: Iterable[str], joint: Iterable[str], config: RewardConfig, has_pictures: bool = True
) -> None:
    """Refuse rewards that do not exist, are in the wrong role, or whose weights are missing; loads nothing.

    Args:
        view: names in the role of view rewards.
        joint: names in the role of joint rewards.
        config: places of weights and functions of the user's.
        has_pictures: views are drawn of pictures.

    Raises:
        ValueError: an unknown name, a reward in the wrong role or one that compares with pictures where there
            are none, an unusable function of the user's, or a device that is not there.
        FileNotFoundError: weights or files are missing, with where to get them and where to put them.
    """
    check_device("reward.device", config.device)
    for name in config.own:
        if name in REWARDS:
            raise ValueError(f"reward.own.{name}: there is a reward of that name already; choose another.")
    for name in config.paths:
        if name not in REWARDS:
            raise ValueError(
                f"reward.paths.{name}: there is no reward of that name; use one of {', '.join(REWARDS)}."
            )
    roles = [("view", name) for name in view] + [("joint", name) for name in joint]
    for role, name in roles:
        kind = _kind(name, config.own)
        if kind != role:
            raise ValueError(f"{name} is a {kind} reward; it cannot be used as {role} reward.")
        if not has_pictures and name in REWARDS and REWARDS[name].takes_pictures:
            raise ValueError(
                f"{name} compares views with the picture they were drawn from, and sampling.references "
                "is not set; set it, or use another reward."
            )
    for _, name in roles:
        if _is_own(name, config.own):  # the file is run: only those that are asked for
            load_own_reward(config.own[name.partition(".")[0]])
    check_rewards([name for _, name in roles if not _is_own(name, config.own)], reward_places(config))


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
    azimuths_deg: Sequence[float] = DEFAULT_RIG.azimuths_deg,
) -> Rewards:
    """Load the reward models of a run by name, each once however many of its parts are used.

    Args:
        view: names, "pickscore" or "image_reward" for example.
        joint: names, parts among them: "hyperscore.geometry", "pickscore.min".
        device: where to.
        config: precision, places of weights and functions of the user's; its `view` and `joint` are ignored.
        azimuths_deg: the cameras, for rewards that look at them.

    Raises:
        ValueError, FileNotFoundError: see `check_reward_models`; or a weights file is not what it should be.
    """
    config = config or RewardConfig()
    view, joint = list(view), list(joint)
    check_reward_models(view, joint, config)
    names = dict.fromkeys((*view, *joint))
    published = [name for name in names if not _is_own(name, config.own)]
    scorers: dict[str, Scorer] = dict(
        load_by_name(
            published, device, REWARD_DTYPES[config.dtype], reward_places(config), camera_rig(azimuths_deg)
        )
    )
    for name in names:
        if _is_own(name, config.own):
            model, _, part = name.partition(".")
            scorers[name] = take_part(OwnReward(model, config.own[model]), part)
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


def load_own_reward(config: OwnRewardConfig) -> RewardFunction:
    """Take the function out of the user's file, which is run once per process.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file cannot be run, or has no such function.
    """
    path = Path(config.file)
    if not path.is_file():
        raise FileNotFoundError(f"reward.own: there is no file {path.absolute()}; correct the path.")
    function = getattr(_run_file(path.resolve()), config.function, None)
    if not callable(function):
        raise ValueError(f"reward.own: {path} has no function {config.function!r}.")
    return cast(RewardFunction, function)


@cache
def _run_file(path: Path) -> ModuleType:
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    spec = importlib.util.spec_from_file_location(f"t2mv_own_reward_{path.stem}_{digest}", path)
    assert spec is not None  # a .py file always has a spec
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look their module up by its name
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's code may raise anything
        del sys.modules[spec.name]
        raise ValueError(f"reward.own: {path} cannot be run: {type(error).__name__}: {error}") from error
    return module


class OwnReward:
    """A function of the user's behind the contract of every reward; checks what it gets and returns."""

    def __init__(self, name: str, config: OwnRewardConfig) -> None:
        """Load the function; see `load_own_reward` for what raises."""
        self.name, self.function = name, load_own_reward(config)
        self.kind: RewardKind = config.kind
        self.model = nn.Module()  # the function keeps its weights, if any, to itself

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """Move nothing: the function gets the pictures where they are."""
        return self

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> RewardResult:
        """Score pictures [n, 3, H, W].

        Raises:
            ValueError: pictures or prompts are not what such a reward takes, or the function raises, or does
                not return one number per picture ("view") or per set ("joint").
        """
        check_request(images, prompts, self.kind)
        try:
            with torch.no_grad():
                # A copy: a function that changes it in place must not change what others score and store.
                returned = self.function(images.clone(), list(prompts))
        except Exception as error:  # the user's code may raise anything
            raise ValueError(f"The reward {self.name} failed: {type(error).__name__}: {error}") from error
        try:
            scores = torch.as_tensor(returned, dtype=torch.float32, device=images.device).detach()
        except (TypeError, ValueError, RuntimeError) as error:
            kind = type(returned).__name__
            raise ValueError(
                f"The reward {self.name} returned {kind}, not a list of numbers or a tensor."
            ) from error
        if scores.shape != (len(prompts),):
            raise ValueError(
                f"The reward {self.name} returned numbers of shape {list(scores.shape)} for {len(prompts)} "
                f"{'pictures' if self.kind == 'view' else 'sets of views'}; it must return [{len(prompts)}]."
            )
        return RewardResult(scores)
