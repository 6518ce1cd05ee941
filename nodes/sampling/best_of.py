"""The node that samples several sets per prompt and keeps those a reward likes best."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io, ui

from ..common.checks import MAX_SEED, Field, check_fields, first_problem, read_prompts, widgets
from ..common.progress import show_result, show_text
from ..scoring.score import check_cameras
from ..sockets import RewardHandle, Rewards, make_schema, output
from .candidates import RANK_BY, Ranking, check_ranking, rank, ranking_sheet, ranking_text, sample_candidates
from .inputs import (
    GUIDANCE,
    INVERSE_REF_SCALE,
    REF_SCALE,
    STEPS,
    VIEW_SCALE,
    ZIGZAG,
    check_sampling,
    latent_output,
    numbers_read,
    optional_inputs,
    prompt_inputs,
    reading_notes,
    settings_output,
)
from .reference import check_compared, check_pictures, check_task, framing_notes
from .sample import comfy_latent, decode_set

if TYPE_CHECKING:
    from ..sockets import ModelHandle

MAX_NAMED = 4
MAX_SETS = 128  # of a run: their ranking must stay a picture that people can look at
SAMPLERS = ("standard", "zmv")
CANDIDATES = Field("candidates", 8, "Sets sampled per prompt line.", 1, 64)
KEEP = Field("keep", 1, "Sets kept per prompt line, the best ones.", 1, CANDIDATES.high)
RANKED_BY = Field(
    "rank_by", next(iter(RANK_BY)),
    "What decides. 'sum of normalised rewards': every connected reward, in standard deviations from its "
    "mean over the candidates. The others: the first reward of that kind.",
    choices=tuple(RANK_BY),
)  # fmt: skip
SAMPLER = Field(
    "sampler", SAMPLERS[0], "'standard' as Sample Views, 'zmv' as Sample Views with Zigzag.",
    choices=SAMPLERS,
)  # fmt: skip
RANKING = (CANDIDATES, KEEP, RANKED_BY, SAMPLER)


class T2MVSampleBest(io.ComfyNode):
    """Several sets of views to the best of them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="T2MVSampleBest",
            display_name="Sample Best Views (T2MV)",
            category="T2MV/sampling",
            description="Samples several sets of views per prompt, scores them with rewards and keeps the "
            "best; the ranking is shown.",
            shows_result=True,
            search_aliases=["best of n", "best of", "top k", "rank", "cherry pick", "inference time scaling"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                *prompt_inputs(
                    "Of the first candidate; the next ones use seed + 1, seed + 2, and so on, and the second "
                    "prompt line goes on after the first one's last. A sampler node gives a set again with "
                    "its seed.",
                    Rewards.Input("rewards", tooltip="From Load Reward: what the sets are ranked by."),
                    prompt_name="prompts",  # ComfyUI gives every output node a hidden input named "prompt"
                ),
                *widgets(*RANKING, STEPS, GUIDANCE, VIEW_SCALE),
                *(replace(each, is_advanced=True).widget() for each in ZIGZAG),
                *optional_inputs(REF_SCALE, INVERSE_REF_SCALE),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def validate_inputs(cls, prompts: str | None = None) -> bool | str:
        """Refuse unusable prompts before the run; of other inputs ComfyUI would paint the innocent ones."""
        return first_problem(lambda: read_prompts(prompts))

    @classmethod
    def check_lazy_status(
        cls,
        prompts: str | None = None,
        rewards: tuple[RewardHandle, ...] = (),
        rank_by: str | None = None,
        **others: Any,
    ) -> list[str]:
        """Refuse values that ComfyUI let pass, and rewards that cannot rank, and then ask for the model."""
        sampler = others.get("sampler")
        _check_plan(prompts, others.get("candidates"), others.get("keep"), rank_by, sampler)
        check_sampling(**numbers_read(sampler, others))
        lines, reference = read_prompts(prompts), others.get("reference")
        check_pictures(reference, len(lines))
        check_ranking(rank_by, [handle.reward.kind for handle in rewards])
        check_compared(rewards, reference, len(lines))
        check_cameras(rewards, others.get("rig"))
        return ["model"]

    @classmethod
    def execute(
        cls,
        model: ModelHandle,
        rewards: tuple[RewardHandle, ...],
        prompts: str,
        seed: int,
        candidates: int,
        keep: int,
        rank_by: str,
        **others: Any,
    ) -> io.NodeOutput:
        """Sample all sets, score them, decode the best again."""
        lines, reference = read_prompts(prompts), others.get("reference")
        check_task(model, reference)
        plan = _plan(len(lines), seed, candidates)
        notes = [*reading_notes(model, lines, **others), *framing_notes(reference)]
        # Before the first preview: ComfyUI's page (1.27) puts a text that comes later over the picture.
        show_text(cls, "\n".join([f"{len(plan)} sets to sample and to score", *notes]))
        competing = sample_candidates(model, rewards, lines, plan, **others)
        groups = [competing[start : start + candidates] for start in range(0, len(competing), candidates)]
        rankings = [rank(group, rank_by) for group in groups]
        best = [entry for ranking in rankings for entry in ranking[:keep]]
        report = "\n\n".join([*(ranking_text(ranking, rank_by, keep) for ranking in rankings), *notes])
        sheet = ranking_sheet(rankings, keep)
        show_text(cls, "\n".join([_kept(best), *notes]))
        show_result(cls, sheet)
        return io.NodeOutput(
            torch.cat([decode_set(model, candidate.latents) for candidate, _ in best]),
            comfy_latent(model, [candidate.latents for candidate, _ in best]),
            [candidate.seed for candidate, _ in best],
            [score for _, score in best],
            report,
            sheet,
            "\n".join(candidate.settings for candidate, _ in best),
            ui={**ui.PreviewImage(sheet, cls=cls).as_dict(), **ui.PreviewText(report).as_dict()},
        )


def _kept(best: Ranking) -> str:
    """Say in a line which sets were kept: what people look for in a long ranking."""
    sets = ", ".join(f"seed {candidate.seed} (score {score:.3f})" for candidate, score in best[:MAX_NAMED])
    return f"kept: {sets}{', …' if len(best) > MAX_NAMED else ''}"


def _plan(num_lines: int, seed: int, candidates: int) -> list[tuple[int, int]]:
    """Return (line, seed) of every set: the candidates of a line count on from its first seed."""
    return [
        (line, (seed + line * candidates + number) % (MAX_SEED + 1))
        for line in range(num_lines)
        for number in range(candidates)
    ]


def _check_plan(prompts: str | None, *choices: int | str | None) -> None:
    """Refuse counts that do not belong together, and names that are not offered; None is a linked input.

    Args:
        prompts: the text box.
        choices: the values of RANKING.
    """
    num_lines = len(read_prompts(prompts))
    check_fields(RANKING, {each.name: value for each, value in zip(RANKING, choices, strict=True)})
    candidates, keep = choices[:2]
    if candidates is not None and keep is not None and keep > candidates:
        raise ValueError(f"keep={keep} is more than candidates={candidates}; keep at most as many.")
    if candidates is not None and candidates * num_lines > MAX_SETS:
        raise ValueError(
            f"{num_lines} prompts with candidates={candidates} are {candidates * num_lines} sets; at most "
            f"{MAX_SETS} fit into one run. Use fewer candidates or fewer lines."
        )


def _outputs() -> list[io.Output]:
    return [
        output(io.Image, "images", "The views of the kept sets: best first, prompt line by prompt line."),
        latent_output(),
        output(
            io.Int, "seeds", "The seed of every kept set, as a list; a sampler draws the set again with it.",
            is_output_list=True,
        ),
        output(io.Float, "scores", "What every kept set was ranked by, as a list.", is_output_list=True),
        output(io.String, "report", "The whole ranking, to read."),
        output(io.Image, "ranking", "All sets in order, with ranks, seeds and scores."),
        settings_output(),
    ]  # fmt: skip
