"""Stage `evaluate`: what teacher and student can do, by the independent judge, on held-out prompts."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from t2mv_core.bundle import ModelBundle, ModelSources, load_bundle
from t2mv_core.cameras import DEFAULT_RIG
from t2mv_core.denoiser import encode_cameras, predict_noise
from t2mv_core.images import contact_sheet, decode_latents
from t2mv_core.policy import consistency_output
from t2mv_core.samplers import SamplingSettings, sample_standard
from t2mv_core.text import encode_text
from t2mv_core.trajectory import SeededNoise

from .captions import DEV_PROMPTS, HELD_OUT_PROMPTS, PromptSpec
from .card import write_card
from .export_stage import write_json
from .judge import Judge, load_judge
from .scenes import FAMILIES
from .stage import StageConfig

logger = logging.getLogger(__name__)

STUDENT_SETTINGS = SamplingSettings(num_steps=4, guidance_scale=7.0)
TEACHER_SETTINGS = SamplingSettings(num_steps=25, guidance_scale=2.5)  # chosen on development prompts
GUIDANCE_SWEEP = tuple(range(1, 9))


def run(config: StageConfig) -> None:
    """Judge both models and the student's use of guidance; writes `export/report.json` and contact sheets."""
    folder = config.export_dir
    judge = load_judge(folder / "judge" / "judge.safetensors")
    held_out, dev = (
        (HELD_OUT_PROMPTS[:4], DEV_PROMPTS[:4]) if config.quick else (HELD_OUT_PROMPTS, DEV_PROMPTS)
    )
    student, teacher = load_models(folder)
    report: dict[str, object] = {}
    for name, bundle, settings in (
        ("teacher", teacher, TEACHER_SETTINGS),
        ("student", student, STUDENT_SETTINGS),
    ):
        images = sample_sets(bundle, held_out, settings)
        report[name] = {
            "steps": settings.num_steps,
            "guidance": settings.guidance_scale,
            **accuracy(judge, images, held_out),
        }
        logger.info("%s on %d held-out prompts: %s", name, len(held_out), report[name])
        labels = [f"{azimuth:g} deg" for azimuth in DEFAULT_RIG.azimuths_deg]
        sheet = contact_sheet(images[:20], [spec.prompt for spec in held_out[:20]], labels, cell_px=64)
        sheet.save(config.out_dir / f"{name}.png")
    report["student_by_guidance"] = guidance_sweep(student, judge, dev)
    report["student_shift_w1_to_w7"] = guidance_shift(student, dev[:24])
    logger.info("guidance: %s", json.dumps({k: report[k] for k in list(report)[2:]}))
    write_json(report, folder / "report.json")
    write_card(config)


def load_models(folder: Path) -> tuple[ModelBundle, ModelBundle]:
    """Student and teacher of an export folder."""
    model, own = str(folder / "model"), folder / "teacher"
    return load_bundle(model), load_bundle(
        ModelSources(model, unet=str(own / "unet"), scheduler=str(own / "scheduler"))
    )


def sample_sets(
    bundle: ModelBundle,
    specs: Sequence[PromptSpec],
    settings: SamplingSettings,
    seed: int = 0,
    batch: int = 10,
) -> Tensor:
    """Pictures of each prompt with its own seed, [B, V, 3, H, W] in [0, 1]."""
    from tqdm import tqdm

    cameras = encode_cameras(bundle, DEFAULT_RIG)
    sets = []
    for start in tqdm(
        range(0, len(specs), batch), desc=f"sample {settings.num_steps} steps", mininterval=5.0
    ):
        chunk = specs[start : start + batch]
        noise = SeededNoise([seed * 100_003 + start + row for row in range(len(chunk))])
        condition = encode_text(bundle, [spec.prompt for spec in chunk])
        sets.append(
            decode_latents(bundle.vae, sample_standard(bundle, condition, cameras, noise, settings).denoised)
        )
    return torch.cat(sets)


def accuracy(judge: Judge, images: Tensor, specs: Sequence[PromptSpec]) -> dict[str, float]:
    """Shares of sets with the right family and colour, of asymmetric views with the right azimuth."""
    result = judge.judge_views(images, specs)
    asymmetric = torch.tensor([FAMILIES[spec.family].is_asymmetric for spec in specs])
    return {
        "family": result.family.float().mean().item(),
        "colour": result.colour.float().mean().item(),
        "azimuth": result.azimuth[asymmetric].float().mean().item(),
    }


def guidance_sweep(
    student: ModelBundle, judge: Judge, specs: Sequence[PromptSpec]
) -> dict[str, dict[str, float]]:
    """The student's accuracy for w = 1 … 8."""
    return {
        str(w): accuracy(judge, sample_sets(student, specs, SamplingSettings(4, float(w))), specs)
        for w in GUIDANCE_SWEEP
    }


@torch.no_grad()
def guidance_shift(student: ModelBundle, specs: Sequence[PromptSpec]) -> dict[str, float]:
    """How far the clean prediction moves from w = 1 to w = 7 at each visited timestep, relative to its size.

    ‖f(x_t, w=7) - f(x_t, w=1)‖ / ‖f(x_t, w=1)‖,   x_t from a standard trajectory at w = 7
    """
    cameras = encode_cameras(student, DEFAULT_RIG)
    condition = encode_text(student, [spec.prompt for spec in specs])
    trajectory = sample_standard(
        student, condition, cameras, SeededNoise(range(len(specs))), STUDENT_SETTINGS
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
