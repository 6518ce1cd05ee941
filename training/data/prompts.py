"""What the policy is trained on: prompt sets, what is held out of them, and the order of drawing."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from t2mv_core.toybox.prompt_lists import load_prompt_list

from ..algorithm.seeds import derive_seed
from .prompt_files import SPLITS, PromptLine, read_prompt_file

PROMPT_SET_DIR = Path(__file__).parent / "prompt_sets"

ANIMALS = (
    "ant bat bear bee beetle bird butterfly camel cat chicken cow deer dog dolphin duck fish fly fox "
    "frog goat goose gorilla hedgehog horse kangaroo lion lizard llama monkey mouse pig rabbit raccoon "
    "rat shark sheep snake spider squirrel tiger turkey turtle whale wolf zebra"
).split()


def animal_prompts() -> list[str]:
    """The 45 common animals of the published recipe, in the template "a photo of a(n) <animal>"."""
    return [f"a photo of {'an' if animal[0] in 'aeiou' else 'a'} {animal}" for animal in ANIMALS]


def toybox_prompts(*lists: str) -> list[str]:
    """Return the prompts of the toybox's lists of these names."""
    return [spec.prompt for name in lists for spec in load_prompt_list(name)]


def toybox_train_prompts(*lists: str) -> list[str]:
    """Return the prompts of these lists without those that settings are chosen on."""
    reserved = set(toybox_prompts("dev"))
    return [prompt for prompt in toybox_prompts(*lists) if prompt not in reserved]


def object_prompts() -> list[str]:
    """Our own 160 objects, from simple to compositional: see the headings in prompt_sets/objects.txt."""
    return [line.prompt for line in read_prompt_file(PROMPT_SET_DIR / "objects.txt")]


PROMPT_SETS: dict[str, Callable[[], list[str]]] = {
    "animals": animal_prompts,
    "toybox": partial(toybox_train_prompts, "train"),
    "toybox_parts": partial(toybox_train_prompts, "train", "train_parts"),
    "objects": object_prompts,
    "dev": partial(toybox_prompts, "dev"),
    "heldout": partial(toybox_prompts, "held_out"),
    "heldout200": partial(toybox_prompts, "held_out", "more_held_out"),
}


@dataclass(frozen=True)
class PromptSplit:
    """Prompts in two parts that share none, each in the order of its source.

    Attributes:
        train: those to train on.
        held_out: those only to measure on.
    """

    train: tuple[str, ...]
    held_out: tuple[str, ...]


def load_prompts(source: str) -> list[str]:
    """All prompts of a built-in set, or of a `.txt` or `.jsonl` file (see `read_prompt_file`).

    Raises:
        FileNotFoundError: neither a set nor a file.
        ValueError: the file holds no prompt, is not UTF-8 text, or has a bad line.
    """
    return [line.prompt for line in _load_lines(source)]


def load_split(source: str, held_out_share: float) -> PromptSplit:
    """Like `load_prompts`, in two parts: what a file's lines say themselves, the rest as in `split_prompts`.

    Args:
        source: a built-in set or a file.
        held_out_share: share of the prompts without an own "split" to hold out, in [0, 1).

    Raises:
        FileNotFoundError: neither a set nor a file.
        ValueError: a bad file or share; nothing is left to train on; a share > 0 holds nothing out.
    """
    lines = _load_lines(source)
    declared = {line.prompt: line.split for line in lines if line.split is not None}
    split = split_prompts([line.prompt for line in lines], held_out_share, declared)
    given = f"{source} has {len(lines)} prompts, and with held_out_share={held_out_share}"
    if not split.train:
        raise ValueError(f"{given} none is left to train on; lower the share, or give more to train on.")
    if held_out_share > 0 and not split.held_out:
        advice = _advise_share([line.prompt for line in lines if line.split is None])
        raise ValueError(f"{given} none is held out; {advice}, or set the share to 0.")
    return split


def split_prompts(
    prompts: Sequence[str], held_out_share: float, declared: Mapping[str, str] | None = None
) -> PromptSplit:
    """Divide prompts by a hash of each one's text, so that adding others moves none.

    A larger share holds out the same prompts and more. The part held out is near the share, not exactly it.

    Args:
        prompts: distinct prompts.
        held_out_share: in [0, 1).
        declared: "train" or "heldout" for prompts whose place is given; it wins over the share.

    Raises:
        ValueError: the share is outside [0, 1), or a declared place is unknown.
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


def _hold_out_rank(prompt: str) -> float:
    """A number in [0, 1] from the text alone, which a share is compared with; a change moves every split.

    Capitals and runs of white space do not count: to CLIP such prompts are one, which one part must hold.
    """
    return derive_seed(0, "held_out", " ".join(prompt.lower().split())) / 2**63


def _advise_share(undecided: Sequence[str]) -> str:
    """How to hold out one of these prompts at least, when the share given holds out none."""
    if not undecided:
        return 'mark some lines with "split": "heldout"'
    enough = math.floor(1000 * min(map(_hold_out_rank, undecided)) + 1) / 1000  # strictly above the lowest
    return f"give a larger share, such as {min(enough, 0.999)}"


class PromptSampler:
    """Draws prompts pass by pass: each shuffles the whole list, so that every prompt comes equally often.

    The order of a pass derives from the seed and the number of the pass; two counters are the whole state.
    All processes of a run draw the same prompts and keep their own share.

    Args:
        prompts: at least one.
        seed: the run's seed.
    """

    def __init__(self, prompts: Sequence[str], seed: int) -> None:
        if not prompts:
            raise ValueError("There are no prompts to draw from; give at least one.")
        self.prompts = tuple(prompts)
        self.seed = seed
        self.num_drawn = 0

    def draw(self, count: int) -> list[str]:
        """The next `count` prompts."""
        drawn = [self._at(self.num_drawn + i) for i in range(count)]
        self.num_drawn += count
        return drawn

    def state_dict(self) -> dict[str, Any]:
        """How far it is, and which list it belongs to, as JSON values."""
        return {"num_drawn": self.num_drawn, "fingerprint": self._fingerprint()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            ValueError: the state belongs to another list of prompts.
        """
        if state["fingerprint"] != self._fingerprint():
            raise ValueError(
                f"The saved run was trained on other prompts than the {len(self.prompts)} given now; "
                "resume with the same sampling.prompts and run.seed, or start a new run.out_dir."
            )
        self.num_drawn = int(state["num_drawn"])

    def _at(self, position: int) -> str:
        number, offset = divmod(position, len(self.prompts))
        return self.prompts[self._order(number)[offset]]

    def _order(self, number: int) -> list[int]:
        """Sorting by hash is a shuffle that needs no generator state."""
        return sorted(range(len(self.prompts)), key=lambda i: derive_seed(self.seed, "prompts", number, i))

    def _fingerprint(self) -> str:
        text = "\n".join([str(self.seed), *self.prompts])
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
