"""Where the weights of the published rewards are: which files, from which page, in which folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..formats.sources import hub_file

FOLDER_NAME = "t2mv_rewards"
"""Name of the folder for reward weights among a program's models (ComfyUI: models/t2mv_rewards)."""


HUB = "https://huggingface.co/"


@dataclass(frozen=True)
class PublishedWeights:
    """Where the weights of one published reward are found.

    Attributes:
        names: files or folders to look for in a rewards folder; the first one that exists is taken.
        address: the page a person downloads them from.
        hub_files: what to fetch where `address` is a repository on the Hub: the file, or all of the folder's.
        needs: what must be there as well, each a choice of names: in the weights' folder, or beside the file.
        remark: what else the person needs to know, one sentence, or nothing.
    """

    names: tuple[str, ...]
    address: str
    hub_files: tuple[str, ...] = ()
    needs: tuple[tuple[str, ...], ...] = ()
    remark: str = ""


@dataclass(frozen=True)
class RewardPlaces:
    """Where to look for weights: named paths first, then the folders, then the Hub's cache.

    Attributes:
        paths: reward name -> file or folder of its weights.
        folders: rewards folders, in order.
        allow_download: whether a Hub repository may be fetched; without, nothing touches the network.
    """

    paths: Mapping[str, Path] = field(default_factory=dict)
    folders: tuple[Path, ...] = ()
    allow_download: bool = False


def find_local_weights(name: str, weights: PublishedWeights, places: RewardPlaces) -> Path | None:
    """Find the weights of a reward in the named path or one of the folders; None when they are in neither.

    Raises:
        FileNotFoundError: nothing is at the named path, or the weights are not complete.
    """
    if name in places.paths:
        path: Path | None = places.paths[name]
        if path is not None and not path.exists():
            raise FileNotFoundError(
                f"The weights of the reward {name} were said to be at {path}, where nothing is; get them "
                f"from {weights.address}, or correct the path."
            )
    else:
        candidates = (folder / part for folder in places.folders for part in weights.names)
        path = next((candidate for candidate in candidates if candidate.exists()), None)
    if path is not None:
        _check_complete(name, weights, path)
    return path


def find_weights(name: str, weights: PublishedWeights, places: RewardPlaces) -> Path:
    """Find the weights of a reward: here, in the Hub's cache, or on the Hub where downloading is allowed.

    Raises:
        FileNotFoundError: nowhere; with the address to get them from and the folder to put them into.
    """
    local = find_local_weights(name, weights, places)
    if local is not None:
        return local
    reason = ""
    if weights.hub_files:
        repo_id = weights.address.removeprefix(HUB)
        try:
            files = [hub_file(repo_id, part, places.allow_download) for part in weights.hub_files]
            return files[0] if len(files) == 1 else files[0].parent
        except FileNotFoundError as error:
            reason = f" ({error})" if places.allow_download else ""
    what = " or ".join(weights.names)
    target = places.folders[0] if places.folders else f"a folder named {FOLDER_NAME}"
    raise FileNotFoundError(
        f"The weights of the reward {name} are not on this machine: get {what} from {weights.address} and "
        f"put it into {target}.{_spaced(weights.remark)}{reason}"
    )


def reward_files(weights: PublishedWeights, path: Path) -> list[Path]:
    """Return a reward's weights as they lie here: the file or folder, and what it needs beside it."""
    beside = [path.with_name(name) for choice in weights.needs for name in choice if not path.is_dir()]
    return [path, *(other for other in beside if other.is_file() and other != path)]


def _check_complete(name: str, weights: PublishedWeights, path: Path) -> None:
    folder = path if path.is_dir() else path.parent
    for choice in weights.needs:
        if not any((folder / part).is_file() for part in choice):
            raise FileNotFoundError(
                f"The weights of the reward {name} in {folder} are not complete: {' or '.join(choice)} is "
                f"missing; get it from {weights.address}.{_spaced(weights.remark)}"
            )


def _spaced(remark: str) -> str:
    return f" {remark}" if remark else ""
