"""Reports of measurements: tables with intervals, paired differences, contact sheets; Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t2mv_core.images import contact_sheet

from .intervals import Interval, bootstrap
from .loras import LoraRecord
from .measure import Measurement, Questions

SHEET_PROMPTS = 10
FEW_PROMPTS = 20
FEW_WORDS = " **Few prompts**: the true intervals are wider, and the figures are not to be quoted."


def summarize(measurements: Sequence[Measurement]) -> dict[str, dict[str, Interval]]:
    """Return variant -> measure -> mean with interval over prompts."""
    return {
        m.variant.name: {name: bootstrap(values) for name, values in applicable(m.values).items()}
        for m in measurements
    }


def applicable(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the values without measures that apply to no prompt (the azimuth of symmetric objects)."""
    return {name: table for name, table in values.items() if not table.isnan().all()}


def differences(measurement: Measurement, reference: Measurement) -> dict[str, Interval]:
    """Return paired differences, prompt by prompt and seed by seed: both variants had the same noise.

    Raises:
        ValueError: the two were asked different questions.
    """
    pairs = {name: (values, reference.values[name]) for name, values in measurement.values.items()}
    if any(ours.shape != theirs.shape for ours, theirs in pairs.values()):
        raise ValueError(
            f"{measurement.variant.name!r} and {reference.variant.name!r} were measured on different "
            "prompts or seeds; measure them in one run."
        )
    return {
        name: bootstrap(gap) for name, gap in applicable({k: a - b for k, (a, b) in pairs.items()}).items()
    }


def write_report(
    measurements: Sequence[Measurement],
    questions: Questions,
    out_dir: Path,
    command: str,
    remarks: Sequence[str] = (),
    loras: Sequence[LoraRecord] = (),
) -> Path:
    """Write report.md, report.json and one contact sheet of all variants.

    Args:
        measurements: at least one; the others are compared to the first.
        questions: what they were asked.
        out_dir: created when needed.
        command: what made the report.
        remarks: sentences put above the tables.
        loras: the files of the variants.

    Returns:
        Path of report.md.

    Raises:
        OSError: the folder cannot be written.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    content = {
        "command": command,
        "prompts": list(questions.prompts),
        "seeds": list(questions.seeds),
        "remarks": list(remarks),
        "loras": [asdict(lora) for lora in loras],
        "variants": [_variant_record(m, measurements[0]) for m in measurements],
    }
    text = json.dumps(content, indent=1, default=str)  # str: of the dtype among the settings
    (out_dir / "report.json").write_text(text, encoding="utf-8")
    write_sheet(measurements, questions, out_dir / "sheet.png")
    path = out_dir / "report.md"
    remarks = [*remarks, *(_lora_remark(lora) for lora in loras)]
    path.write_text(_markdown(measurements, questions, command, remarks), encoding="utf-8")
    return path


def write_sheet(measurements: Sequence[Measurement], questions: Questions, path: Path) -> None:
    """Write pictures of the first prompts and the first seed: for each prompt one row per variant."""
    count = min(SHEET_PROMPTS, len(questions.prompts))
    images = torch.stack([m.images[:count] for m in measurements], dim=1).flatten(0, 1)
    labels = [f"{prompt} | {m.variant.name}" for prompt in questions.prompts[:count] for m in measurements]
    contact_sheet(images / 255, row_labels=labels).save(path)


def markdown_rows(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table of cells."""
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---|" * (len(header) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def markdown_table(rows: Mapping[str, Mapping[str, Interval]], first: str, sign: str = "") -> str:
    """Return a row per name and a column per measure, "mean [low, high]"; sign "+" is for differences."""
    columns = list(dict.fromkeys(name for values in rows.values() for name in values))
    return markdown_rows(
        [first, *columns],
        ([name, *(values[column].in_words(sign) for column in columns)] for name, values in rows.items()),
    )


def _lora_remark(lora: LoraRecord) -> str:
    first, *others = lora.sentences
    return "\n".join([f"**{lora.name}**: {first}.", *(f"* {sentence}." for sentence in others)])


def _variant_record(measurement: Measurement, reference: Measurement) -> dict[str, Any]:
    variant = measurement.variant
    return {
        "name": variant.name,
        "sampler": variant.sampler,
        "settings": asdict(variant.settings),
        "lora": None if variant.lora is None else str(variant.lora),
        "lora_strength": variant.lora_strength,
        "seconds_per_set": measurement.seconds_per_set,
        "evaluations_per_set": measurement.evaluations_per_set,
        "measures": {name: asdict(bootstrap(v)) for name, v in applicable(measurement.values).items()},
        "difference_to_first": {name: asdict(i) for name, i in differences(measurement, reference).items()},
    }


def _markdown(
    measurements: Sequence[Measurement], questions: Questions, command: str, remarks: Sequence[str]
) -> str:
    reference, few = measurements[0], len(questions.prompts) < FEW_PROMPTS
    gaps = {m.variant.name: differences(m, reference) for m in measurements[1:]}
    cost = [[m.variant.name, f"{m.evaluations_per_set:g}", f"{m.seconds_per_set:.3f}"] for m in measurements]
    parts = [
        "# Evaluation",
        f"Command: `{command}`",
        *remarks,
        f"Prompts: {len(questions.prompts)}, seeds: {', '.join(map(str, questions.seeds))}; mean and 95 % "
        "interval (bootstrap over prompts). Every variant was given the same noise." + few * FEW_WORDS,
        markdown_table(summarize(measurements), "variant"),
    ]
    if gaps:
        parts += [
            f"Differences to **{reference.variant.name}**, paired. Each interval is of one comparison: of "
            "many, one in twenty excludes 0 by chance. A LoRA stands for its own training, not for others.",
            markdown_table(gaps, "difference"),
        ]
    parts += [markdown_rows(["variant", "UNet evaluations per set", "seconds per set"], cost)]
    return "\n\n".join([*parts, "![samples](sheet.png)"]) + "\n"
