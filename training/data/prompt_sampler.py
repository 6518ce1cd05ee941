"""The order in which a run draws its prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from t2mv_core.trajectory import derive_seed


class PromptSampler:
    """Draws prompts pass by pass: each shuffles the whole list, so that every prompt comes equally often.

    The order of a pass derives from the seed and the number of the pass; the count of draws is the whole
    state. All processes of a run draw the same prompts and keep their share.

    Args:
        prompts: at least one.
        seed: the run's seed.
        identities: what stands for each prompt, as for a picture, where a saved state is compared with this
            list; None is the prompts themselves.
    """

    def __init__(self, prompts: Sequence[str], seed: int, identities: Sequence[str] | None = None) -> None:
        if not prompts:
            raise ValueError("There are no prompts to draw from; give at least one.")
        self.prompts = tuple(prompts)
        self.seed = seed
        self.num_drawn = 0
        self._identities = self.prompts if identities is None else tuple(identities)
        self._pass, self._order = -1, list[int]()

    def draw(self, count: int) -> list[str]:
        """Return the next `count` prompts."""
        drawn: list[str] = []
        while len(drawn) < count:
            number, start = divmod(self.num_drawn, len(self.prompts))
            indices = self._shuffled(number)[start : start + count - len(drawn)]
            drawn += [self.prompts[index] for index in indices]
            self.num_drawn += len(indices)
        return drawn

    def state_dict(self) -> dict[str, Any]:
        """Return the number of draws and a fingerprint of the list, as JSON values."""
        return {"num_drawn": self.num_drawn, "fingerprint": self._fingerprint()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            ValueError: the state belongs to another list of prompts.
        """
        if state["fingerprint"] != self._fingerprint():
            raise ValueError(
                f"The saved run was trained on other prompts or pictures than these {len(self.prompts)}; "
                "resume with the same sampling.prompts or sampling.references and run.seed, or use another "
                "name (run.out_dir)."
            )
        self.num_drawn = int(state["num_drawn"])

    def _shuffled(self, number: int) -> list[int]:
        """Return the order of a pass, sorted by hash: a shuffle that needs no generator's state."""
        if number != self._pass:
            indices = range(len(self.prompts))
            self._order = sorted(indices, key=lambda i: derive_seed(self.seed, "prompts", number, i))
            self._pass = number
        return self._order

    def _fingerprint(self) -> str:
        text = "\n".join([str(self.seed), *self._identities])
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
