"""Names in a workflow to files in ComfyUI's folders, and back: only what ComfyUI lists can be named."""

from __future__ import annotations

import hashlib
import os
from functools import partial
from pathlib import Path

import folder_paths

from ...t2mv_core.formats.safetensors_io import ENDINGS, file_identity, is_safetensors
from ...t2mv_core.formats.sources import current_snapshot
from .checks import find_choice

ADAPTER_FOLDER = "mvadapter"
REWARD_FOLDER = "t2mv_rewards"
REWARD_EXTENSIONS = {*ENDINGS, ".pt", ".pth", ".bin"}
"""Published rewards come as pickles, too: those are read with weights_only, never run."""


def register_folders() -> None:
    """Make this pack's model folders known to ComfyUI; paths from extra_model_paths.yaml stay as they are."""
    for name, extensions in ((ADAPTER_FOLDER, {*ENDINGS}), (REWARD_FOLDER, REWARD_EXTENSIONS)):
        folder_paths.add_model_folder_path(name, os.path.join(folder_paths.models_dir, name))
        paths, _ = folder_paths.folder_names_and_paths[name]
        folder_paths.folder_names_and_paths[name] = (paths, extensions)


def reward_folders() -> tuple[Path, ...]:
    """Return where ComfyUI keeps the weights of rewards, in the order in which it looks."""
    return tuple(Path(path) for path in folder_paths.get_folder_paths(REWARD_FOLDER))


def lora_folders() -> list[Path]:
    """Return where ComfyUI keeps LoRAs, in the order in which it looks."""
    return [Path(path) for path in folder_paths.get_folder_paths("loras")]


def refresh_lora_list() -> None:
    """Forget ComfyUI's listing: where folders keep whole seconds, it would not notice a new file."""
    folder_paths.filename_list_cache.pop("loras", None)


def output_dir() -> Path:
    """Return ComfyUI's folder for results."""
    return Path(folder_paths.get_output_directory()).resolve()


def list_files(folder: str) -> list[str]:
    """Return the safetensors files of one of ComfyUI's model folders; others can hold programs."""
    return [name for name in folder_paths.get_filename_list(folder) if is_safetensors(name)]


def refuse_pickle(name: str | None) -> None:
    """Raise ValueError for a name that ComfyUI may list and we do not: a pickle, which can run programs."""
    from ...t2mv_core.formats.checkpoint import PICKLED
    from ...t2mv_core.formats.shards import pickle_refusal

    if isinstance(name, str) and name.lower().endswith(PICKLED):
        raise ValueError(pickle_refusal(name))


def find_file(folder: str, name: str) -> Path:
    """Return the file behind a listed name.

    Raises:
        ValueError: the name is not in the list (also when it tries to leave the folder).
    """
    listed = find_choice(name, list_files(folder))
    if listed is None:
        raise ValueError(
            f"{name!r} is not a safetensors file in ComfyUI's {folder!r} folder; put it there and refresh."
        )
    return Path(folder_paths.get_full_path_or_raise(folder, listed))


def list_diffusers_folders() -> dict[str, Path]:
    """Find models in diffusers' folder format under ComfyUI's `diffusers` folders: name -> folder."""
    return folders_with("model_index.json")


def list_unet_folders() -> dict[str, Path]:
    """Find single parts in diffusers' folder format there, such as LCM-SDXL's UNet: name -> folder."""
    models, parts = list_diffusers_folders().values(), folders_with("config.json")
    return {name: path for name, path in parts.items() if not any(map(path.is_relative_to, models))}


def folders_with(filename: str) -> dict[str, Path]:
    """Find the folders there that hold a file: name -> folder; in a Hub's cache today's snapshot first."""
    folders: dict[str, Path] = {}
    for search_dir in folder_paths.get_folder_paths("diffusers"):
        for parent, children, files in os.walk(search_dir, followlinks=True):
            children.sort(key=partial(_age_of_snapshot, parent))
            if filename in files:
                children.clear()  # a model's own parts hold no further models
                folders.setdefault(Path(parent).relative_to(search_dir).as_posix(), Path(parent))
    return folders


def _age_of_snapshot(parent: str, name: str) -> tuple[bool, str]:
    """Sort by name, but in a Hub's cache (`<repository>/snapshots`) first the snapshot that is current."""
    is_current = (
        Path(parent).name == "snapshots" and current_snapshot(Path(parent).parent) == Path(parent) / name
    )
    return not is_current, name


def fingerprint(path: Path) -> str:
    """Return the identity of a file, or of everything in a folder."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    parts = [":".join(map(str, file_identity(file))) for file in files if file.is_file()]
    return digest("|".join(parts) or f"{path}: missing")


def digest(identity: str) -> str:
    """Shorten an identity, and hide its paths: ComfyUI writes fingerprints into the pictures it saves."""
    return hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()
