"""Prompts as people type and paste them: lines, characters that nobody sees, syntax of other programs."""

from __future__ import annotations

import re
from collections.abc import Sequence

MAX_PROMPT_CHARACTERS = 2000

# Characters that no line shows, and on which prompts that look alike would differ: soft hyphen, zero-width
# space, marks of direction, word joiner, byte-order mark, control characters. The joiners U+200C and U+200D
# stay: Persian and emoji are written with them.
_UNSEEN = "\u00ad\u200b\u200e\u200f\ufeff" + "".join(
    map(chr, (*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2060, 0x2070)))
)
# Every other white space (no-break, ideographic, U+2028, vertical tab, form feed, …) is a blank.
_CLEAN = str.maketrans({c: "" for c in _UNSEEN} | {c: " " for c in map(chr, range(0x3001)) if c.isspace()})
_LINE_END = re.compile(r"\r\n|\n|\r")
# What ComfyUI's and other programs' prompts obey. A plain parenthesis, which weighs 1.1 in ComfyUI, is
# punctuation here as in any sentence, and is not named.
_SYNTAX = re.compile(
    r"""
      \([^()]*:\s*[-+]?(?:\d+\.?\d*|\.\d+)\s*\)  # (red:1.5)
    | \(\([^()]*\)+                              # ((red))
    | \\[()]                                     # \(
    | \[[^][]*[|:][^][]*\]                       # [red|blue], [red:blue:0.5]
    | \{[^{}]*\|[^{}]*\}                         # {red|blue}
    | \bembedding:[^\s,()]+
    | <[a-zA-Z]+:[^<>]+>                         # <lora:name:0.8>
    | \b__[\w/*-]+?__\b                          # a file of wildcards
    | (?<!:)//.* | /\*.*?\*/                     # a comment, but no https://
    | \b(?:BREAK|AND)\b
    """,
    re.VERBOSE,
)


def split_lines(text: str) -> list[str]:
    """Split a text where an editor ends lines, at LF, CR or both, and clean each line; blank ones are "".

    Not `str.splitlines`, which also splits at form feeds, U+2028 and the like: those are blanks in a line.
    """
    return [clean_line(line) for line in _LINE_END.split(text)]


def clean_line(text: str) -> str:
    """Return a text as one line without what nobody sees: other blanks are spaces, none is at the ends."""
    return text.translate(_CLEAN).strip()


def check_prompts(prompts: Sequence[str]) -> None:
    """Raise ValueError for no prompt, or one that is empty, too long or no Unicode text."""
    if not prompts:
        raise ValueError("No prompt was given; give at least one sentence.")
    for prompt in prompts:
        if not clean_line(prompt):
            raise ValueError("A prompt is empty; describe the object, for example 'a red mug'.")
        if len(prompt) > MAX_PROMPT_CHARACTERS:
            raise ValueError(
                f"A prompt has {len(prompt)} characters; at most {MAX_PROMPT_CHARACTERS} are allowed, and "
                "the text encoders read only the first 75 tokens. Shorten it."
            )
        if any("\ud800" <= character <= "\udfff" for character in prompt):
            raise ValueError("A prompt holds half a character (an unpaired surrogate); write the whole one.")


def find_syntax(prompt: str) -> list[str]:
    """Return what other programs would not read as words: weights, embeddings, choices, comments."""
    pieces = [match.group() for match in _SYNTAX.finditer(prompt)]
    # Who writes all in capitals means the word.
    return [piece for piece in pieces if piece not in ("BREAK", "AND") or prompt != prompt.upper()]


def describe_syntax(prompts: Sequence[str]) -> list[str]:
    """Say in a sentence what of the prompts is syntax elsewhere and words here; none when nothing is."""
    syntax = {prompt: pieces for prompt in prompts if (pieces := find_syntax(prompt))}
    if not syntax:
        return []
    quoted = quote_some([piece for pieces in syntax.values() for piece in pieces])
    count = count_of(len(syntax), len(prompts))
    return [f"T2MV reads as plain words, unlike other programs: {quoted}{count}."]


def quote_some(texts: Sequence[str], most: int = 3, characters: int = 60) -> str:
    """Quote the first few of some texts, each once and not too long, and count the others."""
    distinct = list(dict.fromkeys(texts))
    short = (text if len(text) <= characters else f"{text[: characters - 1]}…" for text in distinct[:most])
    others = f" and {len(distinct) - most} more" if len(distinct) > most else ""
    return ", ".join(f"“{text}”" for text in short) + others


def count_of(count: int, total: int) -> str:
    """Say in how many of several prompts something is; of a single one there is nothing to say."""
    return f" (in {count} of {total} prompts)" if total > 1 else ""
