"""Measuring one variant of a model: every prompt with every seed, with equal noise for all variants."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from t2mv_core.bundle import ModelBundle
from t2mv_core.denoiser import encode_cameras
from t2mv_core.lora.files import load_lora
from t2mv_core.samplers import OnStep, SamplingSettings, count_evaluations
from t2mv_core.toybox.judge import Judge
from t2mv_core.toybox.prompt_lists import PromptSpec, asymmetric_families
from t2mv_core.toybox.silhouettes import view_consistency

from ..algorithm.rollout import Policy, Rewards, ScoredSets, Scores, paired_noise, sample_and_score
from ..data.text_cache import ConditionCache
from ..models.policy import camera_rig


@dataclass(frozen=True)
class Instruments:
    """What measures.

    Attributes:
        rewards: the scorers.
        judge: the independent judge; none when prompts have no specs.
        azimuths_deg: cameras of the pictures, filled in when measuring.
        only_measuring: rewards that a training does not learn from; their measures carry their names.
    """

    rewards: Rewards
    judge: Judge | None = None
    azimuths_deg: tuple[float, ...] = ()
    only_measuring: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Variant:
    """One row of the report.

    Attributes:
        name: for people.
        sampler: name of the sampler.
        settings: steps, guidance, zigzag.
        lora: LoRA file, or none for the base model.
    """

    name: str
    sampler: str
    settings: SamplingSettings
    lora: Path | None = None


@dataclass(frozen=True)
class Questions:
    """What every variant is asked, with equal noise for all of them.

    Attributes:
        prompts: P sentences.
        seeds: S seeds.
        batch_size: prompts in one forward pass.
        specs: what each prompt asks for, for the judge; none where the judge has no classes for it.
        negative_prompt: for classifier-free guidance.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    batch_size: int = 10
    specs: tuple[PromptSpec, ...] | None = None
    negative_prompt: str | None = None


@dataclass(frozen=True)
class Measurement:
    """What one variant scored.

    Attributes:
        variant: which.
        values: measure -> [P, S]; NaN where a measure does not apply (azimuth of a symmetric family).
        images: pictures of the first seed, [P, V, 3, H, W], uint8.
        seconds_per_set: wall time of sampling, decoding, scoring and judging, by the number of sets.
        evaluations_per_set: UNet evaluations, counted by the sampler.
    """

    variant: Variant
    values: dict[str, Tensor]
    images: Tensor
    seconds_per_set: float
    evaluations_per_set: int


def measure(
    bundle: ModelBundle,
    azimuths_deg: Sequence[float],
    instruments: Instruments,
    variant: Variant,
    questions: Questions,
    on_step: OnStep | None = None,
) -> Measurement:
    """Sample, score and judge every prompt with every seed.

    Args:
        bundle: the base model; the variant's LoRA is attached to its UNet and silent there afterwards.
        azimuths_deg: the cameras.
        instruments: rewards and judge.
        variant: what is measured.
        questions: prompts and seeds.
        on_step: called after every UNet evaluation.
    """
    if variant.lora is not None:
        bundle = load_lora(bundle, variant.lora, 1.0)
    with torch.no_grad():
        policy = Policy(bundle, encode_cameras(bundle, camera_rig(azimuths_deg)))
    conditions = ConditionCache(bundle, questions.negative_prompt)
    return measure_policy(policy, azimuths_deg, instruments, variant, questions, conditions, on_step)


def measure_policy(
    policy: Policy,
    azimuths_deg: Sequence[float],
    instruments: Instruments,
    variant: Variant,
    questions: Questions,
    conditions: ConditionCache,
    on_step: OnStep | None = None,
) -> Measurement:
    """`measure` of a policy as it is, the LoRA in training included; a LoRA file of the variant is ignored.

    Its cameras must be those of `azimuths_deg`.
    """
    instruments = replace(instruments, azimuths_deg=tuple(azimuths_deg))
    started = time.monotonic()
    columns: list[dict[str, Tensor]] = []
    pictures: list[Tensor] = []
    for seed in questions.seeds:
        batches = [
            _measure_batch(policy, instruments, variant, questions, conditions, (seed, start), on_step)
            for start in range(0, len(questions.prompts), questions.batch_size)
        ]
        columns.append({name: torch.cat([values[name] for _, values in batches]) for name in batches[0][1]})
        if seed == questions.seeds[0]:
            pictures = [scored.images for scored, _ in batches]
    num_sets = len(questions.prompts) * len(questions.seeds)
    return Measurement(
        variant,
        {name: torch.stack([column[name] for column in columns], dim=1) for name in columns[0]},
        torch.cat(pictures),
        (time.monotonic() - started) / num_sets,
        count_evaluations(variant.sampler, variant.settings),
    )


def _measure_batch(
    policy: Policy,
    instruments: Instruments,
    variant: Variant,
    questions: Questions,
    conditions: ConditionCache,
    place: tuple[int, int],
    on_step: OnStep | None,
) -> tuple[ScoredSets, dict[str, Tensor]]:
    """One batch of prompts with one seed: the sets, and measure -> [b]."""
    seed, start = place
    rows = range(start, min(start + questions.batch_size, len(questions.prompts)))
    prompts = [questions.prompts[row] for row in rows]
    noise = paired_noise(seed, 0, rows, 0)
    batch = (prompts, conditions.lookup(prompts))
    scored = sample_and_score(
        policy, instruments.rewards, variant.sampler, batch, noise, variant.settings, on_step
    )
    values = reward_values(scored.scores, instruments.only_measuring)
    if instruments.judge is not None and questions.specs is not None:
        specs, pictures = [questions.specs[row] for row in rows], scored.images / 255
        values |= judge_sets(instruments.judge, pictures, specs)
        if len(instruments.azimuths_deg) > 1:
            values["hull_consistency"] = view_consistency(pictures, instruments.azimuths_deg)
    return scored, values


def reward_values(scores: Scores, only_measuring: frozenset[str] = frozenset()) -> dict[str, Tensor]:
    """Rewards and their parts per set, [B] each.

    "view_reward", "joint_reward" and "joint_<part>" of the one reward a role has; where it has several, and
    for those that only measure, the name stands behind: "view_reward/pickscore".
    """
    view_names = measure_names("view", scores.view, only_measuring)
    joint_names = measure_names("joint", scores.joint, only_measuring)
    named = {view_names[name]: values.mean(dim=1) for name, values in scores.view.items()}
    named |= {joint_names[name]: values for name, values in scores.joint.items()}
    for key, values in scores.details.items():
        name, _, part = key.rpartition(".")
        named[joint_names[name].replace("joint_reward", f"joint_{part}", 1)] = values
    return named


def measure_names(role: str, names: Iterable[str], only_measuring: frozenset[str]) -> dict[str, str]:
    """Reward -> the name of its measure; see `reward_values`."""
    names = list(names)
    learned = [name for name in names if name not in only_measuring]
    return {name: f"{role}_reward" + ("" if learned == [name] else f"/{name}") for name in names}


def judge_sets(judge: Judge, images: Tensor, specs: Sequence[PromptSpec]) -> dict[str, Tensor]:
    """The judge's verdicts per set, as shares in [0, 1], [B] each; azimuth is NaN for symmetric families."""
    verdict = judge.judge_views(images, specs)
    is_asymmetric = torch.tensor([spec.family in asymmetric_families() for spec in specs])
    azimuth = verdict.azimuth.float().mean(dim=1)
    return {
        "judge_family": verdict.family.float(),
        "judge_colour": verdict.colour.float(),
        "judge_azimuth": torch.where(is_asymmetric, azimuth, torch.nan),
    }
