"""The model card: its figures are those the stages measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .stage import StageConfig

SHOWN_GUIDANCE = ("1", "2", "3", "5", "7")
_TEXT = """# Model card: the toybox

A text-to-multiview latent diffusion model with the architecture of SDXL and MV-Adapter, small enough for a
CPU. This project trained it from scratch on pictures that it renders itself: 22 families of objects, 10
colours, 64 x 64 pixels, six orthographic views. It draws those objects and nothing else. It contains no
picture or text of anybody else; the byte-pair vocabulary is CLIP's, read from the installed open_clip
package. Licence: Apache-2.0.

## Recipe

`python -m training.toybox all && cp -r runs/toybox/export/. t2mv_core/toybox/` (seed {seed}; every stage
resumes after a kill; on another machine rounding, and so the weights, differ slightly).

Files and numbers of parameters:

{parts}

## Measured

{num_prompts} held-out prompts, whose (family, colour) pair or part colour never occurs in training,
{num_seeds} seeds each. The judge is a convolutional classifier of another architecture than the rewards,
and never a reward. Brackets are 95 % intervals (bootstrap over prompts). Guidance was chosen on development
prompts.

| model | steps | guidance | colour | azimuth | view reward | joint reward |
|---|---|---|---|---|---|---|
{models}
{differences}

The shortfall, teacher minus student, is what reinforcement learning is for. Azimuth is judged on asymmetric
families. On {judge_scenes} held-out renders the judge itself is right in {judge_family:.1%} (family),
{judge_colour:.1%} (colour) and {judge_azimuth:.1%} (azimuth). VAE: {psnr:.1f} dB.

### The student's use of guidance

On {num_dev} development prompts, 4 steps:

| w | colour | azimuth | view reward | joint reward |
|---|---|---|---|---|
{sweep}

From w = 1 to w = 7 the clean prediction moves by this share of its size:
{shift}.

{student_lora}### Rewards

On held-out renders, *clip* scores the true caption above a false one in this share of cases: {clip}. Each
head of *hyperscore* orders two damaged versions of a scene rightly in this share: {hyperscore}. It does not
see other proportions (another object of the same family and colour): {proportion:.3f}, chance. All figures:
`rewards/metrics.json`; what the judge finds hardest: `judge/metrics.json`.
"""

_STUDENT_LORA = """### The distillation LoRA

`lcm_lora.safetensors` is a small LCM-LoRA for the teacher (`python -m training.toybox lcm_lora`, 15 minutes
on one core), to be used below a trained LoRA (`model.base_loras`). The same prompts, seeds and noise; the
teacher's own sampler uses guidance {guidance:g}, which doubles its UNet evaluations. The LoRA is for one or
two steps: at four this teacher needs none. Intervals: `lcm_lora.json`.

| way | steps | colour | azimuth | view reward | joint reward |
|---|---|---|---|---|---|
{rows}

"""


def write_card(config: StageConfig) -> None:
    """Write `export/MODEL_CARD.md` from the reports beside it."""
    folder = config.export_dir
    report, judge, rewards, vae = (
        json.loads(path.read_text())
        for path in (
            folder / "report.json",
            folder / "judge" / "metrics.json",
            folder / "rewards" / "metrics.json",
            config.out_dir / "vae" / "report.json",
        )
    )
    models = [
        f"| {name} | {report[name]['steps']} | {report[name]['guidance']:g} | {_cells(report[name])} |"
        for name in ("teacher", "student", "student, ZMV")
    ]
    by_guidance = report["student_by_guidance"]
    sweep = [
        f"| {w} | {_cells(figures, has_interval=False)} |"
        for w, figures in by_guidance.items()
        if w in SHOWN_GUIDANCE
    ]
    shift = ", ".join(
        f"{value:.3f} at t = {step}" for step, value in report["student_shift_w1_to_w7"].items()
    )
    card = _TEXT.format(
        seed=config.seed,
        parts="\n".join(_part_rows(folder)),
        num_prompts=report["student"]["judge_family"]["count"],
        num_seeds=report["student"]["num_seeds"],
        models="\n".join(models),
        differences="\n".join(
            f"| {name} | | | {_cells(report[key])} |"
            for name, key in (("shortfall", "shortfall"), ("gain by ZMV", "zmv_gain"))
        ),
        num_dev=by_guidance["1"]["judge_family"]["count"],
        judge_scenes=judge["num_scenes"],
        judge_family=judge["family"],
        judge_colour=judge["colour"],
        judge_azimuth=judge["azimuth_asymmetric"],
        psnr=vae["psnr_db"],
        sweep="\n".join(sweep),
        shift=shift,
        student_lora=_student_lora(folder / "lcm_lora.json"),
        clip=_pairwise(rewards["clip"]),
        hyperscore=_pairwise(rewards["hyperscore"]),
        proportion=rewards["hyperscore"]["seen_geometry_proportion"],
    )
    (folder / "MODEL_CARD.md").write_text(card, encoding="utf-8")


def _student_lora(path: Path) -> str:
    """The section on the distillation LoRA; empty where its stage has not run."""
    if not path.is_file():
        return ""
    report = json.loads(path.read_text())
    names = [name.rpartition(", ") for name in report]
    rows = [
        f"| {way} | {steps.split()[0]} | {_cells(report[f'{way}, {steps}'], has_interval=False)} |"
        for way, _, steps in names
        if not way.startswith("gain")
    ]
    guidance = max(figures.get("guidance", 0) for figures in report.values())
    return _STUDENT_LORA.format(guidance=guidance, rows="\n".join(rows))


def _pairwise(figures: dict[str, float]) -> str:
    """Return "name 0.998" for each share of pairs that a reward orders rightly."""
    shares = {k.removeprefix("pairwise_"): v for k, v in figures.items() if k.startswith("pairwise_")}
    return ", ".join(f"{name} {share:.3f}" for name, share in shares.items())


def _cells(figures: dict[str, Any], has_interval: bool = True) -> str:
    """Judge's shares in percent and rewards, as cells of a table row."""
    cells = []
    for name in ("judge_colour", "judge_azimuth", "view_reward", "joint_reward"):
        form = ".1%" if name.startswith("judge") else ".3f"
        mean, low, high = (format(figures[name][key], form) for key in ("mean", "low", "high"))
        cells.append(f"{mean} [{low}, {high}]" if has_interval else mean)
    return " | ".join(cells)


def _part_rows(folder: Path) -> list[str]:
    from safetensors import safe_open

    parts = {
        "model/unet": "student UNet, few-step, guidance embedding",
        "teacher/unet": "teacher UNet with classifier-free guidance, where it differs from the student",
        "mvadapter.safetensors": "multiview attention and camera encoder, shared",
        "model/text_encoder": "first text encoder, shared",
        "model/text_encoder_2": "second text encoder, shared",
        "model/vae": "autoencoder, factor 4, 4 channels, shared",
        "lcm_lora.safetensors": "distillation LoRA for the teacher, rank 6",
        "rewards/clip.safetensors": "single-view reward",
        "rewards/hyperscore.safetensors": "joint-view reward",
        "judge/judge.safetensors": "judge",
    }
    rows = []
    for part, what in parts.items():
        path = folder / part
        if not path.exists():  # the LoRA's stage is not needed for the rest
            continue
        file = path if path.is_file() else next(path.glob("*.safetensors"))
        with safe_open(file, framework="np") as opened:
            size = sum(_product(opened.get_slice(key).get_shape()) for key in opened.keys())
        rows.append(f"* `{part}`: {what}; {size:,}")
    return rows


def _product(shape: list[int]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size
