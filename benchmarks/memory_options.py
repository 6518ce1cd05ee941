"""What each low-memory option of `t2mv_core.memory` saves in one UNet evaluation of full-size SDXL.

python -m benchmarks.memory_options --out docs/results/size/memory_options

Counted on the meta device, six views of 768 px in bfloat16, two-pass guidance. That results stay the same is
tested in tests/core/test_memory.py.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

from t2mv_core.denoiser import predict_noise
from t2mv_core.memory import MemorySettings, with_float8_storage

from .full_size import camera_features, create_textless_bundle, draw_condition
from .live_memory import flash_attention_on_meta, measure_live, weight_bytes
from .written_results import markdown_table, write_results

OPTIONS = {
    "none": MemorySettings(),
    "sequential_guidance": MemorySettings(sequential_guidance=True),
    "feed_forward_views=1": MemorySettings(feed_forward_views=1),
    "both": MemorySettings(sequential_guidance=True, feed_forward_views=1),
}


def main() -> int:
    """Count, print, and write README.md and report.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory_options", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/results/size/memory_options"))
    arguments = parser.parse_args()
    plain = create_textless_bundle(False, "meta", torch.bfloat16)
    condition = draw_condition(1, 768, "meta", torch.bfloat16)
    cameras = camera_features(plain, 6, 768)
    x = torch.empty(1, 6, 4, 96, 96, device="meta")
    found = {}
    for storage, bundle in (("", plain), (", 8-bit storage", with_float8_storage(plain))):
        for name, memory in OPTIONS.items():
            asked = replace(bundle, memory=memory)
            weights = weight_bytes(bundle.unet)
            with torch.no_grad(), flash_attention_on_meta():
                peak, _ = measure_live(
                    lambda b=asked: predict_noise(b, x, 500, condition, cameras, 7.0), bundle.unet
                )
            found[name + storage] = {
                "weights_mib": weights / 2**20,
                "activations_mib": (peak - weights) / 2**20,
            }
    header = ["option", "UNet's weights MiB", "above them MiB", "ratio"]
    first = found["none"]["activations_mib"]
    rows = [
        [
            name,
            f"{f['weights_mib']:.0f}",
            f"{f['activations_mib']:.0f}",
            f"{f['activations_mib'] / first:.2f}",
        ]
        for name, f in found.items()
    ]
    text = f"Counted, not measured on a GPU.\n\n{markdown_table(header, rows)}"
    write_results(arguments.out, "benchmarks.memory_options", "Low-memory options", text, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
