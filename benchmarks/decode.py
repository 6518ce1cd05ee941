"""Decoding six views: peak memory of chunks and strips against all at once; how far pictures differ.

python -m benchmarks.decode --out docs/results/size/decode

SDXL's VAE at its full size with random weights. `--image-px` is small enough for a CPU; the same ratios at
768 px are counted on the meta device, where nothing is computed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from t2mv_core.images import decode_latents
from t2mv_core.strips import decode_in_strips

from .full_size import VAE
from .interleaved import median_ratio, time_in_turn
from .live_memory import flash_attention_on_meta, measure_live
from .written_results import markdown_table, write_results

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

NUM_VIEWS, FULL_LATENT_PX = 6, 96
# Name -> views at once, height of a strip in latent pixels of a picture of 768 px (None: whole pictures).
WAYS: dict[str, tuple[int, int | None]] = {
    "all six at once": (6, None),
    "three at once": (3, None),
    "one at a time": (1, None),
    "one at a time, in strips of an eighth": (1, 12),
    "one at a time, in strips of a 24th": (1, 4),
}


def count_on_meta(vae: AutoencoderKL, latent_px: int, views: int, strip: int | None) -> int:
    """Peak live bytes of decoding so, the pictures themselves included."""

    def decode(part: Tensor) -> Tensor:
        return vae.decode(part, return_dict=False)[0]

    def work() -> Tensor:
        latents = torch.empty(
            NUM_VIEWS, 4, latent_px, latent_px, device="meta", dtype=next(vae.parameters()).dtype
        )
        chunks = latents.split(views)
        return torch.cat([decode_in_strips(vae, c, strip) if strip else decode(c) for c in chunks])

    with torch.no_grad(), flash_attention_on_meta():
        return measure_live(work)[0]


def main() -> int:
    """Measure, print, and write README.md and report.json."""
    from diffusers import AutoencoderKL

    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/results/size/decode"))
    parser.add_argument("--image-px", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    vae = AutoencoderKL(**VAE).eval().requires_grad_(False)
    with torch.device("meta"):
        outline = AutoencoderKL(**VAE).to(torch.bfloat16).eval()
    latent_px = arguments.image_px // 8
    latents = torch.randn(1, NUM_VIEWS, 4, latent_px, latent_px)

    def way(views: int, strip: int | None) -> Callable[[], Tensor]:
        # A strip of the same share of the picture as at 768 px.
        small = None if strip is None else max(strip * latent_px // FULL_LATENT_PX, 1)
        return lambda: decode_latents(vae, latents, views, small)

    calls = {name: way(*how) for name, how in WAYS.items()}
    live = {name: measure_live(call) for name, call in calls.items()}
    seconds = time_in_turn(calls, arguments.repeats)
    first, rows, found = next(iter(WAYS)), [], {}
    full = {name: count_on_meta(outline, FULL_LATENT_PX, *how) for name, how in WAYS.items()}
    for name in WAYS:
        difference = float((live[name][1] - live[first][1]).abs().max())
        found[name] = {
            "live_mib": live[name][0] / 2**20,
            "seconds": statistics.median(seconds[name]),
            "time_ratio": median_ratio(seconds[name], seconds[first]),
            "largest_difference": difference,
            "live_mib_768px_bf16_counted": full[name] / 2**20,
        }
        f = found[name]
        rows.append([name, f"{f['live_mib']:.0f}", f"{f['live_mib'] / found[first]['live_mib']:.2f}",
                     f"{f['time_ratio']:.2f}", f"{difference:.0e}", f"{full[name] / 2**20:.0f}",
                     f"{full[name] / full[first]:.2f}"])  # fmt: skip
    text = (
        f"Six views, full-size VAE, random weights. Left: {arguments.image_px} px, float32, on the CPU, "
        f"medians of {arguments.repeats} turns; right: 768 px, bfloat16, counted without computing. "
        "Differences are of pictures in [0, 1]."
    )
    header = ["", "live MiB", "ratio", "time ratio", "difference", "MiB at 768 px", "ratio"]
    text = f"{text}\n\n{markdown_table(header, rows)}"
    write_results(arguments.out, "benchmarks.decode", "Decoding", text, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
