"""What a run was started with: versions, devices, commit and command line, kept beside its results."""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from t2mv_core import __version__
from t2mv_core.formats.atomic import replaced

logger = logging.getLogger(__name__)

PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "numpy")
REPOSITORY = Path(__file__).resolve().parents[2]


def describe_environment() -> dict[str, Any]:
    """Return facts about this process and machine, as JSON values.

    Environment variables are left out on purpose: they hold tokens and passwords.

    Returns:
        started: time of this call, ISO 8601, UTC.
        command: the words of the command line; the program as `program_name` has it.
        t2mv, python, platform: versions of this pack, of Python, of the operating system.
        packages: version by package name; None for one that is not installed.
        devices: `name` and `memory_gib` of each CUDA device; without one, the CPU's name, `num_cores` and
            `num_threads` (of torch).
        commit: see `describe_commit`.
    """
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": [program_name(sys.argv[0]), *sys.argv[1:]],
        "t2mv": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: package_version(name) for name in PACKAGES},
        "devices": describe_devices(),
        "commit": describe_commit(REPOSITORY),
    }


def write_environment(path: Path) -> None:
    """Add this start to the JSON list in `path`; a resumed run has one entry per start.

    A damaged file is replaced, with a warning: a record must not keep a run from starting.

    Raises:
        OSError: the file cannot be written; it is then unchanged.
    """
    try:
        starts = [*json.loads(path.read_bytes())] if path.is_file() else []
    except (ValueError, TypeError, RecursionError):
        logger.warning("%s is damaged; the record of earlier starts is lost.", path)
        starts = []
    with replaced(path) as temporary:
        text = json.dumps([*starts, describe_environment()], indent=1)
        temporary.write_text(text + "\n", encoding="utf-8")


def program_name(program: str) -> str:
    """Return the program's path within this repository, elsewhere its bare name: records get published."""
    path = Path(program).resolve()
    return path.relative_to(REPOSITORY).as_posix() if path.is_relative_to(REPOSITORY) else path.name


def package_version(name: str) -> str | None:
    """Return the version of an installed package, None when it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def describe_devices() -> list[dict[str, Any]]:
    """Return the CUDA devices with their memory in GiB, or the CPU when none answers."""
    try:
        devices = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    except RuntimeError:  # the driver does not answer; whether that matters is for the run to find out
        devices = []
    if devices:
        return [{"name": d.name, "memory_gib": round(d.total_memory / 2**30, 1)} for d in devices]
    name = platform.processor() or platform.machine() or "cpu"
    return [{"name": name, "num_cores": os.cpu_count(), "num_threads": torch.get_num_threads()}]


def describe_commit(folder: Path) -> str | None:
    """Return the commit that is checked out in the repository whose root is `folder`; None elsewhere.

    Git's own files say it: the pack starts no programs.
    """
    head = _read_line(folder / ".git" / "HEAD")
    if head is None or not head.startswith("ref: "):
        return head
    name = head.removeprefix("ref: ")
    commit = _read_line(folder / ".git" / name)
    if commit is not None:
        return commit
    try:
        packed = (folder / ".git" / "packed-refs").read_text("utf-8").splitlines()
    except (OSError, ValueError):
        return None
    return next((line.partition(" ")[0] for line in packed if line.endswith(f" {name}")), None)


def _read_line(path: Path) -> str | None:
    try:
        return path.read_text("utf-8").strip()
    except (OSError, ValueError):
        return None
