"""What the distillation LoRA is worth: the teacher's few steps with and without it, on held-out prompts."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from pathlib import Path

from t2mv_core.bundle import ModelBundle

from ...evaluation.measure import Instruments, Measurement, Questions, Variant, load_instruments, measure
from ...evaluation.report import differences
from ..data.captions import HELD_OUT_PROMPTS
from .evaluate import SEEDS, TEACHER_SETTINGS, load_exported_instruments, summary, write_sheet
from .export import write_json
from .stage import StageConfig

logger = logging.getLogger(__name__)

NUM_PROMPTS = 100
STEPS = (1, 2, 4)
OWN, LCM, DISTILLED = "teacher", "teacher, LCM", "teacher with the LoRA, LCM"
"""The teacher's own sampler with guidance; LCM's without guidance; the same with the LoRA."""
REPORT_NAME = "lcm_lora.json"


def measure_lora(config: StageConfig, teacher: ModelBundle, lora: Path) -> None:
    """Judge and rewards of three ways to draw in few steps, and the gain of the LoRA over both others."""
    specs = HELD_OUT_PROMPTS[: 4 if config.quick else NUM_PROMPTS]
    questions = Questions(tuple(spec.prompt for spec in specs), SEEDS, specs=tuple(specs))
    instruments = find_instruments(config)
    report: dict[str, object] = {}
    for num_steps in STEPS:
        guided = replace(TEACHER_SETTINGS, num_steps=num_steps)
        plain = replace(guided, guidance_scale=1.0)
        measurements: dict[str, Measurement] = {}
        for name, settings, path in ((OWN, guided, None), (LCM, plain, None), (DISTILLED, plain, lora)):
            bundle = teacher if name == OWN else teacher.with_solver("lcm")
            variant = Variant(f"{name}, {num_steps} steps", "standard", settings, path)
            measurements[name] = measure(bundle, instruments, variant, questions)
            report[variant.name] = summary(measurements[name])
            means = {
                measure: f"{float(values.nanmean()):.3f}"
                for measure, values in measurements[name].values.items()
            }
            logger.info("%s: %s", variant.name, means)
        for name in (OWN, LCM):
            changes = differences(measurements[DISTILLED], measurements[name])
            report[f"gain over {name}, {num_steps} steps"] = {key: asdict(x) for key, x in changes.items()}
        write_sheet(
            measurements[DISTILLED], specs[:20], config.out_dir / "lcm_lora" / f"sheet_{num_steps}.png"
        )
    write_json(report, config.export_dir / REPORT_NAME)


def find_instruments(config: StageConfig) -> Instruments:
    """The export folder's rewards and judge, or the bundled ones where nothing was exported."""
    folder = config.export_dir
    if not (folder / "judge").is_dir():
        return load_instruments(["toybox_clip"], ["toybox_hyperscore"], config.device, has_judge=True)
    return load_exported_instruments(folder, config.device)
