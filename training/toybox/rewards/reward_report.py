"""How well the rewards agree with damage that is known: figures on scenes that training never saw."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from t2mv_core.rewards.base import Reward
from t2mv_core.rewards.clip_score import ClipScore
from t2mv_core.rewards.hyperscore_network import HEADS

from ..data.captions import phrase
from ..data.dataset import Dataset
from ..data.scenes import COLOURS, FAMILIES
from ..stages.stage import update_rng
from .lies import CAPTION_DAMAGES, describe, falsify, possible_lies
from .reward_data import ATTACKS, TEXTURE_DAMAGES, VIEW_DAMAGES, DamagedSet, SetMaker

# Two sets whose targets are closer than this are not asked to be ordered.
MIN_TARGET_GAP = 0.1
# Sets whose pictures change by less than this share of a whole change count as undamaged: a table, repeated.
MIN_VISIBLE = 0.02
Figures = dict[str, float]


def spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Spearman's rank correlation; ties share the mean of their ranks."""
    ranks = [_ranks(values) - (len(values) - 1) / 2 for values in (a, b)]
    norm = float(np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum()))
    return float((ranks[0] * ranks[1]).sum() / norm) if norm > 0 else 0.0


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    first = np.cumsum(counts) - counts
    return (first + (counts - 1) / 2)[inverse]


def pairwise_accuracy(scores: NDArray[np.float64], targets: NDArray[np.float64]) -> float:
    """Share of pairs within a row that are ordered as their targets; rows are scenes, [S, K]."""
    i, j = np.triu_indices(scores.shape[1], k=1)
    gap, answer = targets[:, i] - targets[:, j], scores[:, i] - scores[:, j]
    asked = np.abs(gap) > MIN_TARGET_GAP
    return float((np.sign(gap) == np.sign(answer))[asked].mean()) if asked.any() else float("nan")


def clip_figures(reward: ClipScore, dataset: Dataset, num_scenes: int) -> Figures:
    """Share of (view, true, false caption) triples in which the true one scores higher, per kind of lie.

    Only descriptions that say a part's or a companion's colour are asked about it.
    Also how often the best of all plain sentences ("a red mug", ...) names a view's family and its colour.
    """
    right: dict[str, list[float]] = defaultdict(list)
    sentences = reward.encode_prompts([phrase(family, colour) for family in FAMILIES for colour in COLOURS])
    for index, scene in enumerate(dataset.scenes[:num_scenes]):
        rng = update_rng(1, index)
        views = reward.encode_images(_to_pixels(dataset.images[index]))
        true = describe(scene, rng)
        for kind in CAPTION_DAMAGES:
            if kind not in possible_lies(true):
                continue
            lie = falsify(true, kind, rng)
            good, bad = (views @ reward.encode_prompts([true.prompt, lie.prompt]).T).unbind(dim=1)
            right[f"pairwise_{kind}"].append(float((good > bad).float().mean()))
        best = (views @ sentences.T).argmax(dim=1).tolist()
        right["family"].append(
            float(np.mean([list(FAMILIES)[k // len(COLOURS)] == scene.family for k in best]))
        )
        right["colour"].append(
            float(np.mean([list(COLOURS)[k % len(COLOURS)] == scene.colour for k in best]))
        )
    figures = {name: float(np.mean(values)) for name, values in right.items()}
    lies = [value for kind in CAPTION_DAMAGES for value in right[f"pairwise_{kind}"]]
    return figures | {
        "pairwise_all": float(np.mean(lies)),
        "num_scenes": float(min(num_scenes, len(dataset.scenes))),
    }


def hyperscore_figures(reward: Reward, dataset: Dataset, num_scenes: int, sets_per_scene: int = 6) -> Figures:
    """Rank correlation and within-scene pairwise accuracy of every head with its target.

    `drop_<head>_<damage>`: how far that damage alone lowers the head; `seen_...`: how often "overall" falls.
    `alike`, `proportion`, `attack_...`: `seen_...` in those of the scenes where the pictures visibly change
    (MIN_VISIBLE); `num_...` says how many.

    Args:
        reward: a HyperScore.
        dataset: scenes; those after the first `num_scenes` only lend views to damaged sets.
        num_scenes: how many to ask about.
        sets_per_scene: of randomly damaged ones.
    """
    maker, rows = SetMaker(dataset), range(min(num_scenes, len(dataset.scenes)))
    sets = [[maker.make(row, update_rng(2 + k, row)) for k in range(sets_per_scene)] for row in rows]
    scores = np.stack([_score(reward, row) for row in sets])  # [S, K, heads]
    targets = np.array([[made.targets for made in row] for row in sets])
    figures: Figures = {"num_scenes": float(len(rows)), "sets_per_scene": float(sets_per_scene)}
    for head, name in enumerate(HEADS):
        figures[f"spearman_{name}"] = spearman(scores[..., head].ravel(), targets[..., head].ravel())
        figures[f"pairwise_{name}"] = pairwise_accuracy(scores[..., head], targets[..., head])
    return figures | _drops(reward, maker, rows)


def _drops(reward: Reward, maker: SetMaker, rows: range) -> Figures:
    """Mean fall of the matching head and of the overall score by one damage alone."""
    figures: Figures = {}
    groups = ((0, CAPTION_DAMAGES), (1, VIEW_DAMAGES), (2, TEXTURE_DAMAGES))
    clean = np.concatenate(
        [_score(reward, [maker.make(row, update_rng(9, row), (None, None, None))]) for row in rows]
    )
    figures["overall_undamaged"] = float(clean[:, 3].mean())
    for head, kinds in groups:
        for kind in kinds:
            chosen = tuple(kind if place == head else None for place in range(3))
            sets = [maker.make(row, update_rng(9, row), (chosen[0], chosen[1], chosen[2])) for row in rows]
            scores = _score(reward, sets)
            figures[f"drop_{HEADS[head]}_{kind}"] = float((clean - scores)[:, head].mean())
            figures[f"target_drop_{HEADS[head]}_{kind}"] = 1 - float(np.mean([m.targets[head] for m in sets]))
            is_seen = (clean > scores)[:, 3]
            figures[f"seen_{HEADS[head]}_{kind}"] = float(is_seen.mean())
            if kind in ("alike", "proportion", *ATTACKS):
                is_asked = np.array([float(m.view_changes.mean()) >= MIN_VISIBLE for m in sets])
                figures[f"num_{kind}"] = float(is_asked.sum())
                if is_asked.any():
                    figures[kind] = float(is_seen[is_asked].mean())
    return figures


def _score(reward: Reward, sets: list[DamagedSet]) -> NDArray[np.float64]:
    views = torch.cat([made.views for made in sets])
    details = reward(views, [made.prompt for made in sets]).details
    return np.stack([details[head].cpu().double().numpy() for head in HEADS], axis=-1)


def _to_pixels(images: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
