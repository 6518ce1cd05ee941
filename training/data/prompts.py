"""The prompts of a run: built-in sets and files, and their division in two."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from t2mv_core.prompts import check_prompts, clean_line
from t2mv_core.toybox.prompt_lists import load_prompt_list
from t2mv_core.trajectory import derive_seed

from .line_files import SPLITS, parse_object, read_lines

log = logging.getLogger(__name__)

PROMPT_SET_DIR = Path(__file__).parent / "prompt_sets"
MAX_NAMED = 5


@dataclass(frozen=True)
class PromptLine:
    """One prompt of a file.

    Attributes:
        prompt: its text, without white space around it.
        split: "train" or "heldout" where the file says so, else None.
    """

    prompt: str
    split: str | None = None


@dataclass(frozen=True)
class PromptSplit:
    """Prompts in two disjoint parts, each in the order of its source.

    Attributes:
        train: those to train on.
        held_out: those only to measure on.
    """

    train: tuple[str, ...]
    held_out: tuple[str, ...]


def shipped_prompts(name: str) -> list[str]:
    """Return the prompts of a file in `prompt_sets/`."""
    return [line.prompt for line in read_prompt_file(PROMPT_SET_DIR / f"{name}.txt")]


def toybox_prompts(*lists: str) -> list[str]:
    """Return the prompts of the toybox's lists of these names."""
    return [spec.prompt for name in lists for spec in load_prompt_list(name)]


def toybox_train_prompts(*lists: str) -> list[str]:
    """Return the prompts of these lists without those that settings are chosen on."""
    reserved = set(toybox_prompts("dev"))
    return [prompt for prompt in toybox_prompts(*lists) if prompt not in reserved]


PROMPT_SETS: dict[str, Callable[[], list[str]]] = {
    "animals": partial(shipped_prompts, "animals"),
    "toybox": partial(toybox_train_prompts, "train"),
    "toybox_parts": partial(toybox_train_prompts, "train", "train_parts"),
    "toybox_relations": partial(toybox_train_prompts, "train", "train_relations"),
    "toybox_all": partial(toybox_train_prompts, "train", "train_parts", "train_relations"),
    "objects": partial(shipped_prompts, "objects"),
    "dev": partial(toybox_prompts, "dev"),
    "heldout": partial(toybox_prompts, "held_out"),
}


def load_prompts(source: str) -> list[str]:
    """Return all prompts of a built-in set, or of a `.txt` or `.jsonl` file (see `read_prompt_file`).

    Raises:
        FileNotFoundError: neither a set nor a file.
        ValueError: the file holds no prompt, is not UTF-8 text, or has a bad line.
    """
    return [line.prompt for line in _load_lines(source)]


def load_split(source: str, held_out_share: float) -> PromptSplit:
    """Load prompts in two parts: lines of a file that name theirs, the rest as `split_prompts` divides them.

    Args:
        source: a built-in set or a file.
        held_out_share: share of the prompts without a "split" to hold out, in [0, 1).

    Raises:
        FileNotFoundError: neither a set nor a file.
        ValueError: a bad file or share; nothing is left to train on; a share > 0 holds nothing out.
    """
    lines = _load_lines(source)
    declared = {line.prompt: line.split for line in lines if line.split is not None}
    split = split_prompts([line.prompt for line in lines], held_out_share, declared)
    split = replace(split, held_out=without_trained(split.held_out, split.train, source))
    fact = f"{source} has {len(lines)} prompts, and with held_out_share={held_out_share}"
    if not split.train:
        raise ValueError(f"{fact} none is left to train on; lower the share, or add prompts to train on.")
    if held_out_share > 0 and not split.held_out:
        advice = _advise_share([line.prompt for line in lines if line.split is None])
        raise ValueError(f"{fact} none is held out; {advice}, or set the share to 0.")
    return split


def shared_prompts(prompts: Sequence[str], trained: Sequence[str]) -> list[str]:
    """Return the prompts that are trained on, in any spelling of capitals and white space."""
    known = set(map(_spelling, trained))
    return [prompt for prompt in prompts if _spelling(prompt) in known]


def name_some(prompts: Sequence[str]) -> str:
    """Return the first few prompts for a message."""
    return ", ".join(map(repr, prompts[:MAX_NAMED])) + (", …" if len(prompts) > MAX_NAMED else "")


def without_trained(prompts: Sequence[str], trained: Sequence[str], source: str) -> tuple[str, ...]:
    """Leave out prompts to measure on that are trained on, with a warning that names them.

    Args:
        prompts: to measure on.
        trained: to train on.
        source: where the former are from, for the warning.
    """
    shared = shared_prompts(prompts, trained)
    if shared:
        count = f"{len(shared)} of {len(prompts)}"
        log.warning("%s: %s held-out prompts are trained on; left out: %s.", source, count, name_some(shared))
    return tuple(prompt for prompt in prompts if prompt not in set(shared))


def load_held_out(source: str, trained: Sequence[str]) -> tuple[str, ...]:
    """Load prompts to measure on, without those that are trained on, see `without_trained`.

    Raises:
        FileNotFoundError: neither a set nor a file.
        ValueError: a bad file, or none is left.
    """
    prompts = without_trained(load_prompts(source), trained, source)
    if not prompts:
        raise ValueError(f"All prompts of {source} are trained on; measure on others.")
    return prompts


def split_prompts(
    prompts: Sequence[str], held_out_share: float, declared: Mapping[str, str] | None = None
) -> PromptSplit:
    """Divide prompts by a hash of each one's text, so that adding others moves none.

    A larger share holds out the same prompts and more. The part held out is near the share, not exactly it.

    Args:
        prompts: distinct prompts.
        held_out_share: in [0, 1).
        declared: "train" or "heldout" for some prompts; it wins over the share.

    Raises:
        ValueError: the share is outside [0, 1), or a declared part is unknown.
    """
    if not 0 <= held_out_share < 1:
        raise ValueError(f"held_out_share={held_out_share} must be at least 0 and below 1, such as 0.1.")
    declared = declared or {}
    if unknown := set(declared.values()) - set(SPLITS):
        raise ValueError(f"{sorted(unknown)} is no part of a split; declare {' or '.join(SPLITS)}.")
    held_out = {p for p in prompts if p not in declared and _hold_out_rank(p) < held_out_share}
    held_out |= {prompt for prompt, part in declared.items() if part == "heldout"}
    return PromptSplit(
        train=tuple(prompt for prompt in prompts if prompt not in held_out),
        held_out=tuple(prompt for prompt in prompts if prompt in held_out),
    )


def read_prompt_file(path: Path) -> list[PromptLine]:
    """Return the prompts of a file in its order, each once; a repeated one is dropped with a warning.

    `.txt`: one prompt a line; empty lines and those beginning with `#` are skipped. `.jsonl`: a JSON object a
    line with "prompt" and, if wished, "split" ("train" or "heldout"); other keys are ignored.

    Raises:
        ValueError: another ending, not UTF-8 text, no prompt, or a bad line (with file and line number).
    """
    parse = {".txt": _parse_text, ".jsonl": _parse_json}.get(path.suffix.lower())
    if parse is None:
        raise ValueError(
            f"{path} ends neither in .txt nor in .jsonl; write one prompt a line into one of these."
        )
    entries = [line for _, line in read_lines(path, parse)]
    lines: dict[str, PromptLine] = {}
    for line in entries:
        lines.setdefault(line.prompt, line)
    num_repeated = len(entries) - len(lines)
    if not lines:
        raise ValueError(f"{path} holds no prompt; write one a line.")
    if num_repeated:
        log.warning("%s repeats %d prompts; the first of each is kept.", path, num_repeated)
    return list(lines.values())


def _load_lines(source: str) -> list[PromptLine]:
    if source in PROMPT_SETS:
        return [PromptLine(prompt) for prompt in PROMPT_SETS[source]()]
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no prompt set or file {source!r}; use one of {', '.join(PROMPT_SETS)}, "
            "or a .txt or .jsonl file."
        )
    return read_prompt_file(path)


def _parse_text(content: str) -> PromptLine | None:
    """Read a line of a `.txt` file; None for an empty line or a comment."""
    if not content or content.startswith("#"):
        return None
    check_prompts([content])
    return PromptLine(content)


def _parse_json(content: str) -> PromptLine | None:
    """Read a line of a `.jsonl` file; None for an empty line."""
    if not content:
        return None
    record = parse_object(content, "prompt", '{"prompt": "a red mug"}')
    prompt = clean_line(record["prompt"])
    check_prompts([prompt])
    return PromptLine(prompt, record.get("split"))


def _hold_out_rank(prompt: str) -> float:
    """Return a number in [0, 1] from the text alone, to compare with a share; a change moves every split."""
    return derive_seed(0, "held_out", _spelling(prompt)) / 2**63


def _spelling(prompt: str) -> str:
    """Return a prompt without capitals and runs of white space: to CLIP such prompts are one."""
    return " ".join(prompt.lower().split())


def _advise_share(undecided: Sequence[str]) -> str:
    """Say how to hold out at least one of these prompts, when a share holds out none."""
    if not undecided:
        return 'mark some lines with "split": "heldout"'
    enough = math.floor(1000 * min(map(_hold_out_rank, undecided)) + 1) / 1000  # strictly above the lowest
    return f"give a larger share, such as {min(enough, 0.999)}"
