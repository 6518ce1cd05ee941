"""Text conditions of prompts, encoded once per run."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from torch import Tensor

from t2mv_core.bundle import ModelBundle
from t2mv_core.rewards.inputs import describe_unread
from t2mv_core.text import TextCondition, concat_conditions, describe_reading, encode_text

from ..algorithm.scoring import Scorer

log = logging.getLogger(__name__)

MAX_PROMPTS = 4096  # 1.3 GB in half precision at SDXL's 77 x 2048


def warn_of_unread(
    bundle: ModelBundle, source: str, prompts: Sequence[str], scorers: Iterable[Scorer] = ()
) -> None:
    """Log what a model and scorers do not read of a source's prompts as it may be meant."""
    for sentence in describe_reading(bundle, prompts) + describe_unread(scorers, prompts):
        log.warning("%s: %s", source, sentence)


@contextmanager
def _on_card(bundle: ModelBundle) -> Iterator[None]:
    """Keep text encoders on a graphics card within the block only: SDXL's take 1.5 GiB that updates need."""
    encoders = (bundle.text_encoder, bundle.text_encoder_2) if bundle.device.type == "cuda" else ()
    try:
        for encoder in encoders:
            encoder.to(bundle.device)
        yield
    finally:
        for encoder in encoders:
            encoder.to("cpu")


class ConditionCache:
    """Text conditions by prompt, on the CPU; beyond `MAX_PROMPTS` the oldest are dropped.

    Every prompt is encoded alone, so that its numbers depend neither on the prompts beside it nor on an
    interruption of the run.

    Args:
        bundle: the model with the text encoders.
        negative_prompt: of all prompts, for classifier-free guidance.
    """

    def __init__(self, bundle: ModelBundle, negative_prompt: str | None = None) -> None:
        self.bundle = bundle
        self.negative_prompt = negative_prompt
        self._known: dict[str, TextCondition] = {}
        self._negative: tuple[Tensor | None, Tensor | None] = (None, None)

    def lookup(self, prompts: Sequence[str]) -> TextCondition:
        """Return the condition of some prompts, in their order, on the bundle's device.

        Raises:
            ValueError: a prompt that no text encoder can use.
        """
        if unknown := [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]:
            with _on_card(self.bundle):
                self._known |= {prompt: self._encode(prompt) for prompt in unknown}
        condition = concat_conditions([self._known[prompt] for prompt in prompts])
        while len(self._known) > MAX_PROMPTS:
            del self._known[next(iter(self._known))]
        embeds, pooled = (None if x is None else x.expand(len(prompts), *x.shape[1:]) for x in self._negative)
        return replace(condition, negative_embeds=embeds, negative_pooled=pooled).to(self.bundle.device)

    def _encode(self, prompt: str) -> TextCondition:
        condition = encode_text(self.bundle, [prompt], self.negative_prompt).to("cpu")
        self._negative = (condition.negative_embeds, condition.negative_pooled)  # the same for every prompt
        return replace(condition, negative_embeds=None, negative_pooled=None)
