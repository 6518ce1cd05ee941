"""What docs/performance.md estimates, measured on a CUDA card, against the published way of writing it.

python -m benchmarks.gpu_check --out runs/gpu_check           # begins nothing after 6 minutes
python -m benchmarks.gpu_check --tiny --device cpu --out ...  # only whether it runs: the bundled model

LCM-SDXL at its real size with random weights, which cost what the published ones do: sampling and ZMV (one
set of six 768 px views), an iteration of the one-card presets with one prompt, and the two big rewards. The
yardstick is `benchmarks.published_recipe` in the same process. What does not fit is said, and the rest goes
on; no item begins after the time given.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from t2mv_core.bundle import ModelBundle
from t2mv_core.cameras import DEFAULT_RIG
from t2mv_core.denoiser import encode_cameras
from t2mv_core.images import decode_latents
from t2mv_core.loading import load_bundle
from t2mv_core.samplers import SAMPLERS, SamplingSettings
from t2mv_core.text import TextCondition, encode_text
from training.algorithm.rollout import Policy, paired_noise
from training.config import home_path, load_config
from training.evaluation.report import markdown_rows
from training.models.policy import undo_policy

from . import published_recipe as published
from .full_size import create_bundle, draw_condition
from .measuring import report, timed, write_figures
from .rewards import SCORERS
from .rewards import measure as measure_reward
from .training_iteration import Way, case_of, our_way, published_way

PRESETS = ("lcm-sdxl-24gb", "lcm-sdxl-12gb")
REPEATS = 5
GIB = 2**30
TOYBOX_PX = 64
REWARDS = {"pickscore (ViT-H/14)": torch.float16, "hyperscore (CLIP ViT-B/16)": torch.float32}
TINY_REWARDS = {"toybox_clip": torch.float32, "toybox_hyperscore": torch.float32}
OURS, PUBLISHED, PLAIN = "ours", "published", "published, no checkpointing"


@dataclass(frozen=True)
class Lab:
    """What is measured on.

    Attributes:
        bundle: the model, on the device.
        condition: text features of one prompt.
        num_steps: denoising steps.
        image_px: of the views that rewards score.
        rewards: names of `benchmarks.rewards.SCORERS` with their precisions.
    """

    bundle: ModelBundle
    condition: TextCondition
    num_steps: int
    image_px: int
    rewards: dict[str, torch.dtype]

    @property
    def device(self) -> str:
        """The device's kind: "cuda" or "cpu"."""
        return self.bundle.device.type


@dataclass
class Figures:
    """One measured way of one item.

    Attributes:
        seconds: of the faster of the first two repeats.
        gib: most that was allocated at once, weights included; on the CPU what the process grew by.
        growth_mib: what was allocated after the last repeat and not after the second.
        failure: why there are no figures.
    """

    seconds: float = float("nan")
    gib: float = float("nan")
    growth_mib: float = 0.0
    failure: str = ""


Item = Callable[[Lab], dict[str, Figures]]


def attempt(work: Callable[[], Any], lab: Lab, repeats: int = 1) -> Figures:
    """Measure some work, or say that it does not fit; memory that it leaves is counted as growth."""
    figures, times, left = Figures(), [], []
    try:
        for _ in range(repeats):
            gc.collect()
            before = torch.cuda.memory_allocated() if lab.device == "cuda" else 0
            seconds, mib, _ = timed(work, lab.device)
            times.append(seconds)
            figures.gib = max(mib * 2**20 + before, figures.gib * GIB if left else 0.0) / GIB
            left.append(torch.cuda.memory_allocated() if lab.device == "cuda" else 0)
        figures.seconds = min(times[:2])  # of every way as many, though growth is looked for longer
        figures.growth_mib = (left[-1] - left[min(1, len(left) - 1)]) / 2**20
    except RuntimeError as error:
        return failed(error)
    return figures


def failed(error: RuntimeError) -> Figures:
    """Return what stands for figures that an error prevented; memory is not always said to be at an end."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    does_not_fit = isinstance(error, torch.cuda.OutOfMemoryError)
    return Figures(failure="does not fit" if does_not_fit else f"failed: {error}".splitlines()[0][:200])


def sampling(sampler: str) -> Item:
    """Return the item that draws one set with a sampler, decoding included."""

    def measure(lab: Lab) -> dict[str, Figures]:
        bundle = lab.bundle
        settings = SamplingSettings(num_steps=lab.num_steps, guidance_scale=7.0)
        with torch.no_grad():
            policy = Policy(bundle, encode_cameras(bundle, DEFAULT_RIG))

        @torch.no_grad()
        def ours() -> None:
            noise = paired_noise(0, 1, [0], 0)
            drawn = SAMPLERS[sampler](bundle, lab.condition, policy.cameras, noise, settings)
            decode_latents(bundle.vae, drawn.denoised, chunk_size=1)

        def theirs() -> None:
            with published.as_published(policy, checkpoints=False):
                noise = paired_noise(0, 1, [0], 0)
                published.sample(policy, lambda: lab.condition, noise, settings, sampler == "zmv")

        ours()  # the first call pays for libraries
        return {OURS: attempt(ours, lab, 2), PUBLISHED: attempt(theirs, lab, 2)}

    return measure


def iteration(preset: str) -> Item:
    """Return the item that samples a prompt's two trajectories and learns from them, as a preset has it."""

    def measure(lab: Lab) -> dict[str, Figures]:
        words = [
            "sampling.prompts_per_iteration=1", f"sampling.num_steps={lab.num_steps}",
            "optim.prompts_per_update=null", "model.gradient_checkpointing=false",
        ]  # fmt: skip
        if lab.num_steps < 4:
            words.append("optim.trained_steps=null")
        if lab.device == "cpu":  # which shows whether it runs; many take minutes for a bf16 product
            words.append("optim.mixed_precision=no")
        if lab.device == "cuda":  # as the trainer keeps them while it samples and learns
            for encoder in (lab.bundle.text_encoder, lab.bundle.text_encoder_2):
                encoder.to("cpu")
        case = case_of(load_config(preset, words), lab.bundle, lab.condition, lambda: lab.condition)
        ways: dict[str, tuple[Callable[[], Way], int]] = {
            OURS: (lambda: our_way(case, checkpoints=True), REPEATS),
            PUBLISHED: (lambda: published_way(case), 2),
            PLAIN: (lambda: published_way(case, checkpoints=False), 2),
        }
        try:
            return {
                name: attempt(_both_phases(make()), lab, repeats) for name, (make, repeats) in ways.items()
            }
        finally:
            undo_policy(lab.bundle)

    return measure


def _both_phases(way: Way) -> Callable[[], Any]:
    return lambda: way.update(way.roll_out())


def scoring(name: str, dtype: torch.dtype) -> Item:
    """Return the item that scores four sets of views, at once and picture by picture."""

    def measure(lab: Lab) -> dict[str, Figures]:
        images = torch.rand(24, 3, lab.image_px, lab.image_px)
        prompts = [f"a photo of a red mug with {count} handles" for count in range(4)]
        found = measure_reward(SCORERS[name]().to(lab.device, dtype), images, prompts, lab.device)
        return {
            way: Figures(
                len(images) / found[f"images_per_second{suffix}"],
                (found["weights_mib"] + found[f"peak_mib{suffix}"]) / 1024,
            )
            for way, suffix in ((OURS, ""), (PUBLISHED, "_singly"))
        }

    return measure


def items(lab: Lab) -> dict[str, Item]:
    """Return what is measured, in order: the most wanted first, in case time runs out."""
    return {
        "sampling, one set": sampling("standard"),
        "ZMV, one set": sampling("zmv"),
        **{f"training, `{preset}`, one prompt": iteration(preset) for preset in PRESETS},
        **{f"24 pictures by {name}": scoring(name, dtype) for name, dtype in lab.rewards.items()},
    }


def make_lab(device: str, is_tiny: bool) -> Lab:
    """Return LCM-SDXL with random weights in bf16, or the bundled student."""
    if is_tiny:
        bundle = load_bundle("toybox", device)
        return Lab(bundle, encode_text(bundle, ["a red mug"]), 2, TOYBOX_PX, TINY_REWARDS)
    torch.manual_seed(0)
    bundle = create_bundle(True, device, torch.bfloat16)
    return Lab(
        bundle, draw_condition(1, bundle.image_px, device, torch.bfloat16), 8, bundle.image_px, REWARDS
    )


def run(lab: Lab, seconds: float) -> Iterator[tuple[str, dict[str, Figures]]]:
    """Yield every item with its figures; what would begin after `seconds` is left out, and says so."""
    started = time.monotonic()
    for name, item in tqdm(items(lab).items(), "items"):
        is_late = time.monotonic() - started > seconds
        try:
            found = {OURS: Figures(failure="left out, time was up")} if is_late else item(lab)
        except RuntimeError as error:  # the other items are still worth their time
            found = {OURS: failed(error)}
        yield name, found
        gc.collect()
        if lab.device == "cuda":
            torch.cuda.empty_cache()


def table(found: dict[str, dict[str, Figures]]) -> str:
    """Return Markdown: seconds and GiB of every way, with our ratios to the published ones."""
    rows = []
    for name, ways in found.items():
        ours = ways[OURS]
        for way, figures in ways.items():
            if figures.failure:
                rows.append([name, way, figures.failure, "", "", "", ""])
                continue
            ratios = ["", ""] if way == OURS else _ratios(ours, figures)
            growth = f"{figures.growth_mib:.0f}" if name.startswith("training") else ""
            rows.append(
                [name, way, f"{figures.seconds:.2f}", ratios[0], f"{figures.gib:.2f}", ratios[1], growth]
            )
    return markdown_rows(["what", "way", "seconds", "ours / it", "GiB", "ours / it", "growth, MiB"], rows)


def _ratios(ours: Figures, theirs: Figures) -> list[str]:
    if ours.failure:
        return ["", ""]
    return [f"{ours.seconds / theirs.seconds:.2f}", f"{ours.gib / theirs.gib:.2f}"]


def main() -> int:
    """Measure, print, and write report.json; 1 where there is no such device."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--out", type=home_path, default=Path("docs/results/size/gpu_check"))
    add("--device", choices=("cuda", "cpu"), default="cuda")
    add("--tiny", action="store_true", help="the bundled model in place of LCM-SDXL")
    add("--minutes", type=float, default=6.0, help="no item begins later")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("gpu_check: PyTorch sees no CUDA device; --tiny --device cpu shows whether the check runs.")  # noqa: T201
        return 1
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU"
    size = "The bundled model" if arguments.tiny else "LCM-SDXL at full size, random weights, bf16"
    text = (
        f"{name}. {size}; the training counts toy rewards. One picture at a time is the rewards' yardstick."
    )
    found: dict[str, dict[str, Figures]] = {}
    figures: dict[str, Any] = {}
    for item, ways in run(make_lab(arguments.device, arguments.tiny), 60 * arguments.minutes):
        found[item] = ways
        figures = {item: {way: vars(one) for way, one in ways.items()} for item, ways in found.items()}
        # after every item: a limit of time may end the process
        write_figures(arguments.out / "report.json", "benchmarks.gpu_check", figures)
    report(arguments.out / "report.json", "benchmarks.gpu_check", f"{text}\n\n{table(found)}", figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
