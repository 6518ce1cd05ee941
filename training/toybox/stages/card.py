"""The model card: its figures are those the stages measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .stage import StageConfig

TEACHER, STUDENT, SAME_EVALUATIONS = "teacher", "student", "student, as many evaluations as ZMV"
ZMV, ZMV_WITHOUT_CAMERAS = "student, ZMV", "student, ZMV, zag without cameras"
"""What is measured, by its name in the report."""
JUDGED = ("family", "colour", "part", "companion", "azimuth_asymmetric")

COLUMNS = {
    "judge_colour": "colour",
    "judge_part": "part colour",
    "judge_relation": "relation",
    "judge_azimuth": "azimuth",
    "hull_consistency": "hull",
    "view_reward": "view reward",
    "joint_reward": "joint reward",
}
_TEXT = """# Model card: the toybox

A text-to-multiview latent diffusion model built as the published stack is, small enough for a CPU. This
project trained it from scratch on pictures that it renders itself: 22 families of objects, 10 colours, a part
that may have its own colour, for 11 families a second object ("a red mug with a blue handle on a green
plate"); 64 x 64 pixels, six orthographic views. It draws those objects and nothing else: mug, teapot, chair,
table, bench, sofa, lamp, hammer, umbrella, robot, house, windmill, tree, mushroom, snowman, duck, dog,
rocket, airplane, car, truck, boat. It contains no
picture or text of anybody else; the byte-pair vocabulary is CLIP's, read from the installed open_clip
package. Licence: Apache-2.0.

## Recipe

`python -m training.toybox all && cp -r runs/toybox/export/. t2mv_core/toybox/` (seed {seed}; every stage
resumes after a kill; on another machine rounding, and so the weights, differ slightly).

* The **base** (SDXL's part) learns single pictures with captions; it knows no cameras.
* The **adapter** (MV-Adapter's part) is trained on the frozen base. Both together, with classifier-free
  guidance, are the **teacher**.
* The **student** (LCM-SDXL's part) is distilled from the base on single pictures and meets the adapter at
  inference only.
* The noise schedule is shifted so that the first state of 16 x 16 latents keeps as much of the clean latent
  as SDXL's 96 x 96 does (`t2mv_snr_shift` 0.22; docs/method.md, section 11).

Files and numbers of parameters:

{parts}

## Measured

{num_prompts} held-out prompts: a quarter on combinations that training has seen, a quarter each on (family,
colour) pairs, part colours and second objects' colours that it has not. Number of seeds: {num_seeds}, of the
teacher {teacher_seeds}. The judge is a convolutional classifier of another architecture than the rewards, and
never a reward; part colour and relation are judged where the prompt names one, azimuth on families that have
a front; hull is the agreement of the silhouettes with their visual hull. Brackets are 95 % intervals (a
bootstrap over prompts). Settings are those of `t2mv_core/defaults.py`; how others compare on development
prompts stands below.

{models}

Headroom, teacher minus student, is what the few steps cost; reinforcement learning may gain more, as the
teacher errs, too. Gains of ZMV are with equal noise:

{gains}

On {judge_scenes} held-out renders the judge itself is right in: {judge}. VAE: {psnr:.1f} dB.

### The student by kind of prompt

Intervals of this and the next table: `report.json`.

{kinds}

### Settings, on {num_dev} development prompts (the teacher's: {num_teacher_dev}, one seed)

{dev}

### What it cannot do

* Other objects, several sentences, numbers, styles; any colour that is not one of the ten.
* Part colours are right in {part:.0%} of the prompts that name one, second objects in {relation:.0%}.
* The joint reward hardly sees an object of other proportions ({proportion} of pairs ordered rightly) or
  another one of the same family and colour ({alike}); the reward `geometry` sees both.

{aware}{student_lora}{pictures}### Rewards

On held-out renders, *clip* scores the true caption above a false one in this share of cases: {clip}. Each
head of *hyperscore* orders two damaged versions of a scene rightly in this share: {hyperscore}. All figures:
`rewards/metrics.json`; what the judge finds hardest: `judge/metrics.json`.
"""

_AWARE = """### The other student: distilled with the adapter in place

The same steps, settings, prompts and seeds, for a student distilled on trajectories of all six views
(`python -m training.toybox aware`). It is not shipped, because LCM-SDXL was made otherwise.

{rows}

"""
_STUDENT_LORA = """### The distillation LoRA

`lcm_lora.safetensors` is a small LCM-LoRA for the teacher (`python -m training.toybox lcm_lora`, 15 minutes
on one core), to be used below a trained LoRA (`model.base_loras`). The same prompts, seeds and noise; the
teacher's own sampler uses guidance {guidance:g}, which doubles its UNet evaluations. Intervals:
`lcm_lora.json`.

{rows}

"""


_PICTURES = """### Views of a picture

`image_mvadapter.safetensors` draws the views of a picture (`python -m training.toybox image_adapter`), for
teacher and student. {count} held-out objects, {teacher_count} for the teacher; each picture shows one from a
side of the rig, under other light, cut out and framed. "generic" is the prompt "high quality", "family" names
the object alone, "caption" everything; "contradiction" names another colour than the picture's, and is judged
by the picture. "Kept" is family and all colours; PSNR is against the true renders, of the picture's own side
in the last column; the text model had the whole caption. `ref_scale` is 1 where none is stated; the default
of toybox-image is 1.5, chosen on the other objects below. Intervals: `image_mvadapter.json`.

{rows}

On {num_dev} other objects, generic prompt, by guidance and `ref_scale`. More of it gives the student what
guidance, an input of its UNet that means the text, cannot: the picture's colours, black above all, which
otherwise comes out brown.

{dev}

"""
_PICTURE_COLUMNS = {
    "kept": "kept",
    "judge_family": "family",
    **{name: COLUMNS[name] for name in COLUMNS if name.startswith("judge")},
    "hull_consistency": "hull",
    "psnr": "PSNR, dB",
    "psnr_own_side": "own side, dB",
}


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
    names = (TEACHER, STUDENT, SAME_EVALUATIONS, ZMV, ZMV_WITHOUT_CAMERAS)
    models = {
        f"{name}; {report[name]['steps']} steps, w {report[name]['guidance']:g}": report[name]
        for name in names
    }
    gains = {"headroom": report["headroom"]} | {key: report[key] for key in report if ": gain" in key}
    on_dev = report["on_dev"]
    card = _TEXT.format(
        seed=config.seed,
        parts="\n".join(_part_rows(folder)),
        num_prompts=report[STUDENT]["judge_family"]["count"],
        num_seeds=report[STUDENT]["num_seeds"],
        teacher_seeds=report[TEACHER]["num_seeds"],
        models=_table("model", models),
        gains=_table("difference", gains),
        kinds=_table("kind", report[f"{STUDENT}, by kind"], has_interval=False),
        judge_scenes=judge["num_scenes"],
        judge=", ".join(f"{name} {judge[name]:.1%}" for name in JUDGED),
        psnr=vae["psnr_db"],
        num_dev=next(iter(on_dev.values()))["judge_family"]["count"],
        num_teacher_dev=next(reversed(on_dev.values()))["judge_family"]["count"],
        dev=_table(
            "settings", {name.removeprefix("dev, "): x for name, x in on_dev.items()}, has_interval=False
        ),
        part=report[STUDENT]["judge_part"]["mean"],
        relation=report[STUDENT]["judge_relation"]["mean"],
        alike=_share(rewards["hyperscore"], "alike"),
        proportion=_share(rewards["hyperscore"], "proportion"),
        aware=_aware(folder / "aware.json"),
        student_lora=_student_lora(folder / "lcm_lora.json"),
        pictures=_pictures(folder / "image_mvadapter.json"),
        clip=_pairwise(rewards["clip"]),
        hyperscore=_pairwise(rewards["hyperscore"]),
    )
    (folder / "MODEL_CARD.md").write_text(card, encoding="utf-8")


def _share(figures: dict[str, float], name: str) -> str:
    """A share in percent; few scenes, as a quick recipe has, may hold none to ask about."""
    return f"{figures[name]:.0%}" if name in figures else "not asked"


def _aware(path: Path) -> str:
    """The section on the student that knows the adapter; empty where its stage has not run."""
    if not path.is_file():
        return ""
    return _AWARE.format(rows=_table("what", json.loads(path.read_text())))


def _student_lora(path: Path) -> str:
    """The section on the distillation LoRA; empty where its stage has not run."""
    if not path.is_file():
        return ""
    report = json.loads(path.read_text())
    names = [name.rpartition(", ") for name in report]
    rows = {
        f"{way}, {steps}": report[f"{way}, {steps}"] for way, _, steps in names if not way.startswith("gain")
    }
    guidance = max(figures.get("guidance", 0) for figures in report.values())
    return _STUDENT_LORA.format(guidance=guidance, rows=_table("way", rows, has_interval=False))


def _pictures(path: Path) -> str:
    """The section on image to multiview; empty where its stage has not run."""
    if not path.is_file():
        return ""
    report = json.loads(path.read_text())
    dev = {name.removeprefix("dev, "): row for name, row in report.items() if name.startswith("dev, ")}
    rows = {name: row for name, row in report.items() if not name.startswith("dev, ")}
    return _PICTURES.format(
        count=next(iter(rows.values()))["kept"]["count"],
        teacher_count=min(row["kept"]["count"] for row in rows.values()),
        num_dev=next(iter(dev.values()))["kept"]["count"],
        rows=_table("what", rows, has_interval=False, columns=_PICTURE_COLUMNS),
        dev=_table("what", dev, has_interval=False, columns=_PICTURE_COLUMNS),
    )


def _pairwise(figures: dict[str, float]) -> str:
    """Return "name 0.998" for each share of pairs that a reward orders rightly."""
    shares = {k.removeprefix("pairwise_"): v for k, v in figures.items() if k.startswith("pairwise_")}
    return ", ".join(f"{name} {share:.3f}" for name, share in shares.items())


def _table(
    first: str, rows: dict[str, Any], has_interval: bool = True, columns: Mapping[str, str] = COLUMNS
) -> str:
    """A row per entry, a column per measure."""
    lines = [f"| {first} | " + " | ".join(columns.values()) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | {_cells(figures, has_interval, columns)} |" for name, figures in rows.items()]
    return "\n".join(lines)


def _cells(figures: dict[str, Any], has_interval: bool = True, columns: Mapping[str, str] = COLUMNS) -> str:
    """Shares in percent, others as numbers; empty where a measure does not apply."""
    cells = []
    for name in columns:
        if name not in figures:
            cells.append("")
            continue
        form = ".1%" if name.startswith("judge") or name == "kept" else ".1f" if "psnr" in name else ".3f"
        known = [figures[name][key] for key in ("mean", "low", "high")]
        mean, low, high = ("" if value is None else format(value, form) for value in known)
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
        "image_mvadapter.safetensors": "the same with reference attention, for views of a picture",
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
