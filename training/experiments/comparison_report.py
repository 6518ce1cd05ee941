"""The comparison's table, the paper's claims with a verdict each, curves and pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from t2mv_core.images import contact_sheet

from ..algorithm.objectives import OBJECTIVES
from ..evaluation.intervals import bootstrap_two_way
from ..evaluation.report import applicable, markdown_rows, markdown_table
from ..run.curves import draw_panels
from .chance import largest_lambdas_by_chance
from .claims import CLAIMS, MIN_TRAININGS, claim_records, claim_text
from .comparison import Task
from .methods import ABLATIONS, METHODS
from .pictures import Point, draw_points, far_away
from .results import COLUMNS, Results, load_results, paired_difference

COSTS = {
    "sampled_sets": "sets sampled to learn from",
    "optimizer_steps": "optimizer steps",
    "sampling_evaluations": "UNet evaluations sampling",
    "update_evaluations": "updating",
    "held_out_evaluations": "between iterations",
    "seconds": "training seconds",
}
"""Of a training, by the names of `training_costs`, with the words of the report."""
SMOOTHING = 5  # iterations of a training curve's moving mean: each iteration has other prompts
TRADED = ("joint_overall", "hull_consistency", "judge_part", "judge_azimuth")


def write_comparison(tasks: Sequence[Task], out_dir: Path, command: str) -> Path:
    """Write report.md, report.json, curves.png, tradeoff.png and samples.png.

    Raises:
        ValueError: not a single result is there.
    """
    results = load_results(tasks)
    if not results:
        raise ValueError(f"There is no result in {out_dir / 'runs'} yet; run without --report-only.")
    out_dir.mkdir(parents=True, exist_ok=True)
    methods = {name: _method_record(name, results) for name in results}
    claims = {claim: list(claim_records(claim, results)) for claim in CLAIMS}
    by_chance = _lambda_by_chance(tasks, results)
    record = {"command": command, "methods": methods, "claims": claims, "largest_lambda_by_chance": by_chance}
    (out_dir / "report.json").write_text(json.dumps(record, default=asdict, indent=1), encoding="utf-8")
    _draw_curves(results, out_dir / "curves.png")
    _draw_tradeoff(methods, out_dir / "tradeoff.png")
    _draw_samples(tasks, out_dir / "samples.png")
    path = out_dir / "report.md"
    path.write_text(_markdown(tasks, methods, claims, by_chance, command), encoding="utf-8")
    return path


def _commit(run: Mapping[str, Any]) -> str:
    earlier = run.get("git") or {}  # records of 2026 and before
    return str(run.get("commit") or earlier.get("commit") or "unknown")[:10]


def _method_record(name: str, results: Results) -> dict[str, Any]:
    result = results[name]
    values = {measure: result.values[measure] for measure in COLUMNS if measure in applicable(result.values)}
    has_reference = "none" in results and name != "none"
    costs = result.costs
    return {
        "summary": METHODS[name].summary,
        "seeds": result.seeds,
        "commits": sorted({_commit(run) for run in result.runs}),
        "measures": {measure: bootstrap_two_way(table) for measure, table in values.items()},
        "difference_to_none": {
            measure: bootstrap_two_way(paired_difference(results, name, "none", measure))
            for measure in (values if has_reference else ())
        },
        "by_seed": {measure: table.nanmean(dim=0).tolist() for measure, table in values.items()},
        "evaluations_per_set": result.runs[0]["evaluations_per_set"],
        "seconds_per_set": fmean(run["seconds_per_set"] for run in result.runs),
        "training": {key: fmean(cost[key] for cost in costs) for key in COSTS} if costs else None,
        "largest_lambda": [max(t["curves"]["lambda"]) for t in result.trainings if "lambda" in t["curves"]],
    }


def _markdown(
    tasks: Sequence[Task],
    methods: Mapping[str, Any],
    claims: Mapping[str, Any],
    by_chance: tuple[float, float] | None,
    command: str,
) -> str:
    commits = sorted({commit for entry in methods.values() for commit in entry["commits"]})
    missing = [task.name for task in tasks if task.read_result() is None]
    sampling = tasks[0].config.sampling
    parts = [
        "# The comparison on the bundled model",
        f"Command: `{command}` (commit {', '.join(commits) or 'unknown'}); per-prompt values in `runs/`.",
        f"{len(tasks[0].prompts)} held-out prompts; {sampling.num_steps} steps, w = "
        f"{sampling.guidance_scale:g}. Each seed is a training of its own, measured with noise of its "
        "own, the same for all methods. 95 % intervals by bootstrap over prompts and trainings, which are "
        "too narrow with few trainings. So a claim counts as shown, or as contradicted, only when at least "
        f"{MIN_TRAININGS} trainings are there and zero lies outside of this interval and of Student's over "
        "the trainings (t). No correction is made for the number of comparisons.",
        *([f"**Not finished**: {', '.join(missing)}."] if missing else []),
        "## Results",
        _table_text(methods, "measures", ""),
        "## Differences to no RL, paired",
        _table_text(methods, "difference_to_none", "+"),
        "## Cost",
        "Seconds were taken with several runs side by side, scoring and judging included; the evaluations "
        "of the UNet are what compares. Backward passes are not counted.",
        _cost_text(methods),
        *_chance_text(by_chance),
        "## Claims",
        *(claim_text(claim, entries) for claim, entries in claims.items() if entries),
        "![curves](curves.png)",
        "![trade-off](tradeoff.png)",
        "![samples](samples.png)",
    ]
    return "\n\n".join(parts) + "\n"


def _table_text(methods: Mapping[str, Any], key: str, sign: str) -> str:
    rows = {entry["summary"]: entry[key] for entry in methods.values() if entry[key]}
    columns = [measure for measure in COLUMNS if all(measure in row for row in rows.values())]
    shown = {name: {COLUMNS[m]: row[m] for m in columns} for name, row in rows.items()}
    return markdown_table(shown, "method", sign)


def _cost_text(methods: Mapping[str, Any]) -> str:
    header = ["method", "UNet evaluations per set", "seconds per set", *COSTS.values(), "largest λ by seed"]
    rows = []
    for entry in methods.values():
        training = [f"{entry['training'][key]:.0f}" if entry["training"] else "" for key in COSTS]
        first = [entry["summary"], f"{entry['evaluations_per_set']:g}", f"{entry['seconds_per_set']:.3f}"]
        rows.append([*first, *training, ", ".join(f"{value:.2f}" for value in entry["largest_lambda"])])
    return markdown_rows(header, rows)


def _lambda_by_chance(tasks: Sequence[Task], results: Results) -> tuple[float, float] | None:
    """Return what `largest_lambdas_by_chance` gives of the untrained model, if that was measured."""
    joint = results["none"].values.get("joint_overall") if "none" in results else None
    if joint is None:
        return None
    return largest_lambdas_by_chance(joint, replace(tasks[0].config, objective="mvc_zigal"))


def _chance_text(by_chance: tuple[float, float] | None) -> list[str]:
    if by_chance is None:
        return []
    low, high = by_chance
    return [
        f"If training changed nothing, the largest λ would lie between {low:.2f} and {high:.2f} in nine of "
        "ten runs: the mean joint reward of an iteration depends on its prompts, and λ rises ten times "
        "faster than it falls."
    ]


def _draw_curves(results: Results, path: Path) -> None:
    """Draw the median over the seeds of the first trajectories' training rewards, as a moving mean.

    Ablations are left out, because their curves lie on that of the method itself; so are broken trainings.
    """
    panels = {}
    for kind in ("view", "joint"):
        curves = {}
        for method, found in results.items():
            if method in ABLATIONS:
                continue
            name = f"{kind}_reward_{OBJECTIVES[METHODS[method].objective or 'mvc_zigal'].samplers[0]}"
            if series := [t["curves"][name] for t in found.trainings if name in t["curves"]]:
                shortest = min(map(len, series))  # early stopping ends trainings at different iterations
                values = torch.tensor([one[:shortest] for one in series], dtype=torch.float64)
                typical = values.quantile(0.5, dim=0)
                curves[method] = typical.unfold(0, min(SMOOTHING, len(typical)), 1).mean(dim=1).tolist()
        far = far_away({method: Point(0.0, curve[-1]) for method, curve in curves.items()})
        title = f"{'single' if kind == 'view' else kind}-view reward in training"
        title += f" (not shown: {', '.join(far)})" * bool(far)
        panels[title] = {method: curve for method, curve in curves.items() if method not in far}
    if any(panels.values()):
        draw_panels(panels, path)


def _draw_tradeoff(methods: Mapping[str, Any], path: Path) -> None:
    """Draw what methods gain, but for ablations: consistency and the judge's shares over the view reward."""
    entries = [entry for name, entry in methods.items() if name not in ABLATIONS]
    gains = {entry["summary"]: entry["difference_to_none"] for entry in entries}
    gains = {name: gain for name, gain in gains.items() if "view_reward" in gain}
    panels = {
        f"gain in {COLUMNS[measure]}": {
            name: Point(gain["view_reward"], gain[measure]) for name, gain in gains.items() if measure in gain
        }
        for measure in TRADED
    }
    if panels := {title: points for title, points in panels.items() if points}:
        draw_points(panels, "gain in view reward", path)


def _draw_samples(tasks: Sequence[Task], path: Path) -> None:
    """Draw the first prompts with the first seed, a row per method, where the work folder has them."""
    first = [task for task in tasks if task.seed == tasks[0].seed and task.pictures_path.is_file()]
    if not first:
        return
    pictures = [torch.load(task.pictures_path, weights_only=True) for task in first]
    rows = torch.stack(pictures, dim=1).flatten(0, 1)
    prompts = tasks[0].prompts[: len(pictures[0])]
    labels = [f"{prompt} | {task.method}" for prompt in prompts for task in first]
    contact_sheet(rows / 255, row_labels=labels, cell_px=64).save(path)
