"""The reward section of a training configuration."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from .sections import require, require_choice


@dataclass(frozen=True)
class OwnRewardConfig:
    """A reward that is a Python function of the user's; the file is run, so it must be one to trust."""

    file: str = ""
    """Path of the Python file, from where the trainer is started."""
    function: str = "reward"
    """Name of the function: (images [n, 3, H, W] in [0, 1], prompts) -> scores."""
    kind: str = "view"
    """"view": one prompt and one score per picture; "joint": one prompt and one score per set of views."""

    def __post_init__(self) -> None:
        """Check names."""
        require(self.file.endswith(".py"), f"reward.own: file={self.file!r} must be a Python file (.py).")
        require(
            self.function.isidentifier(),
            f"reward.own: function={self.function!r} is not the name of a Python function.",
        )
        require_choice("reward.own: kind", self.kind, ("view", "joint"))


@dataclass(frozen=True)
class RewardConfig:
    """The reward models."""

    view: dict[str, float] = field(default_factory=lambda: {"toybox_clip": 1.0})
    """Scorers of single views (fidelity): names of t2mv_core.rewards.registry with weights, or one name."""
    joint: dict[str, float] = field(default_factory=lambda: {"toybox_hyperscore": 1.0})
    """Scorers of a set of views (consistency), likewise; none: no joint reward, so no constraint."""
    own: dict[str, OwnRewardConfig] = field(default_factory=dict)
    """Python functions as rewards, by the name under which view and joint use them."""
    normalization: str = "iteration"
    """What a trajectory's reward is compared with: all of the "iteration" (the paper) or its "prompt"'s."""
    device: str = "auto"
    """Where the reward models run: "auto" is the model's device; "cpu" or "cuda:1" leaves it to the UNet."""
    dtype: str = "auto"
    """Precision of the reward models: fp32, bf16 or fp16; "auto": the big ones fp16 on a GPU, else fp32."""
    folder: str | None = None
    """Folder with the published rewards' weights; none: models/t2mv_rewards (docs/rewards.md)."""
    paths: dict[str, str] = field(default_factory=dict)
    """Weights of single rewards that lie elsewhere: reward name -> file or folder."""
    allow_download: bool = False
    """Whether weights that are on the Hugging Face Hub may be downloaded."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        require(len(self.view) > 0, "reward.view names no reward; give at least one, such as toybox_clip.")
        require_choice("reward.normalization", self.normalization, ("iteration", "prompt"))
        require_choice("reward.dtype", self.dtype, ("auto", "fp32", "bf16", "fp16"))
        for role in ("view", "joint"):
            for name, weight in getattr(self, role).items():
                require(
                    math.isfinite(weight) and weight > 0,
                    f"reward.{role}.{name}={weight} must be a weight greater than zero.",
                )
        for name in self.own:
            require(
                re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", name) is not None,
                f"reward.own.{name} must be named by letters, digits, - and _ alone.",
            )
