"""What the policy is trained on: prompt sets, prompt files, and the order of drawing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from t2mv_core.text import check_prompts

from .seeds import derive_seed

ANIMALS = (
    "ant bat bear bee beetle bird butterfly camel cat chicken cow deer dog dolphin duck fish fly fox "
    "frog goat goose gorilla hedgehog horse kangaroo lion lizard llama monkey mouse pig rabbit raccoon "
    "rat shark sheep snake spider squirrel tiger turkey turtle whale wolf zebra"
).split()


def animal_prompts() -> list[str]:
    """The 45 common animals of the published recipe, in the template "a photo of a(n) <animal>"."""
    return [f"a photo of {'an' if animal[0] in 'aeiou' else 'a'} {animal}" for animal in ANIMALS]


def toybox_prompts() -> list[str]:
    """The toybox's seen (family, colour) pairs in plain words, without those settings are chosen on."""
    from .toybox.captions import DEV_PROMPTS, TRAIN_PROMPTS

    reserved = {spec.prompt for spec in DEV_PROMPTS}
    return [spec.prompt for spec in TRAIN_PROMPTS if spec.prompt not in reserved]


def held_out_prompts() -> list[str]:
    """The toybox's 100 prompts that no training stage sees."""
    from .toybox.captions import HELD_OUT_PROMPTS

    return [spec.prompt for spec in HELD_OUT_PROMPTS]


def dev_prompts() -> list[str]:
    """The toybox's 100 prompts on which settings are chosen."""
    from .toybox.captions import DEV_PROMPTS

    return [spec.prompt for spec in DEV_PROMPTS]


PROMPT_SETS: dict[str, Callable[[], list[str]]] = {
    "animals": animal_prompts,
    "toybox": toybox_prompts,
    "dev": dev_prompts,
    "heldout": held_out_prompts,
}


def load_prompts(source: str) -> list[str]:
    """Prompts of a built-in set, or of a text file: one a line, empty lines and `#` lines skipped.

    Raises:
        FileNotFoundError: neither a set nor a file.
        ValueError: the file holds no prompt, is not UTF-8 text, or a prompt is too long for any text encoder.
    """
    if source in PROMPT_SETS:
        return PROMPT_SETS[source]()
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no prompt set or file {source!r}; use one of {', '.join(PROMPT_SETS)}, or a text file."
        )
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text; save it as UTF-8 with one prompt a line.") from error
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise ValueError(f"{path} holds no prompt; write one a line.")
    check_prompts(prompts)
    return prompts


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
