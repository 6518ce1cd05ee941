"""Does the zigzag help on the bundled model, and can it be had for fewer UNet evaluations?

python -m training.experiments.zigzag --out docs/results/zigzag

Samples the same prompts from the same noise by ways of zigzagging and prints reward, judge, UNet evaluations
and seconds per set for each, with differences to standard sampling (95 % intervals over prompts). What is
better is chosen on development prompts and measured again on held-out ones. The ideas:

    standard   no zigzag, at several numbers of steps: what the same evaluations buy otherwise
    zmv        the paper's: zig, zag, zig at the first step (two more evaluations)
    late       the same at a later step, where the gap between zig and zag is wider
    no view    the zag without the view condition (s_inv = 0); unconditional: w_inv = 0
    reuse      the zag takes the zig's own prediction instead of asking the UNet (one more evaluation)
    direct     no zag: the second zig starts from x_{t'} as if it were x_t (one more evaluation)
    renoise    no zag: x_t is made anew from the zig's f and fresh noise (one more evaluation); carries no
               information about how the noise was answered, so what is not better than this is not the zigzag
    quiet      the zig that is undone takes its own ε instead of fresh noise, so that x̃_t keeps the noise of
               x_t and differs from it by the gap alone
    until still  zigzags at every step as long as a set's f moves by more than a tenth of its size (its
               seconds include the sets that stand still, its evaluations do not)
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from t2mv_core.bundle import ModelBundle
from t2mv_core.cameras import DEFAULT_RIG
from t2mv_core.defaults import DEFAULTS
from t2mv_core.denoiser import CameraFeatures, encode_cameras, predict_noise
from t2mv_core.images import decode_latents
from t2mv_core.loading import load_bundle
from t2mv_core.policy import Noise, StepDistribution, denoise_step, invert_step
from t2mv_core.policy import sample as sample_action
from t2mv_core.samplers import SamplingSettings, sample_standard
from t2mv_core.text import TextCondition, encode_text
from t2mv_core.toybox.prompt_lists import find_specs
from t2mv_core.toybox.silhouettes import view_consistency

from ..algorithm.rollout import paired_noise
from ..config import home_path
from ..data.prompts import load_prompts
from ..evaluation.intervals import bootstrap
from ..evaluation.measure import Instruments, judge_sets, load_instruments, reward_values, spread
from ..evaluation.report import markdown_rows
from ..run.environment import describe_environment

DEV_SEED, HELD_OUT_SEED = 2000, 3000
NUM_DEV, NUM_HELD_OUT, NUM_GAPS = 60, 120, 24
PAPERS = "zmv (first step)"
STILL = 0.1
BATCH_SIZE = 10
SHOWN = (
    "view_reward", "joint_reward", "judge_colour", "judge_part", "judge_relation", "judge_azimuth",
    "hull_consistency",
)  # fmt: skip


@dataclass
class Walk:
    """One batch on its way from noise to pictures; counts UNet evaluations in sets.

    Attributes:
        num_evaluations: UNet evaluations so far, summed over the sets of the batch.
    """

    bundle: ModelBundle
    condition: TextCondition
    cameras: CameraFeatures
    settings: SamplingSettings
    noise: Noise
    num_evaluations: int = 0

    def predict(self, x: Tensor, step: int, guidance: float, view_scale: float) -> Tensor:
        """Return ε at a step's timestep."""
        self.num_evaluations += len(x)
        t, scales = self.timesteps(step)[0], (guidance, view_scale)
        return predict_noise(self.bundle, x, t, self.condition, self.cameras, *scales).float()

    def zig(self, x: Tensor, step: int) -> tuple[StepDistribution, Tensor]:
        """Return the policy's distribution, and the ε it came from."""
        noise_pred = self.predict(x, step, self.settings.guidance_scale, self.settings.view_scale)
        return denoise_step(self.bundle.schedule, noise_pred, x, *self.timesteps(step)), noise_pred

    def zag_from(self, x_next: Tensor, step: int) -> Tensor:
        """Return x̃_t: x_{t'} inverted with the ε of the weaker condition."""
        settings = self.settings
        weak = self.predict(x_next, step, settings.inverse_guidance_scale, settings.inverse_view_scale)
        return invert_step(self.bundle.schedule, weak, x_next, *self.timesteps(step))

    def timesteps(self, step: int) -> tuple[int, int]:
        """Return t and t'."""
        schedule, count = self.bundle.schedule, self.settings.num_steps
        return int(schedule.timesteps(count)[step]), int(schedule.next_timesteps(count)[step])


Zag = Callable[[Walk, int, StepDistribution, Tensor], Tensor]
"""(walk, step, the zig's distribution, the zig's ε) -> x̃_t."""


def zag(walk: Walk, step: int, distribution: StepDistribution, noise_pred: Tensor) -> Tensor:
    """Go back as docs/method.md, section 4 has it."""
    return walk.zag_from(sample_action(distribution, walk.noise), step)


def quiet(walk: Walk, step: int, distribution: StepDistribution, noise_pred: Tensor) -> Tensor:
    """Go back from x_{t'} = √ᾱ_{t'}·f + √(1-ᾱ_{t'})·ε, the mean of the action with the zig's own noise."""
    return walk.zag_from(distribution.mean + distribution.std * noise_pred, step)


def reuse(walk: Walk, step: int, distribution: StepDistribution, noise_pred: Tensor) -> Tensor:
    """Invert with the zig's ε."""
    x_next = sample_action(distribution, walk.noise)
    return invert_step(walk.bundle.schedule, noise_pred, x_next, *walk.timesteps(step))


def direct(walk: Walk, step: int, distribution: StepDistribution, noise_pred: Tensor) -> Tensor:
    """Take x_{t'} itself."""
    return sample_action(distribution, walk.noise)


def renoise(walk: Walk, step: int, distribution: StepDistribution, noise_pred: Tensor) -> Tensor:
    """Make √ᾱ_t·f + √(1-ᾱ_t)·fresh noise."""
    alpha_bar = walk.bundle.schedule.alpha_bar_at(walk.timesteps(step)[0])
    denoised = distribution.denoised
    return alpha_bar.sqrt() * denoised + (1 - alpha_bar).sqrt() * walk.noise(denoised.shape)


@dataclass(frozen=True)
class Way:
    """One way of sampling.

    Attributes:
        name: for people.
        settings: steps and scales.
        at: the steps that zigzag.
        zag: how they go back.
        is_until_still: a set stops zigzagging when its f has moved little.
        model: "toybox" or "toybox-teacher".
    """

    name: str
    settings: SamplingSettings
    at: tuple[int, ...] = ()
    zag: Zag = zag
    is_until_still: bool = False
    model: str = "toybox"


def sample(walk: Walk, way: Way) -> Tensor:
    """Return clean latents of a batch, [B, V, C, H, W]."""
    bundle, cameras = walk.bundle, walk.cameras
    size = (bundle.latent_channels, bundle.latent_px, bundle.latent_px)
    x = walk.noise(torch.Size((len(walk.condition), cameras.num_views, *size)))
    denoised = x
    is_moving = torch.ones(len(x), dtype=torch.bool)
    for step in range(way.settings.num_steps):
        distribution, noise_pred = walk.zig(x, step)
        if step in way.at and bool(is_moving.any()):
            first, again = distribution, walk.zig(way.zag(walk, step, distribution, noise_pred), step)[0]
            # Sets that stand still keep their first zig; what was computed for them is not counted.
            walk.num_evaluations -= 2 * int((~is_moving).sum())
            pick = is_moving.reshape(-1, 1, 1, 1, 1)
            mean, denoised = (
                torch.where(pick, new, old)
                for new, old in ((again.mean, first.mean), (again.denoised, first.denoised))
            )
            distribution = StepDistribution(mean, again.std, denoised)
            if way.is_until_still:
                moved = (again.denoised - first.denoised).flatten(1).norm(dim=1)
                is_moving &= moved > STILL * first.denoised.flatten(1).norm(dim=1)
        denoised = distribution.denoised
        x = sample_action(distribution, walk.noise)
    return denoised


def ways_of(guidance: float) -> list[Way]:
    """Return all ways at one guidance on the student; the first is the reference."""
    four = SamplingSettings(num_steps=4, guidance_scale=guidance)
    return [
        Way("standard, 4 steps", four),
        *(Way(f"standard, {n} steps", replace(four, num_steps=n)) for n in (2, 3, 5, 6)),
        Way(PAPERS, four, (0,)),
        *(Way(f"late: zigzag at step {k + 1}", four, (k,)) for k in (1, 2, 3)),
        Way("zmv, two steps", four, (0, 1)),
        Way("no view: s_inv = 0", replace(four, inverse_view_scale=0.0), (0,)),
        Way("unconditional: w_inv = 0, s_inv = 0, step 3",
            replace(four, inverse_guidance_scale=0.0, inverse_view_scale=0.0), (2,)),
        Way("reuse", four, (0,), reuse),
        Way("direct", four, (0,), direct),
        Way("renoise", four, (0,), renoise),
        Way("quiet", four, (0,), quiet),
        Way("quiet, step 2", four, (1,), quiet),
        Way("quiet, step 3, w_inv = 0, s_inv = 0",
            replace(four, inverse_guidance_scale=0.0, inverse_view_scale=0.0), (2,), quiet),
        Way("until still", four, (0, 1, 2, 3), is_until_still=True),
    ]  # fmt: skip


def teacher_ways() -> list[Way]:
    """Return the teacher's ways, 8 DDIM steps: real guidance, the zigzag on the first 4."""
    eight = SamplingSettings(num_steps=8, guidance_scale=2.0)
    weak = replace(eight, guidance_scale=1.0, inverse_guidance_scale=0.0)
    first = (0, 1, 2, 3)
    teacher = "toybox-teacher"
    return [
        Way("teacher, w = 2", eight, model=teacher),
        Way("teacher, w = 2, zmv 4 steps", eight, first, model=teacher),
        Way("teacher, w = 1", weak, model=teacher),
        Way("teacher, w = 1, w_inv = 0, zmv 4 steps", weak, first, model=teacher),
    ]


@torch.no_grad()
def draw(
    way: Way, bundle: ModelBundle, prompts: Sequence[str], seed: int, trajectory: int = 0
) -> Iterator[tuple[list[str], Tensor, int]]:
    """Yield prompts, pictures [b, V, 3, H, W] and UNet evaluations of every batch."""
    cameras = encode_cameras(bundle, DEFAULT_RIG)
    for start in range(0, len(prompts), BATCH_SIZE):
        rows = range(start, min(start + BATCH_SIZE, len(prompts)))
        batch, noise = [prompts[row] for row in rows], paired_noise(seed, 0, rows, trajectory)
        walk = Walk(bundle, encode_text(bundle, batch), cameras, way.settings, noise)
        yield batch, decode_latents(bundle.vae, sample(walk, way)), walk.num_evaluations


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
            Walk(bundle, condition, cameras, weaker, noise).zag_from(x_next, step) for weaker in conditions
        )
        distribution, _ = Walk(bundle, condition, cameras, settings, noise).zig(x, step)
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
    found = {way.name: measure(way, bundle, instruments, dev, DEV_SEED) for way in tqdm(ways, group)}
    gaps = gap_rows(bundle, dev[:NUM_GAPS], ways[0].settings)
    parts = [f"## {group}", f"All ways on {len(dev)} development prompts, one seed:", table(found, reference)]
    parts += [f"What the zag does at every step ({NUM_GAPS} prompts):", gap_table(gaps)]
    record: dict[str, Any] = {"dev": record_of(found, reference), "gaps": gaps}
    if ways[0].model != "toybox":
        return parts, record
    chosen = tqdm(choose(ways, found), f"{group}, held out")
    found = {way.name: measure(way, bundle, instruments, held_out, HELD_OUT_SEED) for way in chosen}
    parts += [f"The references and the best two on {len(held_out)} held-out prompts, another seed:"]
    record["held_out"] = record_of(found, reference)
    return [*parts, table(found, reference)], record


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
    about = __doc__.split("\n\n", 2)[2].strip()
    parts = ["# Zigzags on the bundled model", f"Command: `{command}`", f"```\n{about}\n```"]
    record: dict[str, Any] = {"command": command, "environment": describe_environment()}
    for group, ways in groups.items():
        more, record[group] = measure_group(group, ways, load_bundle(ways[0].model), instruments)
        parts += more
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "report.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    (arguments.out / "report.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print("\n\n".join(parts))  # noqa: T201 - a command line
    return 0


if __name__ == "__main__":
    sys.exit(main())
