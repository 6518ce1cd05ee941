"""Stage `evaluate`: what teacher and student can do on held-out prompts, by the judge and the rewards.

Guidance and the zag's scales are compared on development prompts; what is used stands in
`t2mv_core/defaults.py`.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor

from t2mv_core.bundle import ModelBundle
from t2mv_core.cameras import DEFAULT_RIG
from t2mv_core.defaults import DEFAULTS
from t2mv_core.formats.atomic import replaced
from t2mv_core.formats.sources import ModelSources
from t2mv_core.images import contact_sheet
from t2mv_core.loading import load_bundle
from t2mv_core.rewards.clip_score import load_clip_score
from t2mv_core.rewards.hyperscore import load_hyperscore
from t2mv_core.samplers import SamplingSettings, count_evaluations
from t2mv_core.toybox.judge import load_judge
from t2mv_core.toybox.prompt_lists import PromptSpec

from ...algorithm.scoring import Rewards
from ...evaluation.intervals import Interval, bootstrap
from ...evaluation.measure import Instruments, Measurement, Questions, Variant, measure
from ...evaluation.report import applicable
from ..data.captions import DEV_PROMPTS, HELD_OUT_PROMPTS
from .card import SAME_EVALUATIONS, STUDENT, TEACHER, ZMV, ZMV_WITHOUT_CAMERAS, write_card
from .export import export_unet, write_json
from .networks import STUDENT_SCHEDULER, MultiviewNetworks
from .stage import StageConfig

logger = logging.getLogger(__name__)

STUDENT_SETTINGS = SamplingSettings(**DEFAULTS["toybox"].numbers())
TEACHER_SETTINGS = SamplingSettings(**DEFAULTS["toybox-teacher"].numbers())
GUIDANCE_SWEEP = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
TEACHER_GUIDANCE_SWEEP = (1.5, 2.0, 2.5, 4.0)
ZAG_SWEEP = ((1, 0.0), (1, 0.5), (1, 1.0), (2, 0.0), (2, 1.0))
"""Zigzag steps and the zag's view scale."""
LORA_FILE = "lcm_lora.safetensors"
OF_OTHER_STAGES = (LORA_FILE, "image_mvadapter.safetensors")
"""Of stages that measure them themselves."""
SEEDS = (0, 1)
NUM_HELD_OUT, NUM_DEV, NUM_TEACHER_DEV = 300, 100, 40


def run(config: StageConfig) -> None:
    """Judge both models; writes `export/report.json`, the card and contact sheets."""
    folder = config.export_dir
    instruments = load_exported_instruments(folder, config.device)
    held_out, dev = (
        (HELD_OUT_PROMPTS[:4], DEV_PROMPTS[:4])
        if config.quick
        else (HELD_OUT_PROMPTS[:NUM_HELD_OUT], DEV_PROMPTS[:NUM_DEV])
    )
    student, teacher = load_models(folder, config.device)
    memory = Memory(config.out_dir / "evaluate", fingerprint(folder))
    report: dict[str, object] = {"on_dev": measure_on_dev(student, teacher, instruments, dev, memory)}
    measured = {
        variant.name: measure_model(
            teacher if variant.name == TEACHER else student, instruments, variant, held_out, memory
        )
        for variant in held_out_variants()
    }
    for name, found in measured.items():
        write_sheet(found, held_out[:20], config.out_dir / f"{name.replace(', ', '_').replace(' ', '_')}.png")
        report[name] = summary(found)
        report[f"{name}, by kind"] = by_kind(found, held_out)
    report["headroom"] = differences(measured[TEACHER], measured[STUDENT])
    for name in (ZMV, ZMV_WITHOUT_CAMERAS):
        report[f"{name}: gain"] = differences(measured[name], measured[STUDENT])
        report[f"{name}: gain over as many evaluations"] = differences(
            measured[name], measured[SAME_EVALUATIONS]
        )
    write_json(report, folder / "report.json")
    write_card(config)


def held_out_variants() -> tuple[Variant, ...]:
    """What is reported: teacher, student, and ZMV against the same steps and the same evaluations."""
    zag = STUDENT_SETTINGS
    as_many = replace(STUDENT_SETTINGS, num_steps=count_evaluations("zmv", zag))
    return (
        Variant(TEACHER, "standard", TEACHER_SETTINGS),
        Variant(STUDENT, "standard", STUDENT_SETTINGS),
        Variant(SAME_EVALUATIONS, "standard", as_many),
        Variant(ZMV_WITHOUT_CAMERAS, "zmv", replace(zag, inverse_view_scale=0.0)),
        Variant(ZMV, "zmv", replace(zag, inverse_view_scale=1.0)),
    )


def measure_on_dev(
    student: ModelBundle,
    teacher: ModelBundle,
    instruments: Instruments,
    dev: Sequence[PromptSpec],
    memory: Memory,
) -> dict[str, object]:
    """Guidance of both models and the zag's settings, for the choice of `t2mv_core/defaults.py`."""
    sweep = [
        Variant(f"dev, w = {w:g}", "standard", replace(STUDENT_SETTINGS, guidance_scale=w))
        for w in GUIDANCE_SWEEP
    ]
    sweep += [
        Variant(
            f"dev, {steps} zigzag steps, s_inv = {scale:g}",
            "zmv",
            replace(STUDENT_SETTINGS, zigzag_steps=steps, inverse_view_scale=scale),
        )
        for steps, scale in ZAG_SWEEP
    ]
    report: dict[str, object] = {
        variant.name: summary(measure_model(student, instruments, variant, dev, memory)) for variant in sweep
    }
    for w in TEACHER_GUIDANCE_SWEEP:
        variant = Variant(f"dev, teacher, w = {w:g}", "standard", replace(TEACHER_SETTINGS, guidance_scale=w))
        report[variant.name] = summary(
            measure_model(teacher, instruments, variant, dev[:NUM_TEACHER_DEV], memory, SEEDS[:1])
        )
    return report


def measure_aware(config: StageConfig, student: MultiviewNetworks) -> None:
    """Report a student that was distilled with the adapter in place; nothing of it is shipped.

    The shipped student and the teacher it is compared with are those that stage `evaluate` measured.
    """
    folder, own = config.export_dir, config.out_dir / "aware" / "export"
    shutil.copytree(folder, own, dirs_exist_ok=True)
    export_unet(student, own / "model", STUDENT_SCHEDULER)
    instruments = load_exported_instruments(folder, config.device)
    specs = HELD_OUT_PROMPTS[: 4 if config.quick else NUM_HELD_OUT]
    aware = load_bundle(str(own / "model"), config.device)
    shipped, teacher = load_models(folder, config.device)
    variants = {variant.name: variant for variant in held_out_variants()}

    def find(model: ModelBundle, name: str, weights: Path, out: Path) -> Measurement:
        return measure_model(
            model, instruments, variants[name], specs, Memory(out / "evaluate", fingerprint(weights))
        )

    measurements = {name: find(aware, name, own, own) for name in (STUDENT, ZMV_WITHOUT_CAMERAS)}
    report = {name: summary(measured) for name, measured in measurements.items()}
    gain = differences(measurements[ZMV_WITHOUT_CAMERAS], measurements[STUDENT])
    report[f"{ZMV_WITHOUT_CAMERAS}: gain"] = gain
    for other, model in ((STUDENT, shipped), (TEACHER, teacher)):
        before = find(model, other, folder, config.out_dir)
        report[f"gain over the shipped {other}"] = differences(measurements[STUDENT], before)
    write_json(report, folder / "aware.json")
    write_card(config)


def load_models(folder: Path, device: str) -> tuple[ModelBundle, ModelBundle]:
    """Student and teacher of an export folder."""
    model, own = str(folder / "model"), folder / "teacher"
    teacher = ModelSources(model, unet=str(own / "unet"), scheduler=str(own / "scheduler"))
    return load_bundle(model, device), load_bundle(teacher, device)


@dataclass(frozen=True)
class Memory:
    """Where finished measurements are kept, and of which weights, so that a killed stage goes on."""

    folder: Path
    fingerprint: str


def fingerprint(folder: Path) -> str:
    """A hash of all weights and configurations that are measured in an export folder."""
    digest = hashlib.sha256()
    for path in sorted([*folder.rglob("*.safetensors"), *folder.rglob("*config.json")]):
        if path.name in OF_OTHER_STAGES:
            continue
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def measure_model(
    bundle: ModelBundle,
    instruments: Instruments,
    variant: Variant,
    specs: Sequence[PromptSpec],
    memory: Memory,
    seeds: tuple[int, ...] = SEEDS,
) -> Measurement:
    """Rewards and verdicts of a model on some prompts, all seeds; what was measured before is remembered."""
    questions = Questions(tuple(spec.prompt for spec in specs), seeds, specs=tuple(specs))
    path = memory.folder / f"{re.sub('[^A-Za-z0-9]+', '_', variant.name)}.pt"
    key = repr((memory.fingerprint, variant, questions))
    if path.is_file() and (kept := torch.load(path, weights_only=True))["key"] == key:
        return Measurement(variant, **kept["record"])
    measurement = measure(bundle, instruments, variant, questions)
    figures = {key: f"{entry.mean:.3f}" for key, entry in _intervals(measurement.values).items()}
    logger.info("%s: %s", variant.name, figures)
    record = {
        part.name: getattr(measurement, part.name) for part in fields(measurement) if part.name != "variant"
    }
    with replaced(path) as temporary:
        torch.save({"key": key, "record": record}, temporary)
    return measurement


def summary(measured: Measurement) -> dict[str, object]:
    """Settings, and every measure with its 95 % interval over prompts."""
    settings = measured.variant.settings
    intervals = {name: asdict(interval) for name, interval in _intervals(measured.values).items()}
    return {
        "steps": settings.num_steps,
        "guidance": settings.guidance_scale,
        "num_seeds": next(iter(measured.values.values())).shape[1],
        **intervals,
    }


def write_sheet(measured: Measurement, specs: Sequence[PromptSpec], path: Path) -> None:
    """The first prompts' views, a row each."""
    labels = [f"{azimuth:g} deg" for azimuth in DEFAULT_RIG.azimuths_deg]
    pictures = measured.images[: len(specs)] / 255
    contact_sheet(pictures, [spec.prompt for spec in specs], labels, cell_px=64).save(path)


def _intervals(values: Mapping[str, Tensor]) -> dict[str, Interval]:
    return {name: bootstrap(table) for name, table in applicable(values).items()}


def differences(first: Measurement, second: Measurement) -> dict[str, object]:
    """First minus second with equal noise, on the seeds that both have."""
    gaps = {}
    for name, table in first.values.items():
        other = second.values[name]
        count = min(table.shape[1], other.shape[1])
        gaps[name] = table[:, :count] - other[:, :count]
    return {name: asdict(interval) for name, interval in _intervals(gaps).items()}


def by_kind(measured: Measurement, specs: Sequence[PromptSpec]) -> dict[str, object]:
    """Every measure for each kind of held-out prompt."""
    kinds: dict[str, object] = {}
    for kind in dict.fromkeys(spec.kind for spec in specs):
        rows = [row for row, spec in enumerate(specs) if spec.kind == kind]
        tables = {name: table[rows] for name, table in measured.values.items()}
        kinds[kind] = {name: asdict(interval) for name, interval in _intervals(tables).items()}
    return kinds


def load_exported_instruments(folder: Path, device: str) -> Instruments:
    """Load the export folder's own scorers and judge, which need not be the shipped ones."""
    return Instruments(
        load_exported_rewards(folder, device), load_judge(folder / "judge" / "judge.safetensors")
    )


def load_exported_rewards(folder: Path, device: str) -> Rewards:
    """Load the export folder's scorers."""
    clip, hyperscore = (folder / "rewards" / f"{name}.safetensors" for name in ("clip", "hyperscore"))
    return Rewards(
        {"toybox_clip": load_clip_score(clip).to(device)},
        {"toybox_hyperscore": load_hyperscore(hyperscore).to(device)},
    )
