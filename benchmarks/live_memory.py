"""Live memory, counted exactly: the bytes of every tensor that exists, watched from operation to operation.

Works on the CPU, where the resident set says too little, and on the meta device, where nothing is computed:
there a full-size model is "run" in seconds. What kernels take inside themselves is not seen; on a GPU ask
`torch.cuda.max_memory_allocated`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


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
    """Peak of the bytes that lived at once, made by `work` or weights of the modules; and its result."""
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
