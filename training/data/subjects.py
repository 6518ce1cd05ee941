"""What the sets of a run are drawn of, by name: prompts, or pictures with the prompts beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from t2mv_core.bundle import ModelBundle
from t2mv_core.prompts import check_prompts, clean_line, split_lines
from t2mv_core.reference_picture import GENERIC_PROMPT, frame_picture, read_picture

from ..algorithm.rollout import Batch
from ..config import SamplingConfig
from .prompts import SPLITS, PromptSplit, load_split, split_prompts
from .text_cache import ConditionCache

PICTURE_ENDINGS = (".png", ".webp")
_EXAMPLE = '{"picture": "mug.png", "prompt": "a red mug"}'


@dataclass(frozen=True)
class Reference:
    """A picture to draw the views of.

    Attributes:
        path: its file.
        prompt: the sentence beside it.
        split: "train" or "heldout" where the list says so, else None.
    """

    path: Path
    prompt: str
    split: str | None = None


class Subjects:
    """Prompts, or pictures with prompts, and what a policy needs of them.

    Args:
        bundle: the model.
        config: says which.

    Raises:
        FileNotFoundError: a source or a picture is not there.
        ValueError: the model does the other task; or a bad source, prompt or picture.
    """

    def __init__(self, bundle: ModelBundle, config: SamplingConfig) -> None:
        self._image_px = bundle.image_px
        self.conditions = ConditionCache(bundle, config.negative_prompt)
        self._references: dict[str, Reference] | None = None
        is_of_picture = "image-to-multiview" in bundle.tasks
        if (config.references is not None) != is_of_picture:
            raise ValueError(
                f"The model {bundle.name} draws views of pictures; set sampling.references to a folder or a "
                ".jsonl file of them."
                if is_of_picture
                else f"sampling.references is set, but the model {bundle.name} draws views of prompts; take "
                "an adapter of image to multiview (toybox-image, for example), or set it to null."
            )
        if config.references is None:
            self.source, self.split = config.prompts, load_split(config.prompts, config.held_out_share)
            return
        self.source = config.references
        self._references = read_references(Path(config.references))
        for reference in self._references.values():
            frame_picture(read_picture(reference.path), self._image_px)  # refuses it before hours of training
        self.split = split_references(self._references, config.held_out_share)

    def prompts(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the sentences of some subjects."""
        return tuple(names if self._references is None else (self._references[name].prompt for name in names))

    def batch(self, names: Sequence[str]) -> Batch:
        """Return what a policy draws some subjects of."""
        prompts = self.prompts(names)
        return Batch(prompts, self.conditions.lookup(prompts), self.pictures(names))

    def pictures(self, names: Sequence[str]) -> Tensor | None:
        """Return the framed pictures of some subjects, [B, 3, H, W] in [0, 1]; None for prompts."""
        if self._references is None:
            return None
        pictures = [read_picture(self._references[name].path) for name in names]
        return torch.stack([frame_picture(picture, self._image_px) for picture in pictures])


def read_references(source: Path) -> dict[str, Reference]:
    """Return the pictures of a folder, or of a `.jsonl` file, by name.

    A folder: its PNG and WEBP files; the prompt of `mug.png` is the text of `mug.txt` beside it. A file: an
    object a line with "picture", a path below the file's folder, and if wished "prompt" and "split" ("train"
    or "heldout"). A picture without words gets `GENERIC_PROMPT`.

    Raises:
        FileNotFoundError: there is no such folder or file, or a picture is missing.
        ValueError: no picture, a bad line, or a path that leaves the folder.
    """
    if source.is_dir():
        paths = [path for path in sorted(source.iterdir()) if path.suffix.lower() in PICTURE_ENDINGS]
        found = {path.name: Reference(path, _words_beside(path)) for path in paths}
    elif source.is_file() and source.suffix.lower() == ".jsonl":
        found = _read_list(source)
    else:
        raise FileNotFoundError(
            f"sampling.references={str(source)!r} is neither a folder nor a .jsonl file; give one with "
            "PNG or WEBP pictures."
        )
    if not found:
        raise ValueError(f"{source} names no picture; put PNG or WEBP files with transparency there.")
    return found


def split_references(references: Mapping[str, Reference], held_out_share: float) -> PromptSplit:
    """Divide pictures by name as `split_prompts` divides prompts.

    Raises:
        ValueError: nothing is left to train on, or a share > 0 holds nothing out.
    """
    declared = {name: reference.split for name, reference in references.items() if reference.split}
    split = split_prompts(list(references), held_out_share, declared)
    if not split.train or (held_out_share > 0 and not split.held_out):
        kind = "held out" if split.train else "left to train on"
        raise ValueError(
            f"With held_out_share={held_out_share} none of {len(references)} pictures is {kind}; change the "
            'share, or give "split" in a .jsonl file.'
        )
    return split


def _words_beside(path: Path) -> str:
    text = path.with_suffix(".txt")
    if not text.is_file():
        return GENERIC_PROMPT
    try:
        words = clean_line(text.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{text} is not UTF-8 text; save it as UTF-8.") from error
    check_prompts([words])
    return words


def _read_list(source: Path) -> dict[str, Reference]:
    found: dict[str, Reference] = {}
    for number, line in enumerate(split_lines(source.read_text(encoding="utf-8-sig")), start=1):
        if not line:
            continue
        try:
            name, reference = _parse(line, source.parent)
        except ValueError as error:
            raise ValueError(f"{source}, line {number}: {error}") from error
        if name in found:
            raise ValueError(f"{source}, line {number}: {name!r} is there twice; name each picture once.")
        found[name] = reference
    return found


def _parse(line: str, folder: Path) -> tuple[str, Reference]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"This is not valid JSON; write a line such as {_EXAMPLE}.") from error
    if not isinstance(record, dict) or not isinstance(record.get("picture"), str):
        raise ValueError(f'This is no object with a "picture"; write a line such as {_EXAMPLE}.')
    name, prompt, split = record["picture"], record.get("prompt", GENERIC_PROMPT), record.get("split")
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"{name!r} lies outside the list's folder; move the picture below {folder}.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no picture at {path}; check the name.")
    if not isinstance(prompt, str):
        raise ValueError(f'"prompt" is {prompt!r}; write a sentence, or leave it out.')
    if split is not None and split not in SPLITS:
        raise ValueError(f'"split" is {split!r}; write "train" or "heldout", or leave it out.')
    words = clean_line(prompt)
    check_prompts([words])
    return name, Reference(path, words, split)
