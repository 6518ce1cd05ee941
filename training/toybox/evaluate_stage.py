"""Stage `evaluate`: what teacher and student can do, by the independent judge, on held-out prompts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from t2mv_core.bundle import ModelBundle, ModelSources, load_bundle
from t2mv_core.cameras import DEFAULT_RIG
from t2mv_core.denoiser import encode_cameras, predict_noise
from t2mv_core.images import contact_sheet
from t2mv_core.policy import consistency_output
from t2mv_core.rewards.clip_score import load_clip_score
from t2mv_core.rewards.hyperscore import load_hyperscore
from t2mv_core.samplers import SamplingSettings, sample_standard
from t2mv_core.text import encode_text
from t2mv_core.trajectory import SeededNoise

from ..intervals import Interval, bootstrap
from ..measure import Instruments, Measurement, Questions, Variant, measure
from ..rollout import Rewards
from .captions import DEV_PROMPTS, HELD_OUT_PROMPTS, PromptSpec
from .card import write_card
from .export_stage import write_json
from .judge import load_judge
from .stage import StageConfig

logger = logging.getLogger(__name__)

# Guidance of both was chosen on the development prompts.
STUDENT_SETTINGS = SamplingSettings(num_steps=4, guidance_scale=2.0)
TEACHER_SETTINGS = SamplingSettings(num_steps=25, guidance_scale=2.5)
GUIDANCE_SWEEP = tuple(range(1, 9))
SEEDS = (0, 1)


def run(config: StageConfig) -> None:
    """Judge both models and the student's use of guidance; writes `export/report.json` and contact sheets."""
    folder = config.export_dir
    instruments = Instruments(_rewards(folder), load_judge(folder / "judge" / "judge.safetensors"))
    held_out, dev = (
        (HELD_OUT_PROMPTS[:4], DEV_PROMPTS[:4]) if config.quick else (HELD_OUT_PROMPTS, DEV_PROMPTS)
    )
    student, teacher = load_models(folder)
    measured = {}
    for name, bundle, settings in (
        ("teacher", teacher, TEACHER_SETTINGS),
        ("student", student, STUDENT_SETTINGS),
    ):
        measured[name] = measure_model(bundle, instruments, settings, held_out, name)
        write_sheet(measured[name], held_out[:20], config.out_dir / f"{name}.png")
    report: dict[str, object] = {name: summary(found) for name, found in measured.items()}
    report["shortfall"] = {
        name: asdict(bootstrap(measured["teacher"].values[name] - measured["student"].values[name]))
        for name in measured["teacher"].values
    }
    report["student_by_guidance"] = {
        str(w): summary(measure_model(student, instruments, SamplingSettings(4, float(w)), dev, f"w = {w}"))
        for w in GUIDANCE_SWEEP
    }
    report["student_shift_w1_to_w7"] = guidance_shift(student, dev[:24])
    write_json(report, folder / "report.json")
    write_card(config)


def load_models(folder: Path) -> tuple[ModelBundle, ModelBundle]:
    """Student and teacher of an export folder."""
    model, own = str(folder / "model"), folder / "teacher"
    return load_bundle(model), load_bundle(
        ModelSources(model, unet=str(own / "unet"), scheduler=str(own / "scheduler"))
    )


def measure_model(
    bundle: ModelBundle,
    instruments: Instruments,
    settings: SamplingSettings,
    specs: Sequence[PromptSpec],
    name: str,
) -> Measurement:
    """Rewards and verdicts of a model on some prompts, standard sampling, all seeds."""
    from tqdm import tqdm

    questions = Questions(tuple(spec.prompt for spec in specs), SEEDS, specs=tuple(specs))
    calls = settings.num_steps * len(SEEDS) * -(-len(specs) // questions.batch_size)
    with tqdm(total=calls, desc=name, mininterval=5.0) as progress:
        found = measure(
            bundle,
            DEFAULT_RIG.azimuths_deg,
            instruments,
            Variant(name, "standard", settings),
            questions,
            lambda _: progress.update(),
        )
    logger.info("%s: %s", name, {key: f"{entry.mean:.3f}" for key, entry in _intervals(found).items()})
    return found


def summary(measured: Measurement) -> dict[str, object]:
    """Settings, and every measure with its 95 % interval over prompts."""
    settings = measured.variant.settings
    intervals = {name: asdict(interval) for name, interval in _intervals(measured).items()}
    return {
        "steps": settings.num_steps,
        "guidance": settings.guidance_scale,
        "num_seeds": len(SEEDS),
        **intervals,
    }


def write_sheet(measured: Measurement, specs: Sequence[PromptSpec], path: Path) -> None:
    """The first prompts' views, a row each."""
    labels = [f"{azimuth:g} deg" for azimuth in DEFAULT_RIG.azimuths_deg]
    pictures = measured.images[: len(specs)] / 255
    contact_sheet(pictures, [spec.prompt for spec in specs], labels, cell_px=64).save(path)


def _intervals(measured: Measurement) -> dict[str, Interval]:
    return {name: bootstrap(values) for name, values in measured.values.items() if not values.isnan().all()}


def _rewards(folder: Path) -> Rewards:
    """The export folder's own scorers, which need not be the shipped ones."""
    clip, hyperscore = (folder / "rewards" / f"{name}.safetensors" for name in ("clip", "hyperscore"))
    return Rewards(load_clip_score(clip, "toybox_clip"), load_hyperscore(hyperscore, "toybox_hyperscore"))


@torch.no_grad()
def guidance_shift(student: ModelBundle, specs: Sequence[PromptSpec]) -> dict[str, float]:
    """How far the clean prediction moves from w = 1 to w = 7 at each visited timestep, relative to its size.

    ‖f(x_t, w=7) - f(x_t, w=1)‖ / ‖f(x_t, w=1)‖,   x_t from a standard trajectory at w = 7
    """
    cameras = encode_cameras(student, DEFAULT_RIG)
    condition = encode_text(student, [spec.prompt for spec in specs])
    trajectory = sample_standard(
        student,
        condition,
        cameras,
        SeededNoise(range(len(specs))),
        replace(STUDENT_SETTINGS, guidance_scale=7.0),
    )
    shifts = {}
    for step, timestep in enumerate(trajectory.timesteps.tolist()):
        x = trajectory.states[:, :, step]
        weak, strong = (
            consistency_output(
                student.schedule, predict_noise(student, x, timestep, condition, cameras, w), x, timestep
            )
            for w in (1.0, 7.0)
        )
        shifts[str(timestep)] = ((strong - weak).norm() / weak.norm()).item()
    return shifts
