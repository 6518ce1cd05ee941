"""One UNet evaluation as it is, compiled by `torch.compile`, and in channels-last: time and difference.

python -m benchmarks.compile --out docs/results/size/compile

The toybox in float32, without and with a LoRA, and SDXL's widths with fewer layers in bfloat16; six views.
Compiling needs a C++ compiler on a CPU; its time is stated beside what it saves, and after how many calls
it has paid. Times are CPU seconds of the process, one thread by default.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t2mv_core.bundle import ModelBundle, load_bundle
from t2mv_core.cameras import DEFAULT_RIG
from t2mv_core.denoiser import encode_cameras, predict_noise
from t2mv_core.text import encode_text

from .full_size import create_textless_bundle, draw_condition
from .sampler_overhead import with_lora
from .written_results import markdown_table, write_results

Predict = Callable[[], Tensor]


def prediction(bundle: ModelBundle, condition: Any, cameras: Any) -> Predict:
    """One evaluation on fixed latents."""
    size = (1, cameras.num_views, bundle.latent_channels, bundle.latent_px, bundle.latent_px)
    x = torch.randn(size, generator=torch.Generator().manual_seed(0))
    return torch.no_grad()(lambda: predict_noise(bundle, x, 499, condition, cameras, 2.0))


def compiled(bundle: ModelBundle) -> ModelBundle:
    """The bundle whose UNet's forward is compiled; weights are shared, attributes stay where they were."""
    unet = copy.copy(bundle.unet)
    unet.forward = torch.compile(bundle.unet.forward)
    return replace(bundle, unet=unet)


def channels_last(bundle: ModelBundle) -> ModelBundle:
    """The bundle with a copy of its UNet whose convolutions are laid out channels-last."""
    unet = copy.deepcopy(bundle.unet).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return replace(bundle, unet=unet)


def cpu_seconds(work: Predict) -> tuple[float, Tensor]:
    """CPU seconds of one call, and its result."""
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


def measure(bundle: ModelBundle, condition: Any, cameras: Any, repeats: int) -> dict[str, dict[str, float]]:
    """The ways in turn; the first call of each is told apart: there the compiler works."""
    bundles = {"as it is": bundle, "torch.compile": compiled(bundle), "channels-last": channels_last(bundle)}
    ways = {name: prediction(made, condition, cameras) for name, made in bundles.items()}
    started = time.perf_counter()
    first, results = {}, {}
    for name, work in ways.items():
        started = time.perf_counter()
        results[name] = work()
        first[name] = time.perf_counter() - started
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, work in ways.items():
            times[name].append(cpu_seconds(work)[0])
    reference = results["as it is"].float()
    eager = statistics.median(times["as it is"])
    return {
        name: {
            "seconds": statistics.median(taken),
            "ratio": statistics.median(a / b for a, b in zip(taken, times["as it is"], strict=True)),
            "first_call_s": first[name],
            "difference": float((results[name].float() - reference).abs().max() / reference.abs().max()),
            "pays_after": (first[name] - first["as it is"]) / max(eager - statistics.median(taken), 1e-9),
        }
        for name, taken in times.items()
    }


def table(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """Markdown."""
    rows = [
        [
            f"{model}: {name}",
            f"{way['seconds']:.3f}",
            f"**{way['ratio']:.2f}**",
            f"{way['difference']:.0e}",
            f"{way['first_call_s']:.0f}" if name == "torch.compile" else "",
            f"{way['pays_after']:.0f}" if name == "torch.compile" and way["ratio"] < 1 else "",
        ]
        for model, ways in found.items()
        for name, way in ways.items()
    ]
    header = ["", "CPU s", "ratio", "difference", "first call, s", "pays after evaluations"]
    return markdown_table(header, rows)


def main() -> int:
    """Measure, print, and write README.md and report.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compile", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/results/size/compile"))
    parser.add_argument("--repeats", type=int, default=9, help="of the toybox; SDXL's widths take a third")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=("toybox", "sdxl"), help="one of the models")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found = {}
    if arguments.only != "sdxl":
        toybox = load_bundle("toybox")
        given = encode_text(toybox, ["a red mug"]), encode_cameras(toybox, DEFAULT_RIG)
        found["toybox"] = measure(toybox, *given, arguments.repeats)
        found["toybox with a LoRA"] = measure(with_lora(toybox), *given, arguments.repeats)
    if arguments.only != "toybox":
        size = {"sample_size": 16, "transformer_layers_per_block": (1, 1, 2)}
        sdxl = create_textless_bundle(True, "cpu", torch.bfloat16, **size)
        given = draw_condition(1, 128, "cpu", torch.bfloat16), encode_cameras(sdxl, DEFAULT_RIG)
        found["SDXL's widths, fewer layers, 128 px"] = measure(sdxl, *given, max(3, arguments.repeats // 3))
    text = (
        "One evaluation of six views without gradient; medians, ratios to the UNet as it is, differences "
        "relative to the largest number of the prediction. The first call compiles (wall time)."
    )
    text = f"{text}\n\n{table(found)}"
    write_results(arguments.out, "benchmarks.compile", "torch.compile and channels-last", text, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
