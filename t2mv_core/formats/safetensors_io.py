"""Weights on disk: safetensors only, written atomically; damage gives a sentence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .atomic import replaced

ENDINGS = (".safetensors", ".sft")
"""What safetensors files are called, in capitals or not, as in ComfyUI."""
_CHECKED_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def write_safetensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write tensors atomically, see `replaced`.

    Raises:
        OSError: the folder cannot be written or the disk is full; `path` is then unchanged.
    """
    from safetensors.torch import save

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replaced(path) as temporary:
        # Not save_file(): it makes files that only their owner may read, whatever the umask says.
        temporary.write_bytes(save(contiguous, dict(metadata)))


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all tensors and the metadata of a safetensors file, onto the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not a readable safetensors file, or holds NaN or infinity.
    """
    opened = open_safetensors(path)
    tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    for name, tensor in tensors.items():
        check_finite(tensor, name, path)
    return tensors, opened.metadata() or {}


def read_with_config(path: Path, architecture: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and configuration of a network that this project saved (JSON in the file's metadata).

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, of another architecture, or without a configuration.
    """
    tensors, metadata = read_safetensors(path)
    saved = metadata.get("architecture")
    if saved != architecture:
        raise ValueError(
            f"{path} holds {saved or 'no named architecture'}, not {architecture}; choose another file."
        )
    try:
        return tensors, dict(json.loads(metadata["config"]))
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{path} has no readable configuration in its metadata; save it again with this project."
        ) from error


def known_fields(record: type, config: Mapping[str, Any], path: Path | str) -> Mapping[str, Any]:
    """Return a saved configuration whose keys are all fields of a dataclass.

    Raises:
        ValueError: there is another key.
    """
    if unknown := sorted(config.keys() - {field.name for field in fields(record)}):
        raise ValueError(f"{path}: config key {unknown[0]!r} is unknown; another version made the file.")
    return config


def open_safetensors(path: Path) -> Any:
    """Map a safetensors file; its tensors lie in the file until they are touched.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not a readable safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"There is no weights file at {path}; check the name and the folder.")
    try:
        return safe_open(path, framework="pt", device="cpu")
    except SafetensorError as error:
        refuse_no_weights(path)
        raise ValueError(
            f"{path} is damaged or not a safetensors file ({error}); download or save it again."
        ) from error


def is_safetensors(path: Path | str) -> bool:
    """Return whether a file is safetensors by its ending."""
    return str(path).lower().endswith(ENDINGS)


def refuse_no_weights(path: Path) -> None:
    """Raise ValueError for a file that is not what its ending says, and say what it is."""
    with path.open("rb") as file:
        head = file.read(64)
    if head.lstrip()[:1] == b"<" or head.startswith(b"version https://git-lfs"):
        raise ValueError(
            f"{path} is no weights file but text: a web page, or git-lfs' pointer to the file. Download the "
            "file itself."
        )
    if head.startswith(b"GGUF"):
        raise ValueError(f"{path} is a GGUF file, which holds quantised weights; choose a safetensors file.")
    if head.startswith((b"PK\x03\x04", b"\x80\x02")) and is_safetensors(path):
        raise ValueError(
            f"{path} is a pickle with another ending, which can run programs; fetch the safetensors file."
        )


def file_identity(path: Path) -> tuple[str, int, int, int]:
    """Return what tells a file, and each version of it, from all others: resolved path, inode, size, mtime.

    The times of access and of the inode's change are left out: reading or renaming a file changes them.
    """
    status = path.stat()
    return str(path.resolve()), status.st_ino, status.st_size, status.st_mtime_ns


def check_finite(tensor: Tensor, name: str, path: Path) -> None:
    """Raise ValueError if a weight holds NaN or infinity."""
    if not is_finite(tensor):
        raise ValueError(f"{path}: weight {name!r} holds NaN or infinity; the file is unusable.")


def is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor is free of NaN and infinity; types other than the usual floats pass."""
    if tensor.dtype not in _CHECKED_DTYPES or tensor.numel() == 0:
        return True
    # Both ends of the range, NaN included, without a second tensor of the weight's size.
    return all(bool(end.isfinite()) for end in torch.aminmax(tensor.detach()))
