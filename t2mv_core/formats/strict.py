"""Big weights files tensor by tensor: names and shapes first, then each tensor once, into an empty module.

The file is mapped and each tensor copied out of it in the wanted type; the mapping is let go of on the way,
so that the peak stays near the size of the result. Using the mapped tensors themselves would save the copy,
but they lie at addresses that no vector instruction likes (other kernels, other last bits: the same weights
in another layout would draw another picture), and a file overwritten in place would crash the program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .safetensors_io import check_finite, open_safetensors

_RELEASE_BYTES = 128 * 2**20  # copied from one mapping before it is let go of


class WeightsFile:
    """A safetensors file that is read tensor by tensor."""

    def __init__(self, path: Path) -> None:
        """Open a file; see `open_safetensors` for what raises."""
        self.path = path
        self._opened = open_safetensors(path)
        self._copied_bytes = 0
        self.metadata: dict[str, str] = self._opened.metadata() or {}
        slices = {key: self._opened.get_slice(key) for key in self._opened.keys()}
        self.shapes: dict[str, tuple[int, ...]] = {key: tuple(x.get_shape()) for key, x in slices.items()}

    def read(self, key: str, dtype: torch.dtype, change: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """One tensor in a type, changed (cut, transposed) before it is converted.

        Raises:
            ValueError: it holds NaN or infinity, or cannot be held by the wanted type.
        """
        stored = self._opened.get_tensor(key)
        check_finite(stored, key, self.path)
        tensor = stored if change is None else change(stored)
        copied = torch.empty(tensor.shape, dtype=dtype).copy_(tensor)
        if tensor.dtype != dtype:  # fp8 that was NaN, or too large for fp16
            self._check_conversion(copied, key, stored.dtype)
        self._copied_bytes += stored.nbytes
        if self._copied_bytes > _RELEASE_BYTES:
            self._opened, self._copied_bytes = open_safetensors(self.path), 0
        return copied

    def _check_conversion(self, converted: Tensor, key: str, stored: torch.dtype) -> None:
        try:
            check_finite(converted, key, self.path)
        except ValueError as error:
            raise ValueError(
                f"{self.path}: weight {key!r} ({stored}) is not finite as {converted.dtype}; use bfloat16 or "
                "float32, or fetch the file again."
            ) from error


@dataclass(frozen=True)
class Weight:
    """A tensor in a file, not read yet.

    Attributes:
        file: where it is.
        key: its name there.
        change: how to cut or transpose it for the module; None takes it as it is.
    """

    file: WeightsFile
    key: str
    change: Callable[[Tensor], Tensor] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape once changed."""
        stored = self.file.shapes[self.key]
        return stored if self.change is None else tuple(self.change(torch.empty(stored, device="meta")).shape)

    def read(self, dtype: torch.dtype) -> Tensor:
        """Read it; see `WeightsFile.read`."""
        return self.file.read(self.key, dtype, self.change)


@contextmanager
def without_weights() -> Iterator[None]:
    """Modules made inside have parameters without memory; their constants (buffers) are real."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        yield


def fill_module(module: nn.Module, weights: Mapping[str, Weight], dtype: torch.dtype, place: str) -> None:
    """Give an empty module its weights; everything is compared before the first one is read.

    Args:
        module: made under `without_weights`.
        weights: by the module's own names.
        dtype: wanted precision.
        place: what the file has to fit, for the error: "its config.json", say.

    Raises:
        ValueError: a weight is missing, unknown, of another shape, or not finite.
    """
    own = module.state_dict()
    missing, foreign = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    wrong = sorted(name for name in weights.keys() & own.keys() if weights[name].shape != own[name].shape)
    if missing or foreign or wrong:
        if missing:
            what = f"{missing[0]!r} is missing"
        elif foreign:
            what = f"{weights[foreign[0]].key!r} is not known to the model"
        else:
            shapes = f"{weights[wrong[0]].shape} instead of {tuple(own[wrong[0]].shape)}"
            what = f"{weights[wrong[0]].key!r} has the wrong shape, {shapes}"
        path = next((weight.file.path for weight in weights.values()), "The file")
        raise ValueError(
            f"{path} does not fit {place}: {what} ({len(missing)} missing, {len(foreign)} foreign, "
            f"{len(wrong)} of another shape). Fetch it again, or choose the file that belongs to this model."
        )
    module.load_state_dict({name: weight.read(dtype) for name, weight in weights.items()}, assign=True)
