"""Nodes that score: what rewards say of sets of views."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import comfy.utils
from comfy_api.latest import io, ui

from .checks import first_problem, read_prompts
from .memory import check_cancelled
from .report import ScoredSet, to_json, to_text
from .sockets import RewardHandle, Rewards, make_schema

if TYPE_CHECKING:
    from torch import Tensor


class T2MVScoreViews(io.ComfyNode):
    """Views, prompts and rewards to scores."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return make_schema(
            node_id="T2MVScoreViews",
            display_name="Score Views (T2MV)",
            category="T2MV/scoring",
            description="Scores every view, and every set of views as a whole. Higher is better; only scores "
            "of one reward and one prompt can be compared.",
            search_aliases=["reward", "evaluate", "clip score", "hyperscore", "rank", "quality"],
            is_output_node=True,
            inputs=[
                Rewards.Input("rewards", tooltip="From Load Reward."),
                io.Image.Input("images", tooltip="Views as a sampler gives them: one set after the other."),
                io.String.Input(
                    "prompts",  # not "prompt": ComfyUI gives every output node a hidden input of that name
                    multiline=True,
                    default="a red mug",
                    tooltip="What the views should show: the prompt they were made with, one line per set.",
                ),
            ],
            outputs=[
                io.Float.Output(
                    "view_score",
                    display_name="view score",
                    tooltip="Mean over all views of the first per-view reward; nan when none is loaded.",
                ),
                io.Float.Output(
                    "joint_score",
                    display_name="joint score",
                    tooltip="Mean over the sets of the first joint reward; nan when none is loaded.",
                ),
                io.Float.Output(
                    "view_scores",
                    display_name="view scores",
                    is_output_list=True,
                    tooltip="The first per-view reward, view by view, as a list.",
                ),
                io.String.Output(
                    "json", display_name="json", tooltip="All scores, with the parts of joint scores."
                ),
                io.String.Output("report", display_name="report", tooltip="All scores, to read."),
            ],
        )

    @classmethod
    def validate_inputs(cls, prompts: str | None = None) -> bool | str:
        """Refuse unusable prompts before the run."""
        return first_problem(lambda: read_prompts(prompts))

    @classmethod
    def execute(cls, rewards: tuple[RewardHandle, ...], images: Tensor, prompts: str) -> io.NodeOutput:
        """Score set by set."""
        sets = score_sets(rewards, images, read_prompts(prompts))
        views = [score for scored in sets for score in _first(scored.view_scores, [])]
        joints = [_first(scored.joint_scores, math.nan) for scored in sets]
        report = to_text(sets)
        return io.NodeOutput(
            sum(views) / len(views) if views else math.nan,
            sum(joints) / len(joints),
            views,
            to_json(sets),
            report,
            ui=ui.PreviewText(report),
        )


def score_sets(rewards: tuple[RewardHandle, ...], images: Tensor, prompts: list[str]) -> list[ScoredSet]:
    """Score pictures [B·V, H, W, 3] prompt by prompt; can be cancelled between any two calls of a reward.

    Raises:
        ValueError: the pictures do not divide into one set per prompt, or are not what the rewards take.
    """
    from ..t2mv_core.images import from_comfy

    pictures = from_comfy(images)
    if len(pictures) % len(prompts):
        raise ValueError(
            f"{len(pictures)} pictures do not divide into {len(prompts)} sets, one per line of the prompt; "
            "use the same prompt text as the sampler."
        )
    num_views = len(pictures) // len(prompts)
    bar = comfy.utils.ProgressBar(len(prompts) * len(rewards))
    sets = []
    for index, prompt in enumerate(prompts):
        scored = ScoredSet(prompt, {}, {}, {})
        for handle in rewards:
            check_cancelled()
            _score_one(handle, pictures[index * num_views : (index + 1) * num_views], scored)
            bar.update(1)
        sets.append(scored)
    return sets


def _score_one(handle: RewardHandle, pictures: Tensor, scored: ScoredSet) -> None:
    """Write one reward's scores of one set into `scored`."""
    reward = handle.reward
    device = handle.residency.load()
    is_view = reward.kind == "view"
    result = reward(pictures.to(device), [scored.prompt] * (len(pictures) if is_view else 1))
    if is_view:
        scored.view_scores[reward.name] = result.scores.tolist()
    else:
        scored.joint_scores[reward.name] = float(result.scores)
        scored.details[reward.name] = {name: float(part) for name, part in result.details.items()}


def _first(scores: Any, default: Any) -> Any:
    return next(iter(scores.values()), default)
