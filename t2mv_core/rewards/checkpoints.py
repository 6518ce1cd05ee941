"""Weights files of scorers: read without running what is in them, and loaded strictly."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..formats.safetensors_io import read_safetensors

PICKLED = (".pt", ".pth", ".bin")
"""Endings of files by torch.save, which can hold programs: they are read as plain weights or not at all."""
SAFE_TORCH = (2, 6)
WRAPPERS = ("state_dict", "model")
"""Keys under which training programs put the weights."""


def load_strictly(
    module: nn.Module, tensors: Mapping[str, Tensor], source: str, file_name: Callable[[str], str] = str
) -> None:
    """Fill the module with the tensors: nothing missing, nothing left over, every shape right.

    Args:
        module: a module; one made `without_memory` takes the tensors themselves, any other copies them.
        tensors: by the names of the file.
        source: the file, for messages.
        file_name: the module's name of a weight -> the file's.

    Raises:
        ValueError: names the first weight that is missing, left over or of another shape, and the file.
    """
    expected = {file_name(name): (name, tensor.shape) for name, tensor in module.state_dict().items()}
    hint = f"{source} does not hold this model's weights; check that it is the right file and whole."
    for name, (_, shape) in expected.items():
        if name not in tensors:
            raise ValueError(f"Weight {name!r} is missing: {hint}")
        if tensors[name].shape != shape:
            given, wanted = list(tensors[name].shape), list(shape)
            raise ValueError(f"Weight {name!r} has shape {given}, the model needs {wanted}: {hint}")
    for name in tensors:
        if name not in expected:
            raise ValueError(f"Weight {name!r} is not part of the model: {hint}")
    is_empty = any(parameter.is_meta for parameter in module.parameters())
    fitted = {expected[name][0]: tensor for name, tensor in tensors.items()}
    module.load_state_dict(fitted, strict=True, assign=is_empty)


@contextmanager
def without_memory() -> Iterator[None]:
    """Modules built inside have parameters without memory, to be filled by `load_strictly`; buffers are real.

    A ViT-H costs 4 GB and ten seconds of random numbers otherwise, only to be overwritten.
    """
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        yield


def read_reward_file(path: Path, architecture: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and config of a scorer saved by this project (config as JSON in the safetensors metadata).

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, of another architecture, or without a config.
    """
    tensors, metadata = read_safetensors(path)
    found = metadata.get("architecture")
    if found != architecture:
        raise ValueError(
            f"{path} holds {found or 'no named architecture'}, not {architecture}; pass that scorer's file."
        )
    try:
        return tensors, dict(json.loads(metadata["config"]))
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{path} has no readable config in its metadata; save it again with this project."
        ) from error


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Tensors of a published weights file: safetensors, or a state dict by torch.save.

    The latter is mapped, not copied, and read as plain weights (`weights_only=True`). A wrapping "state_dict"
    or "model" and the prefix "module." of parallel training are taken off.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, a file that would have to be run, no weights in it, or a torch too old for it.
    """
    if path.suffix.lower() not in PICKLED:
        return read_safetensors(path)[0]
    if not path.is_file():
        raise FileNotFoundError(f"There is no weights file at {path}; check the name and the folder.")
    _refuse_old_torch(path)
    kind = _kind_of_pickle(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=kind == "zip")
    except (
        Exception
    ) as error:  # a damaged pickle raises nearly anything, and torch's words advise to run the file
        raise ValueError(
            f"{path} cannot be read as weights: it is damaged (an interrupted download, perhaps), or holds a "
            "program, which is not run. Download it again, or save its state dict as safetensors."
        ) from error
    while isinstance(content, Mapping) and (inner := next((k for k in WRAPPERS if k in content), None)):
        content = content[inner]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{path} holds no weights by name; it is not a state dict.")
    for name, value in content.items():
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise ValueError(f"{path}: {name!r} is {kind}, not a tensor; the file is no state dict.")
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def _refuse_old_torch(path: Path) -> None:
    """Before 2.6, weights_only could be tricked into running what a file holds (CVE-2025-32434)."""
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < SAFE_TORCH:
        raise ValueError(
            f"{path.name} is a pickle, which PyTorch {torch.__version__} cannot open safely; use PyTorch "
            f"{SAFE_TORCH[0]}.{SAFE_TORCH[1]} or newer, or save the file's weights as safetensors elsewhere."
        )


def _kind_of_pickle(path: Path) -> str:
    """Tell "zip", as torch writes since 1.6 and can map, from the "stream" before.

    Raises:
        ValueError: the file is text: a web page, or the pointer that a git checkout leaves for a large file.
    """
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head.lstrip()[:1] == b"<" or head.startswith(b"version https://git-lfs"):
        raise ValueError(
            f"{path} is no weights file but text: a web page, or git-lfs' pointer to the file. Download the "
            "file itself."
        )
    return "stream"


def check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights that would make every score NaN; `read_safetensors` has looked already.

    Raises:
        ValueError: names the first weight with NaN or infinity.
    """
    if path.suffix.lower() not in PICKLED:
        return
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(f"{path}: weight {name!r} holds NaN or infinity; the file is unusable.")
