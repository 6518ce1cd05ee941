"""The pictures of a run: folders and lists of them, the prompts beside them, and their division in two."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from t2mv_core.prompts import check_prompts, clean_line
from t2mv_core.reference_picture import GENERIC_PROMPT

from .line_files import parse_object, read_lines
from .prompts import PromptSplit, split_prompts

logger = logging.getLogger(__name__)

PICTURE_ENDINGS = (".png", ".webp")
OTHER_ENDINGS = (".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".avif")
_EXAMPLE = '{"picture": "mug.png", "prompt": "a red mug"}'


@dataclass(frozen=True)
class Reference:
    """A picture to draw the views of.

    Attributes:
        path: its file.
        prompt: the sentence beside it.
        split: "train" or "heldout" where the list says so, else None.
        is_framed: the file has no transparency, as the object is cut out and framed in it already.
    """

    path: Path
    prompt: str
    split: str | None = None
    is_framed: bool = False

    @property
    def content(self) -> str:
        """A hash of the file, the same for the same picture under another name."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()


def read_references(source: Path) -> dict[str, Reference]:
    """Return the pictures of a folder, or of a `.jsonl` file, by name.

    A folder: its PNG and WEBP files; the prompt of `mug.png` is the text of `mug.txt` beside it. A file: an
    object a line with "picture", a path below the file's folder, and if wished "prompt", "split" ("train" or
    "heldout") and "framed" (true: the object is cut out and framed already). A picture without words gets
    `GENERIC_PROMPT`.

    Raises:
        FileNotFoundError: there is no such folder or file, or a picture is missing.
        ValueError: no picture, a bad line, or a path that leaves the folder.
    """
    if source.is_dir():
        paths = [path for path in sorted(source.iterdir()) if path.suffix.lower() in PICTURE_ENDINGS]
        references = {path.name: Reference(path, _words_beside(path)) for path in paths}
        _warn_of_others(source)
    elif source.is_file() and source.suffix.lower() == ".jsonl":
        references = _read_list(source)
    else:
        raise FileNotFoundError(
            f"sampling.references={str(source)!r} is neither a folder nor a .jsonl file; give one with "
            "PNG or WEBP pictures."
        )
    if not references:
        raise ValueError(f"{source} names no picture; put PNG or WEBP files with transparency there.")
    return references


def split_references(references: Mapping[str, Reference], held_out_share: float) -> PromptSplit:
    """Divide pictures by name as `split_prompts` divides prompts.

    Raises:
        ValueError: nothing is left to train on, a share > 0 holds nothing out, or a picture that is held out
            is trained on under another name.
    """
    declared = {name: reference.split for name, reference in references.items() if reference.split}
    split = split_prompts(list(references), held_out_share, declared)
    if not split.train or (held_out_share > 0 and not split.held_out):
        kind = "held out" if split.train else "left to train on"
        raise ValueError(
            f"With held_out_share={held_out_share} none of {len(references)} pictures is {kind}; change the "
            'share, or give "split" in a .jsonl file.'
        )
    trained = {references[name].content: name for name in split.train} if split.held_out else {}
    for name in split.held_out:
        if (other := trained.get(references[name].content)) is not None:
            raise ValueError(
                f"{other} and {name} are the same picture, and {name} is held out, to measure on; remove one."
            )
    return split


def _warn_of_others(folder: Path) -> None:
    others = [path.name for path in sorted(folder.iterdir()) if path.suffix.lower() in OTHER_ENDINGS]
    if others:
        logger.warning(
            "%d pictures of %s are left out (%s, for example): only PNG and WEBP have the transparency that "
            "cuts out the object.",
            len(others), folder, others[0],
        )  # fmt: skip


def _words_beside(path: Path) -> str:
    text = path.with_suffix(".txt")
    if not text.is_file():
        return GENERIC_PROMPT
    try:
        words = clean_line(text.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{text} is not UTF-8 text; save it as UTF-8.") from error
    try:
        check_prompts([words])
    except ValueError as error:
        raise ValueError(f"{text}: {error}") from error
    return words


def _read_list(source: Path) -> dict[str, Reference]:
    references: dict[str, Reference] = {}
    paths: set[Path] = set()
    for number, (name, reference) in read_lines(source, partial(_parse, source.parent)):
        if reference.path in paths:
            raise ValueError(f"{source}, line {number}: {name!r} is there twice; name each picture once.")
        paths.add(reference.path)
        references[name] = reference
    return references


def _parse(folder: Path, line: str) -> tuple[str, Reference] | None:
    """Read a line; None for an empty one."""
    if not line:
        return None
    record = parse_object(line, "picture", _EXAMPLE)
    name, prompt, split = record["picture"], record.get("prompt", GENERIC_PROMPT), record.get("split")
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"{name!r} lies outside the list's folder; move the picture below {folder}.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no picture at {path}; check the name.")
    if not isinstance(prompt, str):
        raise ValueError(f'"prompt" is {prompt!r}; write a sentence, or leave it out.')
    if not isinstance(framed := record.get("framed", False), bool):
        raise ValueError(f'"framed" is {framed!r}; write true or false, or leave it out.')
    words = clean_line(prompt)
    check_prompts([words])
    return name, Reference(path, words, split, framed)
