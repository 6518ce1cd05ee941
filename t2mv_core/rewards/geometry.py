"""Geometry reward: do the views show one solid? No weights; it works for the views of any model.

    R = C · A

C is how far the silhouettes agree with their visual hull, A how far views agree on the colours of its
surface; both, and what they miss, are in `t2mv_core.objects.consistency`. The prompt is not looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..cameras import DEFAULT_RIG, CameraRig
from .base import Reward, RewardKind, RewardResult, check_request
from .composite import PartOfReward
from .hyperscore import HyperScoreReward
from .registry import GEOMETRY

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Self


class GeometryReward:
    """Score sets of views by the solid that they have in common; parts "silhouettes" and "colours"."""

    name = GEOMETRY
    kind: RewardKind = "joint"

    def __init__(self, rig: CameraRig = DEFAULT_RIG) -> None:
        """Score views of this rig's cameras; ValueError unless two of them see a surface in common."""
        from ..objects.consistency import check_overlap

        if rig.num_views < 2:
            raise ValueError(
                f"The reward {GEOMETRY} compares views, and the rig has {rig.num_views}; use a rig of "
                "several views, or another reward."
            )
        check_overlap(rig)
        self.rig = rig
        self.model = nn.Module()  # nothing is learned

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """Move nothing: views are scored where they are."""
        return self

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> RewardResult:
        """Score B sets of pictures [B·V, 3, H, H] with plain backgrounds.

        Raises:
            ValueError: the pictures are not what a joint reward takes, or not one per camera of the rig.
        """
        from ..objects.consistency import score_consistency

        num_views = check_request(images, prompts, self.kind)
        if num_views != self.rig.num_views:
            azimuths = ", ".join(f"{azimuth:g}" for azimuth in self.rig.azimuths_deg)
            raise ValueError(
                f"The reward {GEOMETRY} got {num_views} views for the {self.rig.num_views} cameras at "
                f"azimuths {azimuths}; give it the rig that the views were made with."
            )
        with torch.no_grad():
            parts = asdict(score_consistency(images.float().unflatten(0, (len(prompts), -1)), self.rig))
        scores = {name: part.to(images.device) for name, part in parts.items()}
        return RewardResult(scores.pop(self.name), scores)


def load_geometry(_: Path | None = None) -> GeometryReward:
    """Return the reward for the default rig."""
    return GeometryReward()


def with_cameras(reward: Reward, rig: CameraRig) -> Reward:
    """Return the reward for views of a rig; one that does not look at cameras is returned as it is.

    Raises:
        ValueError: the reward cannot score views of these cameras.
    """
    scorer = reward.reward if isinstance(reward, PartOfReward) else reward
    if isinstance(scorer, HyperScoreReward):
        scorer.check_views(rig.num_views)
    if not isinstance(scorer, GeometryReward):
        return reward
    scorer = GeometryReward(rig)
    return PartOfReward(scorer, reward.part) if isinstance(reward, PartOfReward) else scorer
