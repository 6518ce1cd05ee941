"""Does the zigzag help on the bundled model, and can it be had for fewer UNet evaluations?

python -m training.experiments.zigzag --out docs/results/zigzag

Samples the same prompts from the same noise by ways of zigzagging and prints reward, judge, UNet evaluations
and seconds per set for each, with differences to standard sampling (95 % intervals over prompts). What is
better is chosen on development prompts and measured again on held-out ones. The ideas stand in
`zigzag_ways`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from t2mv_core.bundle import ModelBundle
from t2mv_core.cameras import DEFAULT_RIG
from t2mv_core.defaults import DEFAULTS
from t2mv_core.denoiser import encode_cameras
from t2mv_core.images import decode_latents
from t2mv_core.loading import load_bundle
from t2mv_core.samplers import SamplingSettings, sample_standard
from t2mv_core.samplers.loop import StepLoop
from t2mv_core.text import encode_text
from t2mv_core.toybox.prompt_lists import find_specs
from t2mv_core.toybox.silhouettes import view_consistency

from ..algorithm.rollout import paired_noise
from ..config import home_path
from ..data.prompts import load_prompts
from ..evaluation.intervals import Interval, bootstrap
from ..evaluation.measure import (
    Instruments,
    counted_rows,
    judge_sets,
    load_instruments,
    reward_values,
    spread,
)
from ..evaluation.report import markdown_rows
from ..run.environment import describe_environment
from . import zigzag_ways
from .pictures import Point, draw_points
from .zigzag_ways import PAPERS, Way, sample, teacher_ways, ways_of

DEV_SEED, HELD_OUT_SEED = 2000, 3000
NUM_DEV, NUM_HELD_OUT, NUM_GAPS = 60, 120, 24
BATCH_SIZE = 10
SHOWN = (
    "view_reward", "joint_reward", "judge_colour", "judge_part", "judge_relation", "judge_azimuth",
    "hull_consistency",
)  # fmt: skip
FRONTS = ("view_reward", "joint_reward", "judge_part", "hull_consistency")
"""Measures of the picture."""


@torch.no_grad()
def draw(
    way: Way, bundle: ModelBundle, prompts: Sequence[str], seed: int
) -> Iterator[tuple[list[str], Tensor, int]]:
    """Yield prompts, pictures [b, V, 3, H, W] and UNet evaluations (summed over the sets) of every batch."""
    cameras = encode_cameras(bundle, DEFAULT_RIG)
    for start in range(0, len(prompts), BATCH_SIZE):
        rows = range(start, min(start + BATCH_SIZE, len(prompts)))
        batch, noise = [prompts[row] for row in rows], paired_noise(seed, 0, rows, 0)
        with counted_rows(bundle.unet) as counts:
            latents = sample(bundle, encode_text(bundle, batch), cameras, noise, way)
        yield batch, decode_latents(bundle.vae, latents), sum(counts) // DEFAULT_RIG.num_views


def measure(
    way: Way, bundle: ModelBundle, instruments: Instruments, prompts: Sequence[str], seed: int
) -> dict[str, Any]:
    """Return values [P, 1] by measure, evaluations and seconds per set."""
    parts: list[dict[str, Tensor]] = []
    evaluations, seconds, started = 0, 0.0, time.monotonic()
    for batch, drawn, count in draw(way, bundle, prompts, seed):
        seconds, evaluations = seconds + time.monotonic() - started, evaluations + count
        images = (drawn * 255).round() / 255
        values, specs = reward_values(instruments.rewards.score(images, batch)), find_specs(batch)
        if specs is not None and instruments.judge is not None:
            values |= judge_sets(instruments.judge, images, specs)
            values["hull_consistency"] = view_consistency(images, DEFAULT_RIG.azimuths_deg)
        parts.append(values)
        started = time.monotonic()
    return {
        "values": {name: torch.cat([part[name] for part in parts])[:, None] for name in parts[0]},
        "evaluations": evaluations / len(prompts),
        "seconds": seconds / len(prompts),
    }


@torch.no_grad()
def gap_rows(
    bundle: ModelBundle, prompts: Sequence[str], settings: SamplingSettings
) -> list[dict[str, float]]:
    """Return what the zag does at every step of standard trajectories: does its weaker condition matter?

    `weak`, `no_view`: how far x̃_t moves, relative to its size, when the zag's (w_inv, s_inv) goes from (w, s)
    to (1, 1) and to (1, 0). `with_state`, `with_noise`: correlation of x̃_t with the x_t the zig started from,
    and with the fresh noise the zig's action added.
    """
    cameras, condition = encode_cameras(bundle, DEFAULT_RIG), encode_text(bundle, prompts)
    noise = paired_noise(0, 0, range(len(prompts)), 0)
    trajectory = sample_standard(bundle, condition, cameras, noise, settings)
    scales = ((settings.guidance_scale, settings.view_scale), (1.0, 1.0), (1.0, 0.0))
    conditions = [replace(settings, inverse_guidance_scale=w, inverse_view_scale=s) for w, s in scales]
    rows = []
    for step, timestep in enumerate(trajectory.timesteps.tolist()):
        x, x_next = trajectory.states[:, :, step], trajectory.actions[:, :, step]
        same, weak, no_view = (
            StepLoop(bundle, condition, cameras, weaker, 0, None, None).zag(x_next, step)
            for weaker in conditions
        )
        distribution = StepLoop(bundle, condition, cameras, settings, 0, None, None).zig(x, step)
        fresh = (x_next - distribution.mean) / distribution.std
        rows.append(
            {
                "timestep": timestep,
                "weak": float((weak - same).norm() / same.norm()),
                "no_view": float((no_view - same).norm() / same.norm()),
                "with_state": correlation(weak, x),
                "with_noise": correlation(weak, fresh),
            }
        )
    return rows


def correlation(a: Tensor, b: Tensor) -> float:
    """Return Pearson's correlation over all elements."""
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def gap_table(rows: Sequence[dict[str, float]]) -> str:
    """Return `gap_rows` as Markdown."""
    header = ["t", "x̃ moves by w_inv = 1", "and by s_inv = 0", "correlation with x_t", "with the fresh noise"]
    digits = {"timestep": 0, "weak": 4, "no_view": 4, "with_state": 3, "with_noise": 3}
    return markdown_rows(header, ([f"{row[name]:.{n}f}" for name, n in digits.items()] for row in rows))


def table(found: Mapping[str, Mapping[str, Any]], reference: str) -> str:
    """Return Markdown with a row per way, differences to the reference in brackets."""
    rows = []
    for name, one in found.items():
        cells = [name, f"{one['evaluations']:.2f}", f"{one['seconds']:.3f}"]
        for shown in SHOWN:
            mean = f"{bootstrap(one['values'][shown]).mean:.4f}"
            gap = bootstrap(one["values"][shown] - found[reference]["values"][shown])
            cells.append(mean if name == reference else f"{mean} ({gap.in_words('+')})")
        rows.append(cells)
    return markdown_rows(["way", "evaluations", "seconds", *SHOWN], rows)


def choose(ways: Sequence[Way], found: Mapping[str, Mapping[str, Any]]) -> list[Way]:
    """Return what to measure on held-out prompts: the references, and the best two zigzags by view reward."""
    zigzags = [way for way in ways[1:] if way.at and way.name != PAPERS]
    best = sorted(zigzags, key=lambda way: -float(found[way.name]["values"]["view_reward"].mean()))[:2]
    return [way for way in ways if not way.at or way.name == PAPERS or way in best]


def record_of(found: Mapping[str, Mapping[str, Any]], reference: str) -> dict[str, Any]:
    """Return a group's measurements for JSON, with differences to the reference."""
    base = found[reference]["values"]
    return {
        name: {
            **{key: one[key] for key in ("evaluations", "seconds")},
            **{m: asdict(bootstrap(values)) for m, values in one["values"].items()},
            "difference": {m: asdict(bootstrap(v - base[m])) for m, v in one["values"].items()},
        }
        for name, one in found.items()
    }


def measure_group(
    group: str, ways: Sequence[Way], bundle: ModelBundle, instruments: Instruments
) -> tuple[list[str], dict[str, Any]]:
    """Measure all ways on development prompts, a student's best on held-out ones; return text and JSON."""
    dev, held_out = spread(load_prompts("dev"), NUM_DEV), spread(load_prompts("heldout"), NUM_HELD_OUT)
    reference = ways[0].name
    measurements = {way.name: measure(way, bundle, instruments, dev, DEV_SEED) for way in tqdm(ways, group)}
    gaps = gap_rows(bundle, dev[:NUM_GAPS], ways[0].settings)
    parts = [
        f"## {group}",
        f"All ways on {len(dev)} development prompts, one seed:",
        table(measurements, reference),
    ]
    parts += [f"What the zag does at every step ({NUM_GAPS} prompts):", gap_table(gaps)]
    record: dict[str, Any] = {"dev": record_of(measurements, reference), "gaps": gaps}
    if ways[0].model != "toybox":
        return parts, record
    chosen = tqdm(choose(ways, measurements), f"{group}, held out")
    measurements = {way.name: measure(way, bundle, instruments, held_out, HELD_OUT_SEED) for way in chosen}
    parts += [f"The references and the best two on {len(held_out)} held-out prompts, another seed:"]
    record["held_out"] = record_of(measurements, reference)
    return [*parts, table(measurements, reference)], record


def draw_fronts(measured: Mapping[str, Any], path: Path) -> None:
    """Draw what the ways gain on standard sampling for the evaluations that they take."""
    panels = {
        f"{measure}, against standard": {
            name: Point(way["evaluations"], Interval(**way["difference"][measure]))
            for name, way in measured.items()
        }
        for measure in FRONTS
    }
    draw_points(panels, "UNet evaluations per set", path, front=True)


def main() -> int:
    """Measure every group, write report.md and report.json."""
    parser = argparse.ArgumentParser(
        prog="python -m training.experiments.zigzag", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=home_path, default=Path("docs/results/zigzag"))
    guidances = [DEFAULTS[name].guidance_scale for name in ("toybox", "lcm-sdxl")]
    parser.add_argument("--guidance", type=float, nargs="+", default=guidances)
    arguments = parser.parse_args()
    instruments = load_instruments(["toybox_clip"], ["toybox_hyperscore"], "cpu", has_judge=True)
    groups = {f"student, w = {w:g}": ways_of(w) for w in arguments.guidance}
    groups["teacher, 8 steps"] = teacher_ways()
    command = " ".join(["python -m training.experiments.zigzag", *sys.argv[1:]])
    about = zigzag_ways.__doc__.partition("\n\n")[2].strip("\n")
    parts = ["# Zigzags on the bundled model", f"Command: `{command}`", f"```\n{about}\n```"]
    parts += ["![front](pareto.png)"]
    record: dict[str, Any] = {"command": command, "environment": describe_environment()}
    for group, ways in groups.items():
        more, record[group] = measure_group(group, ways, load_bundle(ways[0].model), instruments)
        parts += more
    arguments.out.mkdir(parents=True, exist_ok=True)
    draw_fronts(record[next(iter(groups))]["dev"], arguments.out / "pareto.png")
    (arguments.out / "report.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    (arguments.out / "report.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print("\n\n".join(parts))  # noqa: T201 - a command line
    return 0


if __name__ == "__main__":
    sys.exit(main())
