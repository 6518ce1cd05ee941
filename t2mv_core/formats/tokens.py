"""Which token ids a text encoder's files name: start and end of a text, and tokens that somebody added."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .checkpoint import read_json

CLIP_VOCABULARY = 49408
"""Ids of CLIP's own vocabulary; its last two are start and end of a text."""
_LEGACY_END = 2
"""What transformers before 4.32 wrote as CLIP's end token, which it never was."""
_TOKENIZERS = ("CLIP", "PreTrainedTokenizerFast", "TokenizersBackend")
_PADDING = {"text_encoder": "<|endoftext|>", "text_encoder_2": "!"}
"""What SDXL's encoders are filled up with behind the end."""


def vocabulary_of(config: Mapping[str, Any]) -> int:
    """Return the size of CLIP's vocabulary, or of our cut of it, in a text encoder that may have more tokens.

    Raises:
        ValueError: start and end are not its last two ids, so the tokens are not CLIP's.
    """
    size, end = int(config.get("vocab_size", CLIP_VOCABULARY)), config.get("eos_token_id")
    is_id = isinstance(end, int)
    if end is None or (is_id and end <= _LEGACY_END):
        return min(size, CLIP_VOCABULARY)
    start = config.get("bos_token_id")
    if not (is_id and end < size) or start not in (None, 0, end - 1):  # 0 is as legacy as the end
        raise ValueError(
            f"The text encoder's bos_token_id={start} and eos_token_id={end} (vocab_size={size}) are not the "
            "last two tokens of CLIP's vocabulary; use CLIP's text encoders, as SDXL has them."
        )
    return int(end) + 1


def settle_tokens(config: dict[str, Any], part: str, place: Path, notices: list[str]) -> dict[str, Any]:
    """Return the configuration of a text encoder with its true start and end, and name what is beyond them.

    Args:
        config: of the encoder.
        part: "text_encoder" or "text_encoder_2".
        place: its file or folder; the tokenizer's folder lies beside the latter.
        notices: takes sentences about added tokens and another padding.

    Raises:
        ValueError: the tokens, or the tokenizer, are not CLIP's.
    """
    vocabulary = vocabulary_of(config)
    folder = place.with_name(part.replace("text_encoder", "tokenizer"))
    tokenizer = _read_tokenizer(folder) if place.is_dir() else {}
    if padding := _text_of(tokenizer.get("pad_token")):
        if padding != _PADDING[part]:
            notices.append(
                f"{folder} pads with {padding!r}; T2MV pads with {_PADDING[part]!r}, as SDXL does."
            )
    if num_added := config.get("vocab_size", vocabulary) - vocabulary:
        listed = tokenizer.get("added_tokens_decoder") or {}
        names = [_text_of(token) or "?" for key, token in listed.items() if int(key) >= vocabulary]
        which = f" ({', '.join(map(repr, names[:5]))}{', …' if len(names) > 5 else ''})" if names else ""
        notices.append(
            f"{place}: prompts cannot use the {num_added} tokens added to CLIP's vocabulary{which}."
        )
    return {**config, "bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1}


def _read_tokenizer(folder: Path) -> dict[str, Any]:
    """Read what a tokenizer's folder says; nothing when there is none."""
    facts: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            facts |= read_json(folder / name, "")
    if (folder / "added_tokens.json").is_file():  # older transformers: name -> id
        added = read_json(folder / "added_tokens.json", "")
        facts.setdefault("added_tokens_decoder", {str(number): name for name, number in added.items()})
    kind = str(facts.get("tokenizer_class") or "CLIP")
    if not kind.startswith(_TOKENIZERS):
        raise ValueError(f"{folder} is a {kind}, not CLIP's tokenizer; use text encoders as SDXL has them.")
    return facts


def _text_of(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, Mapping) else str(token or "")
