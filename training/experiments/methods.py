"""The rows of the comparison: the paper's methods, its baselines and ablations, and our controls."""

from __future__ import annotations

from dataclasses import dataclass

from t2mv_core.defaults import DEFAULTS
from t2mv_core.samplers import SamplingSettings

from ..algorithm.objectives import OBJECTIVES

TEACHER_SETTINGS = SamplingSettings(**DEFAULTS["toybox-teacher"].numbers())


@dataclass(frozen=True)
class Method:
    """One row of the comparison.

    Attributes:
        summary: for people.
        objective: what its LoRA is trained with; None: no LoRA.
        sampler: with which it is measured.
        model: on which; None: the training's, with its base LoRAs.
        settings: of the training, `section.key=value`, where they differ from the other methods'.
        candidates: sets drawn per prompt, of which the one with the best rewards counts.
        num_seeds: at most so many seeds; None: all that are asked for.
    """

    summary: str
    objective: str | None = None
    sampler: str = "standard"
    model: str | None = None
    settings: tuple[str, ...] = ()
    candidates: int = 1
    num_seeds: int | None = None


COMPARED = (
    "mv_pg", "mv_dpo", "reward_difference", "zigal_joint", "zigal_view", "zigal_weighted", "mvc_zigal",
)  # fmt: skip
"""The objectives of the published comparison, in the order of its table."""
CONTROLS = ("none_redraw", "reward_difference_own_noise", "mvc_zigal_redraw")
"""What zigzag pairs owe to initial noise of their own, and what to the inversion."""
ABLATIONS = (
    "mvc_zigal_fixed_threshold", "mvc_zigal_equal_rates", "mvc_zigal_all_steps", "mvc_zigal_no_cameras",
)  # fmt: skip
"""The method with one part changed."""
NUM_ABLATION_SEEDS = 3

FIXED_SUMS = tuple(f"fixed_lambda_{value}" for value in (0.25, 0.5, 1, 2))
"""A_view + λ·A_joint with a λ that stays, to lay beside what the constraint finds."""
STEADIED = ("mvc_zigal_plain", "mvc_zigal_average", "mvc_zigal_kl", "mvc_zigal_stopped")
"""What keeps a long training from harm: nothing, a moving average, a KL, the best held-out LoRA."""


def _trained(name: str) -> Method:
    num_seeds = NUM_ABLATION_SEEDS if name in ABLATIONS else None
    return Method(name, objective=name, num_seeds=num_seeds)


def _changed(summary: str, *settings: str) -> Method:
    return Method(summary, objective="mvc_zigal", settings=settings, num_seeds=NUM_ABLATION_SEEDS)


METHODS: dict[str, Method] = {
    "none": Method("no RL"),
    "none_zmv": Method("no RL, ZMV at test time", sampler="zmv"),
    "none_redraw": Method("no RL, fresh noise for the zag", sampler="redraw"),
    "best_of_5": Method("no RL, best of 5 by the rewards", candidates=5),
    **{name: _trained(name) for name in (*COMPARED, *OBJECTIVES)},
    "mvc_zigal_all_steps": _changed("mvc_zigal, zigzags on all steps", "sampling.zigzag_steps=4"),
    "mvc_zigal_no_cameras": _changed("mvc_zigal, zag without cameras", "sampling.inverse_view_scale=0"),
    **{
        name: Method(
            name.replace("_", " "),
            objective="mvc_zigal",
            settings=(
                f"constraint.lambda_init={name.rpartition('_')[2]}",
                "constraint.violated_lr=1e-12",  # must be positive
                "constraint.satisfied_lr=0",
            ),
        )
        for name in FIXED_SUMS
    },
    "mvc_zigal_plain": _changed("mvc_zigal, no average", "optim.ema_decay=null"),
    "mvc_zigal_average": _changed("mvc_zigal, moving average", "optim.ema_decay=0.9"),
    "mvc_zigal_kl": _changed("mvc_zigal, no average, KL", "optim.ema_decay=null", "optim.kl_weight=1000"),
    "mvc_zigal_stopped": _changed(
        "mvc_zigal, no average, best of development prompts",
        "optim.ema_decay=null",
        "evaluation.prompts=dev",
        "evaluation.num_prompts=40",
        "evaluation.every=5",
        "evaluation.stop_measure=view_reward",
    ),
    "teacher": Method(f"teacher, {TEACHER_SETTINGS.num_steps} steps", model="toybox-teacher", num_seeds=1),
}
DEFAULT_METHODS = ("none", "none_zmv", "best_of_5", *COMPARED, "teacher")
