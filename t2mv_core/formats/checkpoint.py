"""Files of other programs: tables in JSON, and weights that may be pickles and are read without being run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch
from torch import Tensor

from .kinds import refuse_quantised
from .safetensors_io import check_finite, read_safetensors, refuse_no_weights
from .strict import WeightsFile

PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pt2", ".pkl")
"""Endings of files by torch.save, which can hold programs: they are read as plain weights or not at all."""
SAFE_TORCH = (2, 6)
WRAPPERS = ("state_dict", "model")
"""Keys under which training programs put the weights."""
DAMAGED_ZIP = (BadZipFile, NotImplementedError, UnicodeDecodeError)
"""What zipfile raises of a damaged directory; that a version is too new, or a name no text, is one, too."""


def read_json(path: Path, hint: str) -> dict[str, Any]:
    """Read a table from a JSON file.

    Raises:
        FileNotFoundError: no such file; `hint` is the end of the sentence.
        ValueError: the file is not such a table.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; {hint}")
    try:
        return dict(json.loads(path.read_text(encoding="utf-8-sig")))
    except (ValueError, TypeError) as error:  # not JSON, not text, or JSON that is not a table
        raise ValueError(f"{path} is not readable ({error}); fetch it again.") from error


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a published weights file: safetensors, or a state dict by torch.save.

    The latter is mapped, not copied, and read as plain weights (`weights_only=True`). A wrapping "state_dict"
    or "model" and the prefix "module." of parallel training are taken off.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, a file that would have to be run, no weights in it or such with NaN, or a torch
            too old for it.
    """
    if path.suffix.lower() not in PICKLED:
        refuse_quantised(WeightsFile(path))
        return read_safetensors(path)[0]
    if not path.is_file():
        raise FileNotFoundError(f"There is no weights file at {path}; check the name and the folder.")
    _refuse_old_torch(path)
    kind = _kind_of_pickle(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=kind == "zip")
    except Exception as error:  # a damaged pickle raises nearly anything; torch's words advise to run it
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
        check_finite(value, str(name), path)
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def _refuse_old_torch(path: Path) -> None:
    """Raise before torch 2.6: its weights_only could be tricked into running a file (CVE-2025-32434)."""
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < SAFE_TORCH:
        raise ValueError(
            f"{path.name} is a pickle, which PyTorch {torch.__version__} cannot open safely; use PyTorch "
            f"{SAFE_TORCH[0]}.{SAFE_TORCH[1]} or newer, or save the file's weights as safetensors elsewhere."
        )


def _kind_of_pickle(path: Path) -> str:
    """Tell "zip", as torch writes since 1.6 and can map, from the older "stream".

    Raises:
        ValueError: text, or a TorchScript archive.
    """
    refuse_no_weights(path)
    with suppress(*DAMAGED_ZIP):
        if not is_zipfile(path):  # of some damaged archives it raises
            return "stream"
    with suppress(*DAMAGED_ZIP), ZipFile(path) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            raise ValueError(
                f"{path} is a TorchScript archive, a program with its weights, as OpenAI publishes CLIP; it "
                "is not run. Fetch the weights as safetensors, or save its state dict as safetensors."
            )
    return "zip"
