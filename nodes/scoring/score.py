"""Nodes that score: what rewards say of sets of views."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io, ui

from ..common.checks import Field, first_problem, read_prompts
from ..common.memory import check_cancelled
from ..common.progress import ProgressBar, show_text
from ..sampling.reference import check_compared
from ..sockets import RewardHandle, Rewards, Rig, make_schema, output
from .report import ScoredSet, score_sheet, set_title, to_json, to_line, to_text, view_labels

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ...t2mv_core.cameras import CameraRig


# Not "prompt": ComfyUI gives every output node a hidden input of that name.
PROMPTS = Field(
    "prompts", "a red mug", "What the views should show: the prompt they were made with, one line per set.",
    more={"multiline": True},
)  # fmt: skip


class T2MVScoreViews(io.ComfyNode):
    """Views, prompts and rewards to scores."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="T2MVScoreViews",
            display_name="Score Views (T2MV)",
            category="T2MV/scoring",
            description="Scores every view, and every set of views as a whole. Higher is better; only scores "
            "of one reward and one prompt can be compared.",
            shows_result=True,
            search_aliases=["reward", "evaluate", "clip score", "hyperscore", "rank", "quality"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                Rewards.Input("rewards", tooltip="From Load Reward."),
                io.Image.Input("images", tooltip="Views as a sampler gives them: one set after the other."),
                PROMPTS.widget(),
                Rig.Input(
                    "rig",
                    optional=True,
                    tooltip="The cameras the views were made with: another number of views per prompt line "
                    "is refused. Without a rig: as many as there are.",
                ),
                io.Image.Input(
                    "reference",
                    optional=True,
                    tooltip="The picture that the views were drawn from, one or one per prompt line: for "
                    "rewards that compare with it, such as toybox_picture.",
                ),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def validate_inputs(cls, prompts: str | None = None) -> bool | str:
        """Refuse unusable prompts before the run."""
        return first_problem(lambda: read_prompts(prompts))

    @classmethod
    def execute(
        cls,
        rewards: tuple[RewardHandle, ...],
        images: Tensor,
        prompts: str,
        rig: CameraRig | None = None,
        reference: Tensor | None = None,
    ) -> io.NodeOutput:
        """Score set by set."""
        lines = read_prompts(prompts)
        check_compared(rewards, reference, len(lines))
        pictures = split_by_prompt(images, len(lines), rig)
        notes = scoring_notes(rewards, lines, pictures.shape[1], rig)
        bar, sets = ProgressBar(len(lines) * len(rewards)), []
        for number, (views, line) in enumerate(zip(pictures, lines, strict=True)):
            picture = reference_of(reference, number)
            sets.append(score_set(rewards, views, line, lambda: bar.update(1), rig, picture))
        view_scores = [score for scored in sets for score in _first(scored.view_scores, [])]
        joint_scores = [_first(scored.joint_scores, math.nan) for scored in sets]
        report = "\n\n".join([to_text(sets), *notes])
        show_text(cls, "\n".join([to_line(sets), *notes]))
        sheet = score_sheet(list(pictures), list(map(set_title, sets)), list(map(view_labels, sets)))
        return io.NodeOutput(
            sum(view_scores) / len(view_scores) if view_scores else math.nan,
            sum(joint_scores) / len(joint_scores),
            view_scores or [math.nan],  # an empty list would leave the next node without an input
            to_json(sets),
            report,
            sheet,
            ui={**ui.PreviewImage(sheet, cls=cls).as_dict(), **ui.PreviewText(report).as_dict()},
        )


def _outputs() -> list[io.Output]:
    return [
        output(io.Float, "view_score", "Mean of the first per-view reward; nan without one.", "view score"),
        output(io.Float, "joint_score", "Mean of the first joint reward; nan without one.", "joint score"),
        output(
            io.Float, "view_scores", "The first per-view reward, view by view, as a list; nan without one.",
            "view scores",
            is_output_list=True,
        ),
        output(io.String, "json", "All scores, with the parts of joint scores."),
        output(io.String, "report", "All scores, to read."),
        output(io.Image, "sheet", "The views with their scores; joint scores stand above each set."),
    ]  # fmt: skip


def split_by_prompt(images: Tensor, num_prompts: int, rig: CameraRig | None = None) -> Tensor:
    """Divide ComfyUI's pictures [B·V, H, W, 3 or 4] into one set per prompt, [B, V, 3, H, W].

    Raises:
        ValueError: the pictures do not divide into one set per prompt, or a set is not the rig's.
    """
    pictures = _in_range(images)
    if len(pictures) % num_prompts:
        raise ValueError(
            f"{len(pictures)} pictures do not divide into {num_prompts} sets, one per line of the prompt; "
            "use the same prompt text as the sampler."
        )
    if rig is not None and len(pictures) != num_prompts * rig.num_views:
        raise ValueError(
            f"{len(pictures)} pictures are not one set of the rig's {rig.num_views} views for each of "
            f"{num_prompts} prompt lines; use the prompt text and the rig of the sampler."
        )
    return pictures.unflatten(0, (num_prompts, -1))


def reference_of(reference: Tensor | None, line: int) -> Tensor | None:
    """Return the picture of a prompt line, [1, 3, H, W], from ComfyUI's [1 or lines, H, W, 3]."""
    if reference is None:
        return None
    number = line if len(reference) > 1 else 0
    return _in_range(reference[number : number + 1])


def _in_range(images: Tensor) -> Tensor:
    """Return ComfyUI's pictures as [n, 3, H, W], cut to [0, 1]: bicubic upscaling leaves that range.

    NaN and infinity stay, so that the rewards refuse them.
    """
    from ...t2mv_core.images import from_comfy

    pictures = from_comfy(images)
    return pictures.clamp(0, 1) if bool(pictures.isfinite().all()) else pictures


def scoring_notes(
    rewards: tuple[RewardHandle, ...], prompts: list[str], num_views: int, rig: CameraRig | None
) -> list[str]:
    """Say where scores may not be of what the prompts say: syntax, unread words, chance in the counts."""
    from ...t2mv_core.cameras import DEFAULT_RIG
    from ...t2mv_core.prompts import describe_syntax
    from ...t2mv_core.rewards.inputs import describe_unread

    notes, default = describe_syntax(prompts), DEFAULT_RIG.num_views
    notes += describe_unread((handle.reward for handle in rewards), prompts)
    if rig is None and num_views != default and len(prompts) * num_views % default == 0:
        notes.append(
            f"{len(prompts) * num_views} pictures for {len(prompts)} prompt lines are scored as sets of "
            f"{num_views} views, but could be sets of {default}; connect the sampler's rig to be sure."
        )
    return notes


def score_set(
    rewards: tuple[RewardHandle, ...],
    pictures: Tensor,
    prompt: str,
    on_reward: Callable[[], None],
    rig: CameraRig | None = None,
    reference: Tensor | None = None,
) -> ScoredSet:
    """Score one set of pictures [V, 3, H, W]; can be cancelled between any two calls of a reward.

    Args:
        rewards: each is brought to the compute device for its call.
        pictures: in [0, 1].
        prompt: what they should show.
        on_reward: called after every reward.
        rig: the pictures' cameras; None stands for the default ones.
        reference: what the set was drawn from, [1, 3, H, W], for rewards that compare with it.

    Raises:
        ValueError: the pictures are not what a reward takes, or a score is not finite.
    """
    scored = ScoredSet(prompt)
    for handle in rewards:
        check_cancelled()
        _score_one(handle, pictures, scored, rig, reference)
        on_reward()
    return scored


def check_cameras(rewards: tuple[RewardHandle, ...], rig: CameraRig | None) -> None:
    """Raise ValueError unless every reward can score views of a rig's cameras; None is the default rig."""
    from ...t2mv_core.cameras import DEFAULT_RIG
    from ...t2mv_core.rewards.geometry import with_cameras

    for handle in rewards:
        with_cameras(handle.reward, rig or DEFAULT_RIG)


def _score_one(
    handle: RewardHandle,
    pictures: Tensor,
    scored: ScoredSet,
    rig: CameraRig | None,
    reference: Tensor | None,
) -> None:
    """Write one reward's scores of one set into `scored`."""
    from ...t2mv_core.rewards.geometry import with_cameras

    reward = handle.reward if rig is None else with_cameras(handle.reward, rig)
    is_view = reward.kind == "view"
    prompts = [scored.prompt] * (len(pictures) if is_view else 1)
    takes_pictures = reference is not None and getattr(reward, "takes_pictures", False)

    def ask(device: torch.device) -> Any:
        views = pictures.to(device)
        return reward(views, prompts, reference.to(device)) if takes_pictures else reward(views, prompts)

    result = handle.residency.run(ask)
    for name, scores in {reward.name: result.scores, **result.details}.items():
        if not bool(torch.isfinite(scores).all()):
            raise ValueError(
                f"{reward.name} gave {scores.flatten().tolist()} ({name}) for “{scored.prompt[:60]}”, which "
                "is no score: its weights are damaged, or its precision is too low. Fetch its file again."
            )
    if is_view:
        scored.view_scores[reward.name] = result.scores.tolist()
    else:
        scored.joint_scores[reward.name] = float(result.scores)
        scored.details[reward.name] = {name: float(part) for name, part in result.details.items()}


def _first(scores: Any, default: Any) -> Any:
    return next(iter(scores.values()), default)
