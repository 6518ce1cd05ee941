"""Share of the sampler's wall time that is spent outside the UNet and the VAE.

python -m benchmarks.sampler_overhead

Eight steps of standard sampling and the decoding of all views, text and cameras encoded before. Time inside
is what the UNet's and the decoder's own `forward` take; all else (guidance, noise, policy, records, LoRA
switches, checks) is overhead. SDXL at full size takes minutes per evaluation on a CPU: measured is a UNet of
its real widths and blocks with fewer transformer layers and small pictures, which makes the overhead's share
larger, not smaller; `--full` takes the real number of layers.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from t2mv_core.bundle import LoraHandle, ModelBundle
from t2mv_core.cameras import DEFAULT_RIG
from t2mv_core.denoiser import encode_cameras
from t2mv_core.images import decode_latents
from t2mv_core.loading import load_bundle
from t2mv_core.lora.adapters import add_lora
from t2mv_core.samplers import SamplingSettings, sample_standard
from t2mv_core.text import encode_text
from t2mv_core.trajectory import SeededNoise
from training.config import home_path
from training.evaluation.report import markdown_rows

from .full_size import create_textless_bundle, draw_condition
from .measuring import report

SETTINGS = SamplingSettings(num_steps=8, guidance_scale=2.0)


def share_outside(bundle: ModelBundle, condition: Any, cameras: Any) -> dict[str, float]:
    """Sample and decode once; return seconds inside, outside, and the latter's share."""
    inside = 0.0

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            started = time.perf_counter()
            result = function(*args, **kwargs)
            inside += time.perf_counter() - started
            return result

        return call

    originals = bundle.unet.forward, bundle.vae.decode
    bundle.unet.forward, bundle.vae.decode = map(timed, originals)
    started = time.perf_counter()
    try:
        trajectory = sample_standard(bundle, condition, cameras, SeededNoise([1]), SETTINGS)
        decode_latents(bundle.vae, trajectory.denoised)
    finally:
        bundle.unet.forward, bundle.vae.decode = originals
    whole = time.perf_counter() - started
    return {"inside_s": inside, "outside_s": whole - inside, "share": 1 - inside / whole}


def with_lora(bundle: ModelBundle) -> ModelBundle:
    """Return the bundle with a LoRA of rank 16 acting."""
    add_lora(bundle.unet, 16, 16.0)
    return replace(bundle, loras=(LoraHandle("default"),))


def measure(bundle: ModelBundle, condition: Any, cameras: Any, repeats: int) -> dict[str, float]:
    """Return the repeat of median share, after one that does not count."""
    share_outside(bundle, condition, cameras)
    runs = sorted(
        (share_outside(bundle, condition, cameras) for _ in range(repeats)), key=lambda f: f["share"]
    )
    return {**runs[len(runs) // 2], "spread": statistics.pstdev(f["share"] for f in runs)}


def main() -> int:
    """Measure, print, and write report.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sampler_overhead", description=__doc__)
    parser.add_argument("--out", type=home_path, default=Path("docs/results/size/sampler_overhead"))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--image-px", type=int, default=128, help="of the SDXL-sized model")
    parser.add_argument("--full", action="store_true", help="all transformer layers of SDXL")
    arguments = parser.parse_args()
    toybox = load_bundle("toybox")
    found, text_and_rig = {}, (encode_text(toybox, ["a red mug"]), encode_cameras(toybox, DEFAULT_RIG))
    found["toybox, 64 px"] = measure(toybox, *text_and_rig, arguments.repeats)
    found["toybox, 64 px, with a LoRA"] = measure(with_lora(toybox), *text_and_rig, arguments.repeats)
    fewer = {} if arguments.full else {"transformer_layers_per_block": (1, 1, 2)}
    size = {"sample_size": arguments.image_px // 8, **fewer}
    sdxl = create_textless_bundle(True, "cpu", torch.bfloat16, **size)
    given = draw_condition(1, arguments.image_px, "cpu", torch.bfloat16), encode_cameras(sdxl, DEFAULT_RIG)
    name = f"SDXL's widths, {'all' if arguments.full else 'fewer'} layers, {arguments.image_px} px"
    found[name] = measure(sdxl, *given, max(1, arguments.repeats // 4))
    rows = [
        [name, f"**{100 * f['share']:.2f} %**", f"{1e3 * f['outside_s']:.0f}", f"{1e3 * f['inside_s']:.0f}"]
        for name, f in found.items()
    ]
    text = (
        f"{SETTINGS.num_steps} steps of standard sampling, six views, one prompt, float32 (SDXL's widths: "
        f"bfloat16); medians of {arguments.repeats} runs ({max(1, arguments.repeats // 4)})."
    )
    table = markdown_rows(["", "outside UNet and VAE", "ms outside", "ms inside"], rows)
    report(arguments.out / "report.json", "benchmarks.sampler_overhead", f"{text}\n\n{table}", found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
