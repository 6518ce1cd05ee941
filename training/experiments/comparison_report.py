"""The comparison's table, the paper's claims with a verdict each, curves and pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..evaluation.intervals import Interval, bootstrap_two_way
from ..run.curves import draw_panels
from .comparison import METHODS, Task

COLUMNS = {
    "view_reward": "view reward",
    "joint_alignment": "alignment",
    "joint_geometry": "geometry",
    "joint_texture": "texture",
    "joint_overall": "overall (joint reward)",
    "judge_family": "judge: family",
    "judge_colour": "judge: colour",
    "judge_azimuth": "judge: azimuth",
    "hull_consistency": "hull consistency",
}
SMOOTHING = 5  # iterations of a training curve's moving mean: each iteration has other prompts


@dataclass(frozen=True)
class Comparison:
    """A difference a claim predicts.

    Attributes:
        first: method.
        second: method it is compared with.
        measure: of COLUMNS.
        sign: +1 when the claim says that the first is higher, -1 for lower.
    """

    first: str
    second: str
    measure: str
    sign: int = 1


CLAIMS: dict[str, tuple[Comparison, ...]] = {
    "ZMV beats standard sampling at the same number of steps": tuple(
        Comparison("none_zmv", "none", m)
        for m in ("view_reward", "joint_overall", "judge_colour", "judge_azimuth", "hull_consistency")
    ),
    "Learning from the zigzag advantage beats learning from two standard samples": tuple(
        Comparison("mvc_zigal", other, m)
        for other in ("reward_difference", "ppo")
        for m in ("view_reward", "joint_overall")
    ),
    "Joint-only training under-optimises the views": (
        Comparison("zigal_joint", "zigal_view", "view_reward", -1),
        Comparison("zigal_joint", "mvc_zigal", "view_reward", -1),
    ),
    "View-only training lets consistency fall": (
        Comparison("zigal_view", "none", "joint_overall", -1),
        Comparison("zigal_view", "none", "joint_geometry", -1),
        Comparison("zigal_view", "none", "hull_consistency", -1),
        Comparison("zigal_view", "mvc_zigal", "joint_overall", -1),
    ),
    "The constrained objective raises both": (
        Comparison("mvc_zigal", "none", "view_reward"),
        Comparison("mvc_zigal", "none", "joint_overall"),
        Comparison("mvc_zigal", "zigal_weighted", "view_reward"),
        Comparison("mvc_zigal", "zigal_weighted", "joint_overall"),
    ),
    "The LoRA gives at standard cost what ZMV costs more for": (
        Comparison("mvc_zigal", "none_zmv", "view_reward"),
        Comparison("mvc_zigal", "none_zmv", "joint_overall"),
    ),
}


@dataclass(frozen=True)
class MethodResult:
    """All results of one method.

    Attributes:
        values: measure -> [P, S], NaN where a measure does not apply.
        runs: the result files' contents, seed by seed.
    """

    values: dict[str, Tensor]
    runs: list[dict[str, Any]]


def load_results(tasks: Sequence[Task]) -> dict[str, MethodResult]:
    """Results by method, of the tasks that are done."""
    done: dict[str, list[dict[str, Any]]] = {}
    for task in tasks:
        result = task.read_result()
        if result is not None:
            done.setdefault(task.method, []).append(result)
    return {
        method: MethodResult({name: _table(runs, name) for name in runs[0]["values"]}, runs)
        for method, runs in sorted(done.items(), key=lambda item: list(METHODS).index(item[0]))
    }


def paired_difference(results: Mapping[str, MethodResult], first: str, second: str, measure: str) -> Tensor:
    """First minus second by prompt and by the seeds that both have, [P, S]: both were given the same noise.

    Raises:
        ValueError: no seed in common.
    """
    a, b = (results[method].values[measure] for method in (first, second))
    seeds = [run["seed"] for run in results[first].runs]
    shared = [run["seed"] for run in results[second].runs if run["seed"] in seeds]
    if not shared:
        raise ValueError(f"{first} and {second} have no seed in common; run both with the same --seeds.")
    pick = [[run["seed"] for run in results[m].runs].index(s) for m in (first, second) for s in shared]
    half = len(shared)
    return a[:, pick[:half]] - b[:, pick[half:]]


def difference(results: Mapping[str, MethodResult], first: str, second: str, measure: str) -> Interval:
    """Interval of `paired_difference`."""
    return bootstrap_two_way(paired_difference(results, first, second, measure))


def verdict(change: Interval, by_seed: Sequence[float], sign: int) -> str:
    """What a difference says about a claimed sign: all seeds and the interval must agree."""
    if not change.excludes_zero or len({mean > 0 for mean in by_seed}) > 1:
        return "not shown"
    return "shown" if change.mean * sign > 0 else "contradicted"


def write_comparison(tasks: Sequence[Task], out_dir: Path, command: str) -> Path:
    """Write report.md, report.json, curves.png and samples.png.

    Raises:
        ValueError: not a single result is there.
    """
    results = load_results(tasks)
    if not results:
        raise ValueError(f"There is no result in {out_dir / 'runs'} yet; run without --report-only.")
    out_dir.mkdir(parents=True, exist_ok=True)
    record = {
        "command": command,
        "methods": {name: _method_record(name, results) for name in results},
        "claims": {claim: _claim_records(claim, results) for claim in CLAIMS},
    }
    (out_dir / "report.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    _draw_curves(results, out_dir / "curves.png")
    _draw_samples(tasks, out_dir / "samples.png")
    path = out_dir / "report.md"
    path.write_text(_markdown(tasks, results, record, command), encoding="utf-8")
    return path


def _commit(run: Mapping[str, Any]) -> str:
    git = run["git"] or {"commit": "unknown", "is_dirty": False}
    return str(git["commit"])[:10] + (" with changes" if git["is_dirty"] else "")


def _table(runs: Sequence[dict[str, Any]], measure: str) -> Tensor:
    rows = [[float("nan") if x is None else x for x in run["values"][measure]] for run in runs]
    return torch.tensor(rows, dtype=torch.float64).T


def _method_record(name: str, results: Mapping[str, MethodResult]) -> dict[str, Any]:
    found = results[name]
    columns = [m for m in COLUMNS if m in found.values and not found.values[m].isnan().all()]
    trainings = [run["training"] for run in found.runs if run["training"] is not None]
    return {
        "summary": METHODS[name].summary,
        "seeds": [run["seed"] for run in found.runs],
        "commits": sorted({_commit(run) for run in found.runs}),
        "measures": {m: asdict(bootstrap_two_way(found.values[m])) for m in columns},
        "difference_to_none": {
            m: asdict(difference(results, name, "none", m))
            for m in columns
            if "none" in results and name != "none"
        },
        "by_seed": {m: found.values[m].nanmean(dim=0).tolist() for m in columns},
        "evaluations_per_set": found.runs[0]["evaluations_per_set"],
        "seconds_per_set": _mean([run["seconds_per_set"] for run in found.runs]),
        "training": {
            key: _mean([training[key] for training in trainings])
            for key in (
                "sampled_sets",
                "optimizer_steps",
                "sampling_evaluations",
                "update_evaluations",
                "seconds",
            )
        }
        if trainings
        else None,
    }


def _claim_records(claim: str, results: Mapping[str, MethodResult]) -> list[dict[str, Any]]:
    records = []
    for part in CLAIMS[claim]:
        both = [results[name] for name in (part.first, part.second) if name in results]
        if len(both) == 2 and all(part.measure in found.values for found in both):
            gaps = paired_difference(results, part.first, part.second, part.measure)
            change, by_seed = bootstrap_two_way(gaps), gaps.nanmean(dim=0).tolist()
            word = verdict(change, by_seed, part.sign)
            records.append({**asdict(part), **asdict(change), "by_seed": by_seed, "verdict": word})
    return records


def _markdown(
    tasks: Sequence[Task], results: Mapping[str, MethodResult], record: Mapping[str, Any], command: str
) -> str:
    methods = record["methods"]
    commits = sorted({commit for entry in methods.values() for commit in entry["commits"]})
    missing = [task.name for task in tasks if task.read_result() is None]
    config = tasks[0].config
    parts = [
        "# The comparison on the bundled model",
        f"Command: `{command}` (commit {', '.join(commits) or 'unknown'}); per-prompt values in `runs/`.",
        f"{len(tasks[0].prompts)} held-out prompts; {config.sampling.num_steps} steps, w = "
        f"{config.sampling.guidance_scale:g}. Each seed is a training of its own, measured with noise of its "
        "own, the same for all methods. 95 % intervals by bootstrap over prompts and trainings; three "
        "trainings say little about their spread, so the intervals are somewhat too narrow, and no "
        "correction is made for the number of comparisons. A claim counts as shown, or as contradicted, only "
        "when its interval has no zero and all seeds agree.",
        *([f"**Not finished**: {', '.join(missing)}."] if missing else []),
        "## Results",
        _table_text(methods, "measures", 4),
        "## Differences to no RL, paired",
        _table_text({k: v for k, v in methods.items() if v["difference_to_none"]}, "difference_to_none", 4),
        "## Cost",
        "Seconds were taken with several runs side by side, scoring and judging included; the evaluations "
        "of the UNet are what compares.",
        _cost_text(methods),
        "## Claims",
        *(_claim_text(claim, entries) for claim, entries in record["claims"].items() if entries),
        "![curves](curves.png)",
        "![samples](samples.png)",
    ]
    return "\n\n".join(parts) + "\n"


def _table_text(methods: Mapping[str, Any], key: str, digits: int) -> str:
    columns = [m for m in COLUMNS if all(m in entry[key] for entry in methods.values())]
    lines = ["| method | " + " | ".join(COLUMNS[m] for m in columns) + " |", "|---|" + "---|" * len(columns)]
    sign = "+" if key.startswith("difference") else ""
    for entry in methods.values():
        cells = [
            f"{i['mean']:{sign}.{digits}f} [{i['low']:{sign}.{digits}f}, {i['high']:{sign}.{digits}f}]"
            for i in (entry[key][m] for m in columns)
        ]
        lines.append(f"| {entry['summary']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cost_text(methods: Mapping[str, Any]) -> str:
    lines = [
        "| method | UNet evaluations per set | seconds per set | sets sampled in training | optimizer steps "
        "| UNet evaluations sampling / updating | training seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in methods.values():
        cells = [entry["summary"], f"{entry['evaluations_per_set']}", f"{entry['seconds_per_set']:.3f}"]
        training = entry["training"]
        if training is None:
            cells += ["", "", "", ""]
        else:
            evaluations = f"{training['sampling_evaluations']:.0f} / {training['update_evaluations']:.0f}"
            cells += [f"{training['sampled_sets']:.0f}", f"{training['optimizer_steps']:.0f}", evaluations]
            cells += [f"{training['seconds']:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _claim_text(claim: str, entries: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        f"* {entry['first']} against {entry['second']}, {COLUMNS[entry['measure']]}: {entry['mean']:+.4f} "
        f"[{entry['low']:+.4f}, {entry['high']:+.4f}], by seed "
        f"{', '.join(f'{mean:+.4f}' for mean in entry['by_seed'])}: **{entry['verdict']}**"
        for entry in entries
    ]
    return "\n".join([f"**{claim}**", "", *lines])


def _draw_curves(results: Mapping[str, MethodResult], path: Path) -> None:
    """Mean training rewards over the seeds, standard sampling, as a moving mean."""
    panels = {}
    for name, title in (
        ("view_reward_standard", "single-view reward in training"),
        ("joint_reward_standard", "joint-view reward in training"),
    ):
        curves = {}
        for method, found in results.items():
            series = [run["training"]["curves"][name] for run in found.runs if run["training"] is not None]
            if series:
                mean = torch.tensor(series, dtype=torch.float64).mean(dim=0)
                curves[method] = mean.unfold(0, min(SMOOTHING, len(mean)), 1).mean(dim=1).tolist()
        panels[title] = curves
    if any(panels.values()):
        draw_panels(panels, path)


def _draw_samples(tasks: Sequence[Task], path: Path) -> None:
    """The first prompts with the first seed, a row per method; only where the work folder has pictures."""
    from t2mv_core.images import contact_sheet

    first = [task for task in tasks if task.seed == tasks[0].seed]
    files = {task.method: task.work_dir / f"{task.name}.pictures.pt" for task in first}
    pictures = {m: torch.load(file, weights_only=True) for m, file in files.items() if file.is_file()}
    if not pictures:
        return
    count = min(len(images) for images in pictures.values())
    rows = torch.stack([images[:count] for images in pictures.values()], dim=1).flatten(0, 1)
    labels = [f"{prompt} | {method}" for prompt in tasks[0].prompts[:count] for method in pictures]
    contact_sheet(rows / 255, row_labels=labels, cell_px=64).save(path)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
