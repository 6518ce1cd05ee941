"""Weights into modules: names and shapes are compared first, then each tensor is read once.

`check_fit` is the one comparison. Big files go tensor by tensor into a module without memory.

`WeightsFile` maps the file, copies each tensor out of it in the wanted type, and maps it anew on the way, so
that the peak stays near the size of the result. Using the mapped tensors themselves would save the copy, but
they lie at addresses that no vector instruction likes (other kernels, other last bits: the same weights in
another layout would draw another picture), and a file overwritten in place would crash the program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .safetensors_io import check_finite, is_finite, open_safetensors

Shape = tuple[int, ...]

_RELEASE_BYTES = 128 * 2**20  # copied from one mapping before the file is mapped anew


class WeightsFile:
    """A safetensors file that is read tensor by tensor."""

    def __init__(self, path: Path) -> None:
        """Open a file; see `open_safetensors`."""
        self.path = path
        self._opened = open_safetensors(path)
        self._copied_bytes = 0
        self.metadata: dict[str, str] = self._opened.metadata() or {}
        slices = {key: self._opened.get_slice(key) for key in self._opened.keys()}
        self.shapes: dict[str, Shape] = {key: tuple(x.get_shape()) for key, x in slices.items()}
        self.dtypes: dict[str, str] = {key: x.get_dtype() for key, x in slices.items()}
        """As the header has them: "F16", "F8_E4M3", "U8"."""

    def weights(self) -> dict[str, Weight]:
        """Return all weights by name, none of them read yet."""
        return {key: Weight(self, key) for key in self.shapes}

    def read(self, key: str, dtype: torch.dtype, change: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Read one tensor in a type, changed (cut, transposed) before it is converted.

        Raises:
            ValueError: it holds NaN or infinity, or cannot be held by the wanted type.
        """
        stored = self._opened.get_tensor(key)
        check_finite(stored, key, self.path)
        tensor = stored if change is None else change(stored)
        copied = torch.empty(tensor.shape, dtype=dtype).copy_(tensor)
        if tensor.dtype != dtype and not is_finite(copied):  # fp8 that was NaN, or too large for fp16
            raise ValueError(
                f"{self.path}: weight {key!r} ({stored.dtype}) is not finite as {dtype}; use bfloat16 or "
                "float32, or fetch the file again."
            )
        self._copied_bytes += stored.nbytes
        if self._copied_bytes > _RELEASE_BYTES:
            self._opened, self._copied_bytes = open_safetensors(self.path), 0
        return copied


@dataclass(frozen=True)
class Weight:
    """A tensor in a file, not read yet."""

    file: WeightsFile
    key: str
    change: Callable[[Tensor], Tensor] | None = None
    """How to cut or transpose it for the module."""

    @property
    def shape(self) -> Shape:
        """The shape after the change."""
        stored = self.file.shapes[self.key]
        return stored if self.change is None else tuple(self.change(torch.empty(stored, device="meta")).shape)

    def read(self, dtype: torch.dtype) -> Tensor:
        """Read it; see `WeightsFile.read`."""
        return self.file.read(self.key, dtype, self.change)


@contextmanager
def without_weights() -> Iterator[None]:
    """Make modules whose parameters have no memory yet; their constants (buffers) are real.

    Random weights of a large network cost gigabytes and seconds, only to be overwritten.
    """
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        yield


def check_fit(
    expected: Mapping[str, Shape],
    actual: Mapping[str, Shape],
    source: Path | str,
    place: str,
    cure: str = "Fetch it again, or choose the file that belongs to this model.",
    keys: Mapping[str, str] | None = None,
) -> None:
    """Compare the names and shapes of a model's weights with those of a file.

    Args:
        expected: shapes by name, as the model has them.
        actual: shapes by name, as the file has them.
        source: the file.
        place: what the file has to fit, "this UNet", say.
        cure: what the user can do, in a sentence.
        keys: what the file calls the weights, where it has other names.

    Raises:
        ValueError: a weight is missing, unknown or of another shape; names the first one and counts them.
    """
    missing, unknown = sorted(expected.keys() - actual.keys()), sorted(actual.keys() - expected.keys())
    wrong = sorted(name for name in expected.keys() & actual.keys() if actual[name] != expected[name])
    if not (missing or unknown or wrong):
        return
    name, keys = (missing or unknown or wrong)[0], keys or {}
    if missing:
        what = "is missing"
    elif unknown:
        what = "is not known to the model"
    else:
        what = f"has the wrong shape, {actual[name]} instead of {expected[name]}"
    raise ValueError(
        f"{source} does not fit {place}: {keys.get(name, name)!r} {what} ({len(missing)} missing, "
        f"{len(unknown)} unknown, {len(wrong)} of another shape). {cure}"
    )


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    """Return the shapes of tensors by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def fill_module(module: nn.Module, weights: Mapping[str, Weight], dtype: torch.dtype, place: str) -> None:
    """Give an empty module its weights from a file; everything is compared before the first one is read.

    Args:
        module: made under `without_weights`.
        weights: by the module's own names.
        dtype: wanted precision.
        place: what the file has to fit, for the error: "its config.json", say.

    Raises:
        ValueError: a weight is missing, unknown, of another shape, or not finite.
    """
    check_fit(
        shapes_of(module.state_dict()),
        {name: weight.shape for name, weight in weights.items()},
        next((weight.file.path for weight in weights.values()), "The file"),
        place,
        keys={name: weight.key for name, weight in weights.items()},
    )
    module.load_state_dict({name: weight.read(dtype) for name, weight in weights.items()}, assign=True)


def load_strictly(
    module: nn.Module, tensors: Mapping[str, Tensor], source: str, file_name: Callable[[str], str] = str
) -> None:
    """Give a module tensors that are in memory; they keep their precision in a module without weights.

    Args:
        module: a module made under `without_weights` takes the tensors themselves, any other copies them.
        tensors: by the names of the file.
        source: the file, for messages.
        file_name: the module's name of a weight -> the file's.

    Raises:
        ValueError: see `check_fit`.
    """
    names = {name: file_name(name) for name in module.state_dict()}
    expected = {names[name]: shape for name, shape in shapes_of(module.state_dict()).items()}
    check_fit(expected, shapes_of(tensors), source, "this model")
    is_empty = any(parameter.is_meta for parameter in module.parameters())
    module.load_state_dict({name: tensors[key] for name, key in names.items()}, assign=is_empty)
