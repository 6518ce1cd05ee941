"""How time and memory grow with views, prompts per batch and steps.

python -m benchmarks.growth --out docs/results/size/growth

Full-size SDXL (LCM, 768 px): operations and live memory of one UNet evaluation, counted on the meta device.
The toybox: seconds on this machine. Both per view (or prompt, or step): a constant column is linear growth.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop

from t2mv_core.bundle import load_bundle
from t2mv_core.cameras import CameraRig
from t2mv_core.denoiser import encode_cameras, predict_noise
from t2mv_core.samplers import SamplingSettings, sample_standard
from t2mv_core.text import encode_text
from t2mv_core.trajectory import SeededNoise

from .full_size import camera_features, create_bundle, draw_condition
from .interleaved import time_in_turn
from .live_memory import flash_attention_on_meta, measure_live
from .written_results import markdown_table, write_results

VIEWS, PROMPTS, STEPS = (1, 2, 4, 6, 8, 12, 16, 24), (1, 2, 4, 8), (1, 2, 4, 8, 16)
FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def attention_operations(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Operations of one attention call, from shapes."""
    return int(sdpa_flop(query, key, value))


def rig_of(num_views: int) -> CameraRig:
    """Evenly spaced cameras."""
    return CameraRig(tuple(360.0 * view / num_views for view in range(num_views)), (0.0,) * num_views)


@torch.no_grad()
def count_full_size(bundle: Any, num_prompts: int, num_views: int) -> dict[str, float]:
    """Tera-operations and live MiB of one UNet evaluation at full size."""
    cameras = camera_features(bundle, num_views, 768)
    condition = draw_condition(num_prompts, 768, "meta", torch.bfloat16)
    x = torch.empty(num_prompts, num_views, 4, 96, 96, device="meta")

    def work() -> Any:
        return predict_noise(bundle, x, 500, condition, cameras, 7.0)

    counter = FlopCounterMode(display=False, custom_mapping={FLASH: attention_operations})
    with flash_attention_on_meta():
        with counter:
            work()
        live = measure_live(work)[0]
    counts = counter.get_flop_counts()["Global"]
    attention = sum(n for operation, n in counts.items() if "attention" in str(operation))
    return {
        "teraflop": counter.get_total_flops() / 1e12,
        "attention_share": attention / counter.get_total_flops(),
        "live_mib": live / 2**20,
    }


def toybox_seconds(sizes: dict[int, tuple[int, int, int]], repeats: int) -> dict[int, float]:
    """Median seconds of sampling (prompts, views, steps) on the toybox, sizes in turn."""
    bundle = load_bundle("toybox")
    ways = {}
    for key, (prompts, views, steps) in sizes.items():
        condition, cameras = (
            encode_text(bundle, ["a red mug"] * prompts),
            encode_cameras(bundle, rig_of(views)),
        )
        settings = SamplingSettings(num_steps=steps, guidance_scale=2.0)
        ways[str(key)] = lambda c=condition, k=cameras, s=settings, p=prompts: sample_standard(
            bundle, c, k, SeededNoise(list(range(p))), s
        )
    return {int(key): statistics.median(found) for key, found in time_in_turn(ways, repeats).items()}


def main() -> int:
    """Measure, print, and write README.md and report.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/results/size/growth"))
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    sdxl = create_bundle(True, "meta", torch.bfloat16)
    full = {
        "views": {n: count_full_size(sdxl, 1, n) for n in VIEWS},
        "prompts": {n: count_full_size(sdxl, n, 6) for n in PROMPTS},
    }
    seconds = {
        "views": toybox_seconds({n: (1, n, 2) for n in VIEWS}, arguments.repeats),
        "prompts": toybox_seconds({n: (n, 6, 2) for n in PROMPTS}, arguments.repeats),
        "steps": toybox_seconds({n: (1, 6, n) for n in STEPS}, arguments.repeats),
    }
    parts = []
    for kind in ("views", "prompts"):
        one = kind[:-1]
        header = [
            kind,
            f"SDXL: TFLOP per {one}",
            "of it attention",
            f"live MiB per {one}",
            f"toybox: ms per {one}",
        ]
        rows = [
            [n, f"{f['teraflop'] / n:.2f}", f"{100 * f['attention_share']:.1f} %", f"{f['live_mib'] / n:.0f}",
             f"{1e3 * seconds[kind][n] / n:.1f}"]
            for n, f in full[kind].items()
        ]  # fmt: skip
        parts.append(markdown_table(header, rows))
    steps = [[n, f"{1e3 * s / n:.1f}"] for n, s in seconds["steps"].items()]
    parts.append(markdown_table(["steps", "toybox: ms per step"], steps))
    text = (
        "One UNet evaluation of LCM-SDXL at 768 px (prompts: of six views each), counted; two steps of the "
        f"toybox (steps: six views), medians of {arguments.repeats} turns."
    )
    record = {"full_size_counted": full, "toybox_seconds": seconds}
    write_results(arguments.out, "benchmarks.growth", "Growth", "\n\n".join([text, *parts]), record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
