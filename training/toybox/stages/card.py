"""The model card: its figures are those the stages measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .stage import StageConfig

_TEXT = """# Model card: the toybox

A text-to-multiview latent diffusion model of SDXL's and MV-Adapter's architecture, small enough for a CPU.
This project trained it from scratch on pictures it renders itself: 22 families of objects, 10 colours,
64 x 64 pixels, six orthographic views. It draws those objects and nothing else. No picture or text of anybody
else is in it; the byte-pair vocabulary is CLIP's, read from the installed open_clip package. Licence:
Apache-2.0.

## Recipe

`python -m training.toybox all && cp -r runs/toybox/export/. t2mv_core/toybox/` (seed {seed}; each stage
resumes after a kill; on another machine the floating-point sums, and so the weights, differ slightly).

| part | what it is | parameters |
|---|---|---|
{parts}

## Measured

Judge: a convolutional classifier with other seeds and another architecture than the rewards, never a reward.
Held-out prompts: {num_prompts} whose (family, colour) pair or part colour never occurs in training,
{num_seeds} seeds each. In brackets the 95 % interval (bootstrap over prompts). Guidance was chosen on
development prompts; that predicted latents are not clipped when sampling, on those and on 54 prompts with the
held-out pairs in other words and with other part colours.

| model | steps | guidance | family | colour | azimuth (asymmetric families) | view reward | joint reward |
|---|---|---|---|---|---|---|---|
{models}
{differences}

The shortfall, teacher minus student with standard sampling on the same prompts, is what reinforcement
learning is for.

The judge itself, on {judge_scenes} held-out rendered scenes: family {judge_family:.1%}, colour
{judge_colour:.1%}, azimuth {judge_azimuth:.1%} on asymmetric families.

VAE: {psnr:.1f} dB on held-out renders.

### The student's use of guidance

On {num_dev} development prompts, 4 steps, by guidance w:

| w | family | colour | azimuth | view reward | joint reward |
|---|---|---|---|---|---|
{sweep}

How far the clean prediction moves from w = 1 to w = 7, relative to its size, at each visited timestep:
{shift}.

{student_lora}### Rewards

Agreement with known damage on held-out scenes (see `rewards/metrics.json`):

```json
{rewards}
```

Colours and families the judge finds hardest: `judge/metrics.json`.
"""

_STUDENT_LORA = """### The distillation LoRA

`lcm_lora.safetensors` on the teacher, sampled as LCM without guidance: an LCM-LoRA in small
(`python -m training.toybox lcm_lora`, a quarter of an hour on one core), to be used below a trained LoRA
(`model.base_loras`). Against the teacher's own sampler at guidance {guidance:g}, which evaluates the UNet
twice a step, and against the teacher sampled as LCM without it; the same prompts, seeds and noise. It is
for one or two steps: this teacher is small and its data are simple, at four steps it needs no distillation.

| way | steps | family | colour | azimuth | view reward | joint reward |
|---|---|---|---|---|---|---|
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
    sweep = [f"| {w} | {_cells(figures, has_interval=False)} |" for w, figures in by_guidance.items()]
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
        rewards=json.dumps(_rounded(rewards), indent=1),
    )
    (folder / "MODEL_CARD.md").write_text(card)


def _student_lora(path: Path) -> str:
    """The section on the distillation LoRA; empty where its stage has not run."""
    if not path.is_file():
        return ""
    report = json.loads(path.read_text())
    names = [name.rpartition(", ") for name in report]
    rows = [
        f"| {way} | {steps.split()[0]} | {_cells(report[f'{way}, {steps}'])} |" for way, _, steps in names
    ]
    guidance = max(figures.get("guidance", 0) for figures in report.values())
    return _STUDENT_LORA.format(guidance=guidance, rows="\n".join(rows))


def _rounded(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: {key: round(value, 3) for key, value in group.items()} for name, group in figures.items()}


def _cells(figures: dict[str, Any], has_interval: bool = True) -> str:
    """Judge's shares in percent and rewards, as cells of a table row."""
    cells = []
    for name in ("judge_family", "judge_colour", "judge_azimuth", "view_reward", "joint_reward"):
        form = ".1%" if name.startswith("judge") else ".3f"
        mean, low, high = (format(figures[name][key], form) for key in ("mean", "low", "high"))
        cells.append(f"{mean} [{low}, {high}]" if has_interval else mean)
    return " | ".join(cells)


def _part_rows(folder: Path) -> list[str]:
    from safetensors import safe_open

    parts = {
        "model/unet": "student UNet, few-step, guidance embedding",
        "teacher/unet": "teacher UNet, classifier-free guidance: the weights that are not the student's too",
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
        rows.append(f"| `{part}` | {what} | {size:,} |")
    return rows


def _product(shape: list[int]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size
