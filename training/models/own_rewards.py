"""A Python function of the user's as a reward: named in a training configuration, never in a workflow."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from t2mv_core.rewards.base import RewardKind, RewardResult, check_request

from ..config import OwnRewardConfig

if TYPE_CHECKING:
    from typing_extensions import Self

RewardFunction = Callable[[Tensor, list[str]], Any]
"""(images [n, 3, H, W] in [0, 1], prompts) -> scores: a tensor or a list of numbers, higher is better."""


def load_own_reward(config: OwnRewardConfig) -> RewardFunction:
    """Take the function out of the file, which is run once per process.

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
    except Exception as error:  # whatever the user's file raises is the user's to see
        del sys.modules[spec.name]
        raise ValueError(f"reward.own: {path} cannot be run: {type(error).__name__}: {error}") from error
    return module


class OwnReward:
    """The function behind the contract of every reward: what it is given and what it returns is checked."""

    def __init__(self, name: str, config: OwnRewardConfig) -> None:
        """Load the function; see `load_own_reward` for what raises."""
        self.name, self.function = name, load_own_reward(config)
        self.kind: RewardKind = config.kind
        self.model = nn.Module()  # weights that the function may have are its own affair

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """Nothing to move: the function gets the pictures where they are."""
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
        except Exception as error:  # whatever the user's function raises, it is this reward that failed
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
