"""Sets of views that compete: sampled, scored, and drawn in their order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F

from ..common.checks import check_text
from ..common.progress import SamplingProgress
from ..scoring.report import ScoredSet
from ..scoring.score import score_set
from ..scoring.score_sheet import score_sheet, set_title, view_labels
from ..sockets import RewardHandle
from .inputs import read_settings
from .set_sampler import SetSampler, decode_set

if TYPE_CHECKING:
    from torch import Tensor

    from ...t2mv_core.cameras import CameraRig
    from ..sockets import ModelHandle

ZIGZAG_INPUTS = ("zigzag_steps", "zigzag_repeats", "inverse_guidance", "inverse_view_scale")
THUMBNAIL_PX = 96


@dataclass(frozen=True)
class Candidate:
    """One set of views that competes.

    Attributes:
        seed: of its noise; a sampler node gives the same views with it.
        latents: scaled, [V, C, h, w]; pictures are decoded from them again if the set is kept.
        thumbnails: small pictures, [V, 3, h, w] in [0, 1].
        scored: what the rewards said.
    """

    seed: int
    latents: Tensor
    thumbnails: Tensor
    scored: ScoredSet


def sample_candidates(
    model: ModelHandle,
    rewards: tuple[RewardHandle, ...],
    plan: list[tuple[str, int]],
    sampler: str,
    rig: CameraRig | None = None,
    negative_prompt: str = "",
    **numbers: float,
) -> list[Candidate]:
    """Sample and score a set per (prompt, seed) of the plan.

    All are sampled first and scored then, so that UNet and rewards need not be in memory together; of each
    only the latent and small pictures are kept.
    """
    from ...t2mv_core.images import from_comfy
    from ...t2mv_core.samplers import count_evaluations

    check_text("negative_prompt", negative_prompt)
    settings = read_settings(numbers_read(sampler, numbers))
    total = len(plan) * (count_evaluations(sampler, settings) + len(rewards))
    progress = SamplingProgress(model, total)
    sample_set = SetSampler(
        model, sampler, settings, progress, [line for line, _ in plan], rig, negative_prompt
    )
    latents = [sample_set(line, seed) for line, seed in plan]
    competing = []
    for (line, seed), views in zip(plan, latents, strict=True):
        pictures = from_comfy(decode_set(model, views))
        scored = score_set(rewards, pictures, line, progress.advance)
        competing.append(Candidate(seed, views, _thumbnails(pictures), scored))
    return competing


def _thumbnails(pictures: Tensor) -> Tensor:
    """Pictures [V, 3, H, W] at most 96 px high."""
    height, width = pictures.shape[-2:]
    if height <= THUMBNAIL_PX:
        return pictures
    size = (THUMBNAIL_PX, max(1, round(width * THUMBNAIL_PX / height)))
    return F.interpolate(pictures, size, mode="area")


def ranking_sheet(ranked: list[list[tuple[Candidate, float]]], keep: int) -> Tensor:
    """Draw the candidates of every prompt, the best first, with rank, seed and scores; [1, H, W, 3]."""
    views, titles, labels = [], [], []
    for line in ranked:
        for rank, (candidate, score) in enumerate(line, start=1):
            place = f"#{rank} kept" if rank <= keep else f"#{rank}"
            titles.append(
                f"{place}   seed {candidate.seed}   score {score:.3f}   {set_title(candidate.scored)}"
            )
            views.append(candidate.thumbnails)
            labels.append(view_labels(candidate.scored))
    return score_sheet(views, titles, labels)


def numbers_read(sampler: str | None, numbers: dict[str, Any]) -> dict[str, Any]:
    """The numbers that the sampler reads: the standard one has no zigzags."""
    unread = ZIGZAG_INPUTS if sampler == "standard" else ()
    return {name: number for name, number in numbers.items() if name not in unread}
