"""Prompts as a scorer's text encoder takes them: token ids, and features computed once per prompt."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

Tokenize = Callable[[list[str], int], Tensor]
"""(prompts, max_length) -> ids [n, max_length]: start, words, end, zeros; a cut prompt keeps its end."""

MAX_CACHED_PROMPTS = 2048
TEXT_CHUNK = 64
"""Prompts in one forward pass of a text encoder."""


class PromptTokens:
    """Turns prompts into token ids for one scorer; warns once when a prompt is longer than the context."""

    def __init__(self, tokenize: Tokenize, context_length: int, name: str) -> None:
        self.tokenize, self.context_length, self.name = tokenize, context_length, name
        self._has_warned = False

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Token ids [n, context_length]; the end token stays when a prompt is cut."""
        # One place more than the context: a prompt that reaches it does not fit.
        probe = self.tokenize(list(prompts), self.context_length + 1)
        if not self._has_warned and bool((probe[:, -1] != 0).any()):
            self._has_warned = True
            logger.warning(
                "%s reads at most %d tokens; the rest of a longer prompt is ignored.",
                self.name,
                self.context_length,
            )
        return self.tokenize(list(prompts), self.context_length)


class PromptCache:
    """Text features by prompt: each distinct prompt is encoded once while it is among the last ones used."""

    def __init__(self, max_prompts: int = MAX_CACHED_PROMPTS) -> None:
        self.max_prompts = max_prompts
        self._features: OrderedDict[str, tuple[Tensor, ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._features)

    def clear(self) -> None:
        """Forget everything; needed after the weights or the device changed."""
        self._features.clear()

    def lookup(
        self, prompts: Sequence[str], encode: Callable[[list[str]], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """Features of every prompt, in order, stacked.

        `encode` sees only the distinct unknown prompts, at most TEXT_CHUNK of them at a time.
        """
        known = {prompt: self._features[prompt] for prompt in prompts if prompt in self._features}
        unknown = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
        for start in range(0, len(unknown), TEXT_CHUNK):
            chunk = unknown[start : start + TEXT_CHUNK]
            encoded = encode(chunk)
            # Clones, as a slice would keep the whole chunk's memory alive.
            known.update(
                {prompt: tuple(part[i].clone() for part in encoded) for i, prompt in enumerate(chunk)}
            )
        for prompt, parts in known.items():
            self._features[prompt] = parts
            self._features.move_to_end(prompt)
        while len(self._features) > self.max_prompts:
            self._features.popitem(last=False)
        return tuple(torch.stack(parts) for parts in zip(*(known[prompt] for prompt in prompts), strict=True))
