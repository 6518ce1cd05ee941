"""Measuring one variant of a model: every prompt with every seed, with equal noise for all variants."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from t2mv_core.bundle import ModelBundle
from t2mv_core.cameras import DEFAULT_RIG
from t2mv_core.denoiser import encode_cameras
from t2mv_core.lora.files import load_lora
from t2mv_core.rewards.registry import GEOMETRY
from t2mv_core.samplers import OnStep, SamplingSettings, StepEvent, count_evaluations
from t2mv_core.toybox.judge import JUDGE_PX, Judge, load_judge
from t2mv_core.toybox.prompt_lists import PromptSpec, asymmetric_families, find_specs
from t2mv_core.toybox.silhouettes import view_consistency

from ..algorithm.rollout import Batch, Policy, paired_noise, sample_and_score
from ..algorithm.scoring import Rewards, Scores
from ..config import RewardConfig, SamplingConfig
from ..data.text_cache import ConditionCache
from ..models.policy import camera_rig, check_device
from ..models.rewards import load_rewards, measure_names


@dataclass(frozen=True)
class Instruments:
    """What measures.

    Attributes:
        rewards: the scorers.
        judge: the independent judge; none when prompts have no specs.
        only_measuring: rewards that a training does not learn from; their measures carry their names.
    """

    rewards: Rewards
    judge: Judge | None = None
    only_measuring: frozenset[str] = frozenset()

    @property
    def learns_geometry(self) -> bool:
        """Whether training learns from the visual hull, which then is no independent measure."""
        learned = (name for name in self.rewards.joint if name not in self.only_measuring)
        return any(name.partition(".")[0] == GEOMETRY for name in learned)


HULL_LEFT_OUT = "`hull_consistency` is left out: the reward `geometry` is in use, and reads the same hull."


@dataclass(frozen=True)
class Variant:
    """One row of the report.

    Attributes:
        name: for people.
        sampler: name of the sampler.
        settings: steps, guidance, zigzag.
        lora: LoRA file, or none for the base model.
        lora_strength: factor on the LoRA's effect.
    """

    name: str
    sampler: str
    settings: SamplingSettings
    lora: Path | None = None
    lora_strength: float = 1.0


@dataclass(frozen=True)
class Questions:
    """What every variant is asked, with equal noise for all of them.

    Attributes:
        prompts: P sentences.
        seeds: S seeds.
        batch_size: prompts in one forward pass.
        specs: what each prompt asks for, for the judge; none where the judge has no classes for it.
        negative_prompt: for classifier-free guidance.
        azimuths_deg: the cameras, degrees.
        pictures: for image to multiview, framed, [P, 3, H, W] in [0, 1]; none for text.
        num_kept: of how many prompts a measurement keeps the pictures; None: of all.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    batch_size: int = 10
    specs: tuple[PromptSpec, ...] | None = None
    negative_prompt: str | None = None
    azimuths_deg: tuple[float, ...] = DEFAULT_RIG.azimuths_deg
    pictures: Tensor | None = None
    num_kept: int | None = None

    @property
    def num_batches(self) -> int:
        """Forward passes per UNet evaluation of all sets."""
        return len(self.seeds) * -(-len(self.prompts) // self.batch_size)


@dataclass(frozen=True)
class Measurement:
    """What one variant scored.

    Attributes:
        variant: which.
        values: measure -> [P, S]; NaN where a measure does not apply (azimuth of a symmetric family).
        images: pictures of the first seed, [P, V, 3, H, W], uint8; of the first `num_kept` prompts.
        seconds_per_set: wall time of sampling, decoding, scoring and judging, by the number of sets.
        evaluations_per_set: UNet evaluations of all its views; guidance without an embedding takes two.
    """

    variant: Variant
    values: dict[str, Tensor]
    images: Tensor
    seconds_per_set: float
    evaluations_per_set: float


def judged_specs(prompts: Sequence[str], azimuths_deg: Sequence[float]) -> tuple[PromptSpec, ...] | None:
    """Return what prompts ask for where the judge can tell: it knows the toybox and the default cameras."""
    return find_specs(prompts) if tuple(azimuths_deg) == DEFAULT_RIG.azimuths_deg else None


def is_judged(bundle: ModelBundle) -> bool:
    """Whether the judge can tell what a model draws: pictures larger than its own are another model's."""
    return bundle.image_px <= JUDGE_PX


def spread(items: Sequence[str], count: int) -> tuple[str, ...]:
    """Return `count` items at even distances, so that few prompts are still of every kind."""
    count = min(count, len(items))
    return tuple(items[i * len(items) // count] for i in range(count))


def make_questions(
    config: SamplingConfig, prompts: Sequence[str], seeds: Sequence[int], pictures: Tensor | None = None
) -> Questions:
    """Return what to ask so that sampling is as in training: its cameras and negative prompt."""
    azimuths = config.used_azimuths_deg
    specs, negative = judged_specs(prompts, azimuths), config.negative_prompt
    return Questions(tuple(prompts), tuple(seeds), config.batch_size, specs, negative, azimuths, pictures)


def load_instruments(
    view_rewards: Iterable[str],
    joint_rewards: Iterable[str],
    device: torch.device | str,
    has_judge: bool,
    config: RewardConfig | None = None,
    azimuths_deg: Sequence[float] = DEFAULT_RIG.azimuths_deg,
) -> Instruments:
    """Load rewards by name, and the bundled judge when prompts have specs for it.

    Args:
        view_rewards: names of single-view rewards.
        joint_rewards: names of joint-view rewards.
        device: of the judge, and of the rewards unless the configuration names another.
        has_judge: whether the judge is loaded.
        config: of the rewards' files, precision and device; None: as they are by default.
        azimuths_deg: the cameras of the views to come.

    Raises:
        ValueError: an unknown reward, or a damaged file.
        FileNotFoundError: weights that are not on this machine.
    """
    reward_device = device if config is None or config.device == "auto" else config.device
    check_device("model.device" if reward_device == device else "reward.device", reward_device)
    rewards = load_rewards(view_rewards, joint_rewards, reward_device, config, azimuths_deg)
    return Instruments(rewards, load_judge().to(device) if has_judge else None)


def measure(
    bundle: ModelBundle, instruments: Instruments, variant: Variant, questions: Questions
) -> Measurement:
    """Sample, score and judge every prompt with every seed, behind a progress bar on a terminal.

    Args:
        bundle: the base model; the variant's LoRA is attached to its UNet and silent there afterwards.
        instruments: rewards and judge.
        variant: what is measured.
        questions: prompts, seeds and cameras.
    """
    if variant.lora is not None:
        bundle = load_lora(bundle, variant.lora, variant.lora_strength)
    with torch.no_grad():
        policy = Policy(bundle, encode_cameras(bundle, camera_rig(questions.azimuths_deg)))
    conditions = ConditionCache(bundle, questions.negative_prompt)
    total = questions.num_batches * count_evaluations(variant.sampler, variant.settings)
    with tqdm(total=total, desc=variant.name, disable=not sys.stderr.isatty(), leave=False) as progress:

        def on_step(_: StepEvent) -> None:
            progress.update()

        return measure_policy(policy, instruments, variant, questions, conditions, on_step)


def measure_policy(
    policy: Policy,
    instruments: Instruments,
    variant: Variant,
    questions: Questions,
    conditions: ConditionCache,
    on_step: OnStep | None = None,
) -> Measurement:
    """Do what `measure` does with a policy as it is, the LoRA in training included.

    A LoRA file of the variant is ignored; the policy's cameras must be those of the questions.
    """
    started = time.monotonic()
    columns: list[dict[str, Tensor]] = []
    kept: list[Tensor] = []
    num_kept = len(questions.prompts) if questions.num_kept is None else questions.num_kept
    with counted_rows(policy.bundle.unet) as rows:
        for seed in questions.seeds:
            batches = []
            for start in range(0, len(questions.prompts), questions.batch_size):
                place = (seed, start)
                images, values = _measure_batch(
                    policy, instruments, variant, questions, conditions, place, on_step
                )
                batches.append(values)
                if seed == questions.seeds[0] and start < num_kept:
                    kept.append(images[: num_kept - start])
            columns.append({name: torch.cat([values[name] for values in batches]) for name in batches[0]})
    num_sets = len(questions.prompts) * len(questions.seeds)
    return Measurement(
        variant,
        {name: torch.stack([column[name] for column in columns], dim=1) for name in columns[0]},
        torch.cat(kept),
        (time.monotonic() - started) / num_sets,
        round(sum(rows) / (num_sets * policy.cameras.num_views), 2),
    )


@contextmanager
def counted_rows(unet: nn.Module) -> Iterator[list[int]]:
    """Collect the batch sizes of all calls of a UNet within the block: a picture is a row."""
    rows: list[int] = []

    def count(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows.append(len(inputs[0]))

    handle = unet.register_forward_pre_hook(count)
    try:
        yield rows
    finally:
        handle.remove()


def _measure_batch(
    policy: Policy,
    instruments: Instruments,
    variant: Variant,
    questions: Questions,
    conditions: ConditionCache,
    place: tuple[int, int],
    on_step: OnStep | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return one batch of prompts with one seed: the pictures, and measure -> [b]."""
    seed, start = place
    rows = range(start, min(start + questions.batch_size, len(questions.prompts)))
    prompts = tuple(questions.prompts[row] for row in rows)
    noise = paired_noise(seed, 0, rows, 0)
    pictures = None if questions.pictures is None else questions.pictures[list(rows)]
    batch = Batch(prompts, conditions.lookup(prompts), pictures)
    inputs = (policy, instruments.rewards, variant.sampler, batch, noise, variant.settings, on_step)
    scored = sample_and_score(*inputs, policy.read_pictures(batch))
    values = reward_values(scored.scores, instruments.only_measuring)
    if instruments.judge is not None and questions.specs is not None:
        specs, pictures = [questions.specs[row] for row in rows], scored.images / 255
        values |= judge_sets(instruments.judge, pictures, specs)
        if len(questions.azimuths_deg) > 1 and not instruments.learns_geometry:
            values["hull_consistency"] = view_consistency(pictures, questions.azimuths_deg)
    return scored.images, values


def reward_values(scores: Scores, only_measuring: frozenset[str] = frozenset()) -> dict[str, Tensor]:
    """Return rewards and their parts per set, [B] each.

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


def judge_sets(judge: Judge, images: Tensor, specs: Sequence[PromptSpec]) -> dict[str, Tensor]:
    """Return the judge's verdicts as shares in [0, 1], [B].

    Part colour and relation (the second object's colour) are NaN where the prompt names none; azimuth is NaN
    for symmetric families.
    """
    verdict = judge.judge_views(images, specs)
    has_part = torch.tensor([spec.part_colour is not None for spec in specs])
    has_relation = torch.tensor([spec.companion_colour is not None for spec in specs])
    is_asymmetric = torch.tensor([spec.family in asymmetric_families() for spec in specs])
    azimuth = verdict.azimuth.float().mean(dim=1)
    return {
        "judge_family": verdict.family.float(),
        "judge_colour": verdict.colour.float(),
        "judge_part": torch.where(has_part, verdict.part.float(), torch.nan),
        "judge_relation": torch.where(has_relation, verdict.companion.float(), torch.nan),
        "judge_azimuth": torch.where(is_asymmetric, azimuth, torch.nan),
    }
