"""Row-wise multiview attention at SDXL's shapes against the form that repeats keys and values for every view.

python -m benchmarks.attention --out docs/results/size/attention

The other form is written here as it is usually done: every view is a batch row of its own, so each gets a
copy of the keys and values of all views. "attention" starts from projected queries, keys and values as the
projections leave them, [B·V, H·W, C], and ends in that layout; "layer" is the whole multiview branch of one
self-attention, projections included. Both forms compute the same, which is checked.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from t2mv_core.attention import MultiviewSelfAttention, merge_rows, rowwise_multiview_attention, split_rows

from .interleaved import median_ratio, time_in_turn
from .live_memory import measure_live
from .written_results import markdown_table, write_results

SHAPES = {"48x48x640, 10 heads": (48, 640, 10), "24x24x1280, 20 heads": (24, 1280, 20)}
VIEWS = (6, 12)


def repeated_attention(
    query: Tensor, key: Tensor, value: Tensor, num_views: int, num_rows: int, heads: int
) -> Tensor:
    """The same attention, [B·V, H·W, C] to the same, with V copies of all keys and values."""
    query = rearrange(query, "n (h w) (a d) -> (n h) a w d", h=num_rows, a=heads)
    key, value = (
        repeat(x, "(b v) (h w) (a d) -> (b s h) a (v w) d", v=num_views, s=num_views, h=num_rows, a=heads)
        for x in (key, value)
    )
    out = F.scaled_dot_product_attention(query, key, value)
    return rearrange(out, "(n h) a w d -> n (h w) (a d)", h=num_rows)


def merged_attention(
    query: Tensor, key: Tensor, value: Tensor, num_views: int, num_rows: int, heads: int
) -> Tensor:
    """Ours from the same start to the same end."""
    merged = (merge_rows(x, num_views, num_rows) for x in (query, key, value))
    return split_rows(rowwise_multiview_attention(*merged, heads), num_views, num_rows)


def repeated_layer(
    layer: MultiviewSelfAttention, tokens: Tensor, num_views: int, num_rows: int, heads: int
) -> Tensor:
    """The multiview branch with the repeating attention."""
    qkv = (project(tokens) for project in (layer.to_q_mv, layer.to_k_mv, layer.to_v_mv))
    return layer.to_out_mv[0](repeated_attention(*qkv, num_views, num_rows, heads))


Ways = dict[str, Callable[[], Any]]


def make_ways(num_views: int, side: int, width: int, heads: int, device: str, dtype: torch.dtype) -> Any:
    """What is measured: stage -> way -> call. Calls with a backward pass give output and gradients."""
    torch.manual_seed(0)
    tokens = [torch.randn(num_views, side * side, width, device=device, dtype=dtype) for _ in range(3)]
    layer = MultiviewSelfAttention(width, width).to(device, dtype)

    def layer_ours(x: Tensor, *_: Any) -> Tensor:
        return layer._multiview(x, heads, num_views, side)

    def layer_theirs(x: Tensor, *_: Any) -> Tensor:
        return repeated_layer(layer, x, num_views, side, heads)

    forms = {
        "attention": {
            "ours": lambda *qkv: merged_attention(*qkv, num_views, side, heads),
            "repeated": lambda *qkv: repeated_attention(*qkv, num_views, side, heads),
        },
        "layer": {"ours": layer_ours, "repeated": layer_theirs},
    }

    @torch.no_grad()
    def forward(form: Callable[..., Tensor]) -> list[Tensor]:
        return [form(*tokens)]

    def both(form: Callable[..., Tensor]) -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in tokens]
        out = form(*leaves)
        out.square().mean().backward()
        layer.zero_grad(set_to_none=True)
        return [out.detach(), *(x.grad for x in leaves if x.grad is not None)]

    passes = {"forward": forward, "forward+backward": both}
    return {
        f"{form}, {name}": {way: lambda f=f, p=p: p(f) for way, f in ways.items()}
        for form, ways in forms.items()
        for name, p in passes.items()
    }


def largest_difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Largest difference by the largest value, over output and gradients."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True))


def measure_way(work: Callable[[], Any], device: str) -> tuple[int, Any]:
    """Peak live bytes above the inputs, and the result."""
    if device == "cpu":
        return measure_live(work)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = work()
    return torch.cuda.max_memory_allocated() - before, result


def measure(ways: Ways, device: str, repeats: int) -> dict[str, float]:
    """Times, memory and agreement of the two ways."""
    memory, results = {}, {}
    for name, work in ways.items():
        memory[name], results[name] = measure_way(work, device)
    difference = largest_difference(results["ours"], results["repeated"])
    del results
    seconds = time_in_turn(ways, repeats)
    return {
        "time_ratio": median_ratio(seconds["ours"], seconds["repeated"]),
        "ours_ms": 1e3 * statistics.median(seconds["ours"]),
        "repeated_ms": 1e3 * statistics.median(seconds["repeated"]),
        "memory_ratio": memory["ours"] / memory["repeated"],
        "ours_mib": memory["ours"] / 2**20,
        "repeated_mib": memory["repeated"] / 2**20,
        "largest_difference": difference,
    }


def main() -> int:
    """Measure, print, and write README.md and report.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/results/size/attention"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    dtype, found = getattr(torch, arguments.dtype), {}
    for shape, size in SHAPES.items():
        for num_views in VIEWS:
            for stage, ways in make_ways(num_views, *size, arguments.device, dtype).items():
                figures = measure(ways, arguments.device, arguments.repeats)
                found[f"{shape}, {num_views} views: {stage}"] = figures
    rows = [
        [name, f"**{f['time_ratio']:.2f}**", f"{f['ours_ms']:.0f} / {f['repeated_ms']:.0f}",
         f"**{f['memory_ratio']:.2f}**", f"{f['ours_mib']:.0f} / {f['repeated_mib']:.0f}",
         f"{f['largest_difference']:.0e}"]
        for name, f in found.items()
    ]  # fmt: skip
    header = ["", "time ratio", "ms, ours / repeated", "memory ratio", "MiB, ours / repeated", "difference"]
    text = (
        f"{arguments.dtype} on {arguments.device}, one prompt, {arguments.repeats} turns; time ratios are "
        "medians over the turns, memory is what lives at once above the inputs, differences are relative to "
        "the largest value, over output and gradients of the inputs."
    )
    text = f"{text}\n\n{markdown_table(header, rows)}"
    write_results(arguments.out, "benchmarks.attention", "Multiview attention", text, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
