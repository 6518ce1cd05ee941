"""What benchmarks share: memory counted exactly, time with peak memory, and the report.

Live memory is the bytes of every tensor that exists, watched from operation to operation. It works on the
CPU, where the resident set says too little, and on the meta device, where a full-size model "runs" in
seconds. What kernels take inside themselves is not seen; on a GPU ask `torch.cuda.max_memory_allocated`.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from training.run.environment import describe_environment


class LiveMemory(TorchDispatchMode):
    """Counts the storages that operations make while it is active; those that were there before are not.

    Attributes:
        live_bytes: what lives now.
        peak_bytes: the most that ever lived at once.
    """

    def __init__(self) -> None:
        """Start at zero."""
        super().__init__()
        self.live_bytes = self.peak_bytes = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, then count what is new among its results."""
        before = {id(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage(), before)
        return result

    def hold(self, tensors: Iterable[torch.Tensor]) -> None:
        """Count tensors that are there already, such as weights."""
        for tensor in tensors:
            self._count(tensor.untyped_storage(), set())

    def _count(self, storage: torch.UntypedStorage, before: set[int]) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._known or key in before:
            return

        def died(_: Any) -> None:
            self.live_bytes -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, died)
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)


def measure_live(work: Callable[[], Any], *resident: torch.nn.Module) -> tuple[int, Any]:
    """Return the peak of bytes that lived at once (weights of the modules included), and the result."""
    memory = LiveMemory()
    memory.hold(x for module in resident for x in (*module.parameters(), *module.buffers()))
    with memory:
        result = work()
    return memory.peak_bytes, result


@contextmanager
def flash_attention_on_meta() -> Iterator[None]:
    """Let attention on the meta device take the fused kernel's memory, as it does on CPU and GPU.

    By itself PyTorch decomposes it there, with matrices of all queries by all keys that no device makes.
    """
    original = F.scaled_dot_product_attention

    def fused(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any, **options: Any) -> Any:
        if query.device.type != "meta":
            return original(query, key, value, *rest, **options)
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)[0]

    F.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original


def timed(work: Callable[[], Any], device: str) -> tuple[float, float, Any]:
    """Return seconds, growth of memory in MiB, and the result.

    Memory is what the work needs above what lay there before: on the CPU the growth of the resident set's
    peak, on a GPU that of PyTorch's allocated bytes.
    """
    is_cpu = device == "cpu"
    gc.collect()
    if is_cpu:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # else freed memory stays resident and hides the next peak
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM to the present resident set
    else:
        torch.cuda.reset_peak_memory_stats()
    before = status_bytes("VmHWM") if is_cpu else torch.cuda.memory_allocated()
    started = time.perf_counter()
    result = work()
    if not is_cpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    peak = status_bytes("VmHWM") if is_cpu else torch.cuda.max_memory_allocated()
    return seconds, (peak - before) / 2**20, result


def status_bytes(field: str) -> int:
    """Return a size of this process from /proc (Linux), such as VmRSS."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def report(path: Path, module: str, text: str, figures: Any) -> None:
    """Print a text, and write the figures, see `write_figures`."""
    write_figures(path, module, figures)
    print(f"{text}\n\nFigures: {path}")  # noqa: T201 - a command line


def write_figures(path: Path, module: str, figures: Any) -> None:
    """Write figures as JSON with command, commit, device and versions."""
    command = " ".join(["python -m", module, *sys.argv[1:]])
    record = {"command": command, "environment": describe_environment(), "figures": figures}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
