"""The weights of a folder: one file, or several with an index, as diffusers and transformers save them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from .checkpoint import PICKLED, read_json
from .strict import Shape, Weight, WeightsFile

_STEMS = ("diffusion_pytorch_model", "model")
_PAIRS = [  # (index, whole) for each stem and precision
    (f"{stem}.safetensors{index}.json", f"{stem}{variant}.safetensors")
    for stem in _STEMS
    # The last is an older name of diffusers'.
    for index, variant in ((".index", ""), (".index.fp16", ".fp16"), (".fp16.index", ".fp16"))
]
WEIGHT_NAMES = tuple(dict.fromkeys(whole for _, whole in _PAIRS))
INDEX_NAMES = tuple(index for index, _ in _PAIRS)


class ShardedWeights:
    """The weights of several files behind the interface of one `WeightsFile`."""

    def __init__(self, index: Path) -> None:
        """Open all shards of an index.

        Raises:
            FileNotFoundError: a shard is missing.
            ValueError: the index or a shard is damaged, or they do not belong together.
        """
        places = places_of(index)
        names = sorted(set(places.values()))
        if outside := [name for name in names if Path(name).name != name]:
            raise ValueError(f"{index} names {outside[0]!r}, which is not in its folder; fetch it again.")
        if missing := [name for name in names if not (index.parent / name).is_file()]:
            raise FileNotFoundError(
                f"{index.parent / missing[0]} is missing, one of the {len(names)} files that "
                f"{index.name} names ({len(missing)} missing); fetch it again."
            )
        shards = {name: WeightsFile(index.parent / name) for name in names}
        files = {key: shards[place] for key, place in places.items()}
        if strangers := [key for key, file in files.items() if key not in file.shapes]:
            raise ValueError(
                f"{files[strangers[0]].path} does not hold {strangers[0]!r}, as {index.name} says: they are "
                "of different saves. Fetch the folder again."
            )
        self.path, self._files = index, files
        self.metadata = {key: value for file in shards.values() for key, value in file.metadata.items()}
        self.shapes: dict[str, Shape] = {key: file.shapes[key] for key, file in files.items()}
        self.dtypes = {key: file.dtypes[key] for key, file in files.items()}

    def weights(self) -> dict[str, Weight]:
        """Return all weights by name, none of them read yet."""
        return {key: Weight(file, key) for key, file in self._files.items()}


def places_of(index: Path) -> dict[str, str]:
    """Return which file each weight of an index is in; ValueError when it names none."""
    places = read_json(index, "the folder is incomplete.").get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{index} names no weights; fetch it again.")
    return {str(key): str(place) for key, place in places.items()}


def open_weights(place: Path, notices: list[str]) -> WeightsFile | ShardedWeights:
    """Open a file, or what a folder holds: one whole file before shards, full precision before half.

    Args:
        place: file or folder.
        notices: takes a sentence where a folder holds both.

    Raises:
        FileNotFoundError: there are no weights, or a shard is missing.
        ValueError: they are damaged, or pickles.
    """
    if place.is_file():
        return WeightsFile(place)
    for index, whole in _PAIRS:
        has_index, has_whole = (place / index).is_file(), (place / whole).is_file()
        if has_whole and has_index:
            notices.append(f"{place} holds {whole} and shards beside it; the shards are not read.")
        if has_whole:
            return WeightsFile(place / whole)
        if has_index:
            return ShardedWeights(place / index)
    pieces = sorted(place.glob("*-of-*.safetensors"))
    if pieces:
        raise FileNotFoundError(f"{pieces[0]} is one of several; their index, {INDEX_NAMES[0]}, is missing.")
    if pickles := [path for path in sorted(place.glob("*")) if path.suffix.lower() in PICKLED]:
        raise ValueError(pickle_refusal(pickles[0]))
    raise FileNotFoundError(no_weights(place, WEIGHT_NAMES))


def has_weights(folder: Path) -> bool:
    """Return whether `open_weights` would find a whole file, or an index with all of its shards."""
    for index, whole in _PAIRS:
        if (folder / whole).is_file():
            return True
        if (folder / index).is_file():
            with suppress(ValueError):
                return all((folder / shard).is_file() for shard in set(places_of(folder / index).values()))
            return False
    return False


def weights_file(folder: Path, names: Sequence[str]) -> Path:
    """Return the first of the named files that a folder holds; FileNotFoundError when it holds none."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(no_weights(folder, names))


def no_weights(folder: Path, names: Sequence[str]) -> str:
    """Return the sentence about a folder without weights."""
    return f"{folder} has no weights (looked for {', '.join(names)}); fetch it again."


def pickle_refusal(path: Path | str) -> str:
    """Return the sentence that refuses a model's weights in a pickle."""
    return (
        f"{path} is a pickle, which can run programs, so T2MV does not open it. Fetch the model's "
        "safetensors files; or load it in ComfyUI, which reads plain weights only, and use Save Checkpoint."
    )
