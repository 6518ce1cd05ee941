"""Text to condition: SDXL's two CLIP text encoders, their pooled output and the size numbers ("time ids")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .bundle import ModelBundle
from .formats.tokens import CLIP_VOCABULARY, vocabulary_of
from .prompts import check_prompts, clean_line, count_of, describe_syntax, quote_some

_NUM_BYTE_TOKENS = 512  # CLIP's BPE starts from 256 bytes, each also as the end of a word
_NUM_SPECIAL_TOKENS = 2


@dataclass(frozen=True)
class TextCondition:
    """What the UNet learns of B prompts.

    Attributes:
        prompt_embeds: token features of both encoders side by side, [B, L, D].
        pooled_embeds: pooled feature of the second encoder, [B, P].
        negative_embeds: the same for the negative prompt, [B, L, D]; None when there is no second pass.
        negative_pooled: [B, P] or None.
        time_ids: original size, crop, target size in pixels, [B, 6].
    """

    prompt_embeds: Tensor
    pooled_embeds: Tensor
    time_ids: Tensor
    negative_embeds: Tensor | None = None
    negative_pooled: Tensor | None = None

    def __len__(self) -> int:
        """Return the number of prompts B."""
        return len(self.prompt_embeds)

    def select(self, indices: Sequence[int] | Tensor) -> TextCondition:
        """Return the condition of some of the prompts, in the order of `indices`."""
        index = torch.as_tensor(indices, dtype=torch.long, device=self.prompt_embeds.device)
        return TextCondition(*(None if x is None else x[index] for x in self._tensors()))  # type: ignore[arg-type]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> TextCondition:
        """Return a copy on a device and in a precision."""
        return TextCondition(*(None if x is None else x.to(device, dtype) for x in self._tensors()))  # type: ignore[arg-type]

    def negative(self) -> TextCondition:
        """Return the negative condition of the prompts, B rows; ValueError when there is none."""
        if self.negative_embeds is None or self.negative_pooled is None:
            raise ValueError("Classifier-free guidance needs a negative condition; use encode_text.")
        return TextCondition(self.negative_embeds, self.negative_pooled, self.time_ids)

    def with_negative(self) -> TextCondition:
        """Return prompts and then their negatives, 2·B rows, for both passes of guidance at once."""
        prompts = TextCondition(self.prompt_embeds, self.pooled_embeds, self.time_ids)
        return concat_conditions([prompts, self.negative()])

    def _tensors(self) -> tuple[Tensor | None, ...]:
        positive = (self.prompt_embeds, self.pooled_embeds, self.time_ids)
        return (*positive, self.negative_embeds, self.negative_pooled)


def concat_conditions(conditions: Sequence[TextCondition]) -> TextCondition:
    """Join one or more conditions along the prompts; all have negatives, or none has."""
    columns = zip(*(condition._tensors() for condition in conditions), strict=True)
    return TextCondition(*(None if any(x is None for x in parts) else torch.cat(parts) for parts in columns))  # type: ignore[arg-type]


class ClipTokenizer:
    """CLIP's byte-pair encoding, from the vocabulary open_clip ships, optionally cut to its first merges.

    Cutting keeps the encoding complete (any text still has ids) and lets a small model have a small embedding
    table; `vocab_size` 49408 is CLIP's own, id for id.
    """

    def __init__(self, vocab_size: int = CLIP_VOCABULARY, pads_with_end: bool = False) -> None:
        """Create the encoding.

        Args:
            vocab_size: number of ids, 514 to 49408; the last two are start and end of text.
            pads_with_end: fill up with the end token, as SDXL's first encoder wants, not with 0.
        """
        from open_clip.tokenizer import SimpleTokenizer

        full = SimpleTokenizer()
        if not _NUM_BYTE_TOKENS + _NUM_SPECIAL_TOKENS <= vocab_size <= full.vocab_size:
            raise ValueError(f"vocab_size={vocab_size} must lie between 514 and {full.vocab_size}.")
        num_merges = vocab_size - _NUM_BYTE_TOKENS - _NUM_SPECIAL_TOKENS
        full.cache.clear()  # it has "<end_of_text>" as a token, which a small table lacks: typed, it is words
        # open_clip's tokenizer reads its merges by rank: a merge that is not ranked is never applied.
        full.bpe_ranks = {pair: rank for pair, rank in full.bpe_ranks.items() if rank < num_merges}
        self._bpe = full
        self._encode = lru_cache(maxsize=4096)(full.encode)  # a prompt is encoded and perhaps described
        self.vocab_size = vocab_size
        self.start_id, self.end_id = vocab_size - 2, vocab_size - 1
        self.pad_id = self.end_id if pads_with_end else 0

    def __call__(self, texts: Sequence[str], max_length: int) -> Tensor:
        """Return token ids [n, max_length]: start, text, end, padding; a longer text is cut."""
        ids = torch.full((len(texts), max_length), self.pad_id)
        for row, text in zip(ids, texts, strict=True):
            body = self._encode(text)[: max_length - _NUM_SPECIAL_TOKENS]
            row[: len(body) + 2] = torch.tensor([self.start_id, *body, self.end_id])
        return ids

    def unread_words(self, text: str, max_length: int) -> str:
        """Return the last words of a text, in lower case, that `max_length` ids do not hold as a whole."""
        body, start = self._encode(text), max_length - _NUM_SPECIAL_TOKENS
        if len(body) <= start:
            return ""
        while start and not self._bpe.decoder[body[start - 1]].endswith("</w>"):
            start -= 1
        return str(self._bpe.decode(body[start:])).strip()


@lru_cache(maxsize=4)
def clip_tokenizer(vocab_size: int = CLIP_VOCABULARY, pads_with_end: bool = False) -> ClipTokenizer:
    """Return the tokenizer of that size, which is built once per process."""
    return ClipTokenizer(vocab_size, pads_with_end)


def bundle_tokenizers(bundle: ModelBundle) -> tuple[ClipTokenizer, ClipTokenizer]:
    """Return the tokenizers of a bundle's two text encoders."""
    sizes = (
        vocabulary_of(encoder.config.to_dict()) for encoder in (bundle.text_encoder, bundle.text_encoder_2)
    )
    return clip_tokenizer(next(sizes), pads_with_end=True), clip_tokenizer(next(sizes))


def describe_reading(bundle: ModelBundle, prompts: Sequence[str]) -> list[str]:
    """Say what a model does not read of prompts as it may be meant: mostly nothing, else a sentence a kind.

    Args:
        bundle: the model, whose text encoders read so many tokens and no more.
        prompts: sentences, negative ones too; empty ones do not count.
    """
    prompts = [prompt for prompt in dict.fromkeys(prompts) if prompt]
    tokenizer, max_length = bundle_tokenizers(bundle)[0], bundle.text_encoder.config.max_position_embeddings
    notes, unread = describe_syntax(prompts), [tokenizer.unread_words(each, max_length) for each in prompts]
    if too_long := [words for words in unread if words]:
        notes.append(
            f"The text encoders read {max_length - _NUM_SPECIAL_TOKENS} tokens of a prompt; they do not read "
            f"{quote_some(too_long, characters=200)}{count_of(len(too_long), len(prompts))}."
        )
    return notes


def encode_text(
    bundle: ModelBundle, prompts: Sequence[str], negative_prompt: str | None = None
) -> TextCondition:
    """Encode prompts with both text encoders (penultimate hidden states, as SDXL does).

    Args:
        bundle: the model.
        prompts: B sentences.
        negative_prompt: what classifier-free guidance steers away from; None or blanks give SDXL's zeros, or
            the empty text where the model's folder says so.
            Models with a guidance embedding do not use it.

    Returns:
        TextCondition with B rows on the text encoders' device.
    """
    check_prompts(prompts)
    embeds, pooled = _encode(bundle, prompts)
    negative_prompt = clean_line(negative_prompt or "")
    if negative_prompt or not bundle.has_zeros_for_no_prompt:
        if negative_prompt:
            check_prompts([negative_prompt])
        encoded = _encode(bundle, [negative_prompt])
        negative, negative_pooled = (x.expand(len(prompts), *x.shape[1:]) for x in encoded)
    else:
        negative, negative_pooled = torch.zeros_like(embeds), torch.zeros_like(pooled)
    size = float(bundle.image_px)
    time_ids = torch.tensor([[size, size, 0.0, 0.0, size, size]], device=embeds.device, dtype=embeds.dtype)
    return TextCondition(embeds, pooled, time_ids.expand(len(prompts), -1), negative, negative_pooled)


@torch.no_grad()
def _encode(bundle: ModelBundle, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    encoders = (bundle.text_encoder, bundle.text_encoder_2)
    (hidden, _), (hidden_2, pooled) = (
        encode_tokens(encoder, tokenizer(prompts, encoder.config.max_position_embeddings).to(encoder.device))
        for tokenizer, encoder in zip(bundle_tokenizers(bundle), encoders, strict=True)
    )
    return torch.cat([hidden, hidden_2], dim=-1), pooled


def encode_tokens(encoder: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return penultimate hidden states [n, L, D] and the pooled, where possible projected, feature [n, P]."""
    out = encoder(ids, output_hidden_states=True)
    return out.hidden_states[-2], out[0] if out[0].ndim == 2 else out.pooler_output
