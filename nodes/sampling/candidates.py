"""Sets of views that compete: sampled, scored, ordered and drawn. Needs no ComfyUI to order them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..scoring.report import ScoredSet, listed, score_sheet, set_title, view_labels

if TYPE_CHECKING:
    from torch import Tensor

    from ...t2mv_core.cameras import CameraRig
    from ..sockets import ModelHandle, RewardHandle

THUMBNAIL_PX = 96


@dataclass(frozen=True)
class Candidate:
    """One set of views that competes.

    Attributes:
        seed: of its noise; a sampler node gives the same views with it.
        latents: scaled, [V, C, h, w]; pictures are decoded from them again if the set is kept.
        thumbnails: small pictures, [V, 3, h, w] in [0, 1].
        scored: what the rewards said.
        settings: what the set was sampled with, in a line.
    """

    seed: int
    latents: Tensor
    thumbnails: Tensor
    scored: ScoredSet
    settings: str = ""


Ranking = list[tuple[Candidate, float]]
"""The sets of one prompt and what they are ranked by, the best first."""


def sample_candidates(
    model: ModelHandle,
    rewards: tuple[RewardHandle, ...],
    prompts: Sequence[str],
    plan: list[tuple[int, int]],
    sampler: str,
    rig: CameraRig | None = None,
    negative_prompt: str = "",
    reference: Tensor | None = None,
    **numbers: float,
) -> list[Candidate]:
    """Sample and score a set per (number of the prompt, seed) of the plan.

    All are sampled first and scored then, so that UNet and rewards need not be in memory together; of each
    only the latent and small pictures are kept.
    """
    from ...t2mv_core.images import from_comfy
    from ...t2mv_core.samplers import count_evaluations
    from ..common.progress import SamplingProgress
    from ..scoring.score import reference_of, score_set
    from .inputs import describe_set, numbers_read, read_settings
    from .sample import SetSampler, decode_set

    numbers = numbers_read(sampler, numbers, reference is not None)
    settings = read_settings(numbers, model)
    total = len(plan) * (count_evaluations(sampler, settings) + len(rewards))
    progress = SamplingProgress(model, total)
    sample_set = SetSampler(model, sampler, settings, progress, prompts, rig, negative_prompt, reference)
    latents = [sample_set(line, seed) for line, seed in plan]
    del sample_set  # its features lie in the card's memory
    competing = []
    for (line, seed), views in zip(plan, latents, strict=True):
        pictures = from_comfy(decode_set(model, views))
        picture = reference_of(reference, line)
        scored = score_set(rewards, pictures, prompts[line], progress.advance, rig, picture)
        used = describe_set(seed, settings, numbers)
        competing.append(Candidate(seed, views, _thumbnails(pictures), scored, used))
    return competing


def _thumbnails(pictures: Tensor) -> Tensor:
    """Return pictures [V, 3, H, W] at most 96 px high."""
    from torch.nn.functional import interpolate

    height, width = pictures.shape[-2:]
    if height <= THUMBNAIL_PX:
        return pictures
    size = (THUMBNAIL_PX, max(1, round(width * THUMBNAIL_PX / height)))
    return interpolate(pictures, size, mode="area")


def rank(candidates: Sequence[Candidate], rank_by: str) -> Ranking:
    """Order the sets of one prompt, the best first; of equal ones the earlier first.

    Args:
        candidates: scored by the same rewards against the same prompt, so that their scores can be compared.
        rank_by: a name of RANK_BY.
    """
    scores = RANK_BY[rank_by]([candidate.scored for candidate in candidates])
    return sorted(zip(candidates, scores, strict=True), key=lambda ranked: -ranked[1])


def check_ranking(rank_by: str, kinds: Sequence[str]) -> None:
    """Refuse to rank by a reward that is not loaded, before anything is sampled.

    Args:
        rank_by: a name of RANK_BY.
        kinds: "view" or "joint" of every loaded reward.

    Raises:
        ValueError: with the reward that is missing.
    """
    if not kinds:
        raise ValueError("No reward is loaded; connect Load Reward to 'rewards'.")
    needed = rank_by.split()[0]
    if needed in ("joint", "view") and needed not in kinds:
        cure = "toybox_hyperscore" if needed == "joint" else "toybox_clip"
        raise ValueError(
            f"rank_by={rank_by!r} needs a {needed} reward, and none is connected; add one such as {cure} "
            "with Load Reward, or rank by something else."
        )


def ranking_text(ranking: Ranking, rank_by: str, keep: int) -> str:
    """Write a ranking down, of which the first `keep` sets are kept."""
    from ...t2mv_core.rewards.base import hardly_differ

    prompt = ranking[0][0].scored.prompt
    lines = [f"“{prompt}”: {len(ranking)} sets by {rank_by}, {keep} kept"]
    for place, (candidate, score) in enumerate(ranking, start=1):
        kept, means = "kept" if place <= keep else "    ", listed(candidate.scored.means())
        lines.append(f"#{place:<3} {kept}  seed {candidate.seed}  score {score:.3f}   [{means}]")
    for name, scores in _columns([candidate.scored for candidate, _ in ranking]).items():
        if len(scores) > 1 and hardly_differ(scores):
            lines.append(f"{name} hardly differs between these sets: their order by it says nothing.")
    return "\n".join(lines)


def ranking_sheet(rankings: Sequence[Ranking], keep: int) -> Tensor:
    """Draw the candidates of every prompt, the best first, with rank, seed and scores; [1, H, W, 3]."""
    views, titles, labels = [], [], []
    for ranking in rankings:
        for place, (candidate, score) in enumerate(ranking, start=1):
            kept, title = " kept" if place <= keep else "", set_title(candidate.scored)
            titles.append(f"#{place}{kept}   seed {candidate.seed}   score {score:.3f}   {title}")
            views.append(candidate.thumbnails)
            labels.append(view_labels(candidate.scored))
    return score_sheet(views, titles, labels)


def _columns(sets: Sequence[ScoredSet]) -> dict[str, list[float]]:
    """Return reward name -> its score of every set, views averaged."""
    means = [scored.means() for scored in sets]
    return {name: [each[name] for each in means] for name in means[0]}


def _normalised_sum(sets: Sequence[ScoredSet]) -> list[float]:
    """Sum every reward, views averaged, in standard deviations from its mean over the sets."""
    columns = map(_normalised, _columns(sets).values())
    return [sum(scores) for scores in zip(*columns, strict=True)]


def _normalised(scores: Sequence[float]) -> list[float]:
    """Return scores in standard deviations from their mean; zeros where only rounding would be blown up."""
    from ...t2mv_core.rewards.base import hardly_differ

    mean, spread = statistics.fmean(scores), statistics.pstdev(scores)
    return [0.0 if hardly_differ(scores) else (score - mean) / spread for score in scores]


def _first(scores: dict[str, Any]) -> Any:
    return next(iter(scores.values()))


# As shown on the node -> ranking scores of the sets of one prompt. With several rewards of a kind the first
# one loaded counts, as in Score Views; the sum takes all.
RANK_BY: dict[str, Callable[[Sequence[ScoredSet]], list[float]]] = {
    "sum of normalised rewards": _normalised_sum,
    "joint reward": lambda sets: [_first(scored.joint_scores) for scored in sets],
    "view reward (mean)": lambda sets: [statistics.fmean(_first(scored.view_scores)) for scored in sets],
    "view reward (worst view)": lambda sets: [min(_first(scored.view_scores)) for scored in sets],
}
