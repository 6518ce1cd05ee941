"""Where the weights of the published rewards are: which files, from which page, in which folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..formats.hub import hub_file, hub_folder

FOLDER_NAME = "t2mv_rewards"
"""Name of the folder for reward weights among a program's models (ComfyUI: models/t2mv_rewards)."""


@dataclass(frozen=True)
class PublishedWeights:
    """Where the weights of one published reward are found.

    Attributes:
        names: files or folders looked for in a rewards folder, the first one found is taken.
        address: the page a person downloads them from.
        hub_id: repository on the Hugging Face Hub; none for weights that are elsewhere.
        hub_file: the one file of the repository to fetch; none fetches its folder.
        needs: what must be there as well, each a choice of names: in the weights' folder, or beside the file.
        remark: what else the person needs to know, one sentence, or nothing.
    """

    names: tuple[str, ...]
    address: str
    hub_id: str | None = None
    hub_file: str | None = None
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
    """The weights of a reward in the named path or one of the folders; None when they are in neither.

    Raises:
        FileNotFoundError: a path was named and is not there, or what was found is not complete.
    """
    if name in places.paths:
        named = places.paths[name]
        if not named.exists():
            raise FileNotFoundError(
                f"The weights of the reward {name} were said to be at {named}, where nothing is; get them "
                f"from {weights.address}, or correct the path."
            )
        found: Path | None = named
    else:
        candidates = (folder / part for folder in places.folders for part in weights.names)
        found = next((path for path in candidates if path.exists()), None)
    if found is not None:
        _refuse_incomplete(name, weights, found)
    return found


def reward_files(weights: PublishedWeights, path: Path) -> list[Path]:
    """A reward's weights as they lie here: the file or folder, and what it needs beside it."""
    folder = path if path.is_dir() else path.parent
    beside = [folder / name for choice in weights.needs for name in choice if not path.is_dir()]
    return [path, *(other for other in beside if other.is_file() and other != path)]


def _refuse_incomplete(name: str, weights: PublishedWeights, path: Path) -> None:
    folder = path if path.is_dir() else path.parent
    for choice in weights.needs:
        if not any((folder / part).is_file() for part in choice):
            remark = f" {weights.remark}" if weights.remark else ""
            raise FileNotFoundError(
                f"The weights of the reward {name} in {folder} are not complete: {' or '.join(choice)} is "
                f"missing; get it from {weights.address}.{remark}"
            )


def find_weights(name: str, weights: PublishedWeights, places: RewardPlaces) -> Path:
    """The weights of a reward: local, or of the Hub's cache, or downloaded where that is allowed.

    Raises:
        FileNotFoundError: nowhere; with the address to get them from and the folder to put them into.
    """
    local = find_local_weights(name, weights, places)
    if local is not None:
        return local
    if weights.hub_id is not None:
        try:
            if weights.hub_file is not None:
                return hub_file(weights.hub_id, weights.hub_file, places.allow_download)
            folder = hub_folder(weights.hub_id, ("*.json", "*.safetensors"), places.allow_download)
            _refuse_incomplete(name, weights, folder)
            return folder
        except FileNotFoundError as error:
            if places.allow_download:
                raise FileNotFoundError(f"{missing_sentence(name, weights, places)} ({error})") from error
    raise FileNotFoundError(missing_sentence(name, weights, places))


def missing_sentence(name: str, weights: PublishedWeights, places: RewardPlaces) -> str:
    """What is missing, where to get it, and where to put it."""
    what = " or ".join(weights.names)
    target = str(places.folders[0]) if places.folders else f"a folder named {FOLDER_NAME}"
    remark = f" {weights.remark}" if weights.remark else ""
    return (
        f"The weights of the reward {name} are not on this machine: get {what} from {weights.address} and "
        f"put it into {target}.{remark}"
    )
