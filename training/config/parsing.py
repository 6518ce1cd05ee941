"""Plain YAML values into nested frozen dataclasses and back, with every mistake reported in a sentence.

The annotations of a dataclass say which values its fields take: `Annotated[float, "(0, 1]"]` is a number of
this interval, `Literal["a", "b"]` one of these words, `FilePath` text that may begin with `~`.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

Record = TypeVar("Record")
TYPE_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
FilePath = Annotated[str, "path"]
"""A path, or a name that stands in for one; `~` at its start is the home folder."""
_SETTING = re.compile(r"(objective|[a-z_]+(\.\w+)+)=")
_BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class Typed(str):
    """A value as it was typed without quotes: the setting says whether it is text, a number or null."""

    @property
    def is_null(self) -> bool:
        """Whether it stands for no value where a setting may have none."""
        return self in ("", "~", "null", "Null", "NULL")


def home_path(text: str) -> Path:
    """Return a path with the home folder for `~` at its start: a shell leaves it in `run.out_dir=~/x`."""
    return Path(os.path.expanduser(text))


def build_record(kind: type[Record], values: Any, prefix: str = "") -> Record:
    """Build a dataclass from nested plain values.

    Args:
        kind: the dataclass; its fields are dataclasses, bool, int, float, str, tuples of these or dicts with
            such values, or optional.
        values: what YAML read.
        prefix: key of the block, for messages.

    Raises:
        ValueError: an unknown key (the nearest valid one is named), or a value that its field does not take.
    """
    if isinstance(values, Typed) and values.is_null:  # a section whose lines are all comments
        values = {}
    if not isinstance(values, Mapping):
        raise ValueError(
            f"{prefix[:-1] or 'The configuration'} must be a block of `key: value` lines, not {values!r}."
        )
    hints = typing.get_type_hints(kind, include_extras=True)
    names = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"{prefix}{key} is not a setting; did you mean {prefix}{near}? Known: {', '.join(names)}."
            )
    return kind(**{key: _convert(hints[key], value, f"{prefix}{key}") for key, value in values.items()})


def check_record(record: Any, prefix: str) -> None:
    """Raise ValueError when a field of a dataclass has a value that it does not take.

    Args:
        record: the dataclass.
        prefix: stands before the fields' names in messages, such as "optim.".
    """
    for name, hint in typing.get_type_hints(type(record), include_extras=True).items():
        _convert(hint, getattr(record, name), f"{prefix}{name}")


def plain_values(record: Any) -> dict[str, Any]:
    """Return nested dicts and lists, as YAML writes and `build_record` reads them."""
    return {key: _plain(value) for key, value in asdict(record).items()}


def apply_override(values: dict[str, Any], word: str, parse: Callable[[str, str], Any]) -> None:
    """Set `section.key=value` in nested plain values.

    Args:
        values: changed in place.
        word: what stood on the command line.
        parse: reads the part after the equals sign, given the key too.

    Raises:
        ValueError: no equals sign, or a section that is a value.
    """
    key, equals, text = word.partition("=")
    if not (equals and key):
        raise ValueError(f"{word!r} is not an override; write section.key=value, such as optim.lr=1e-4.")
    *sections, name = key.split(".")
    for section in sections:
        if isinstance(found := values.get(section), Typed) and found.is_null:
            del values[section]
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ValueError(f"{key}: {section!r} is a value, not a section.")
    values[name] = parse(text, key)


def settings_first(words: Sequence[str]) -> list[str]:
    """Return a command line's words, settings first: after `--seeds` argparse would take one for a seed."""
    return sorted(words, key=lambda word: _SETTING.match(word) is None)


def range_words(interval: str) -> str:
    """Return an interval such as "[0, 1)" in words: "at least 0 and less than 1"."""
    low, high = interval[1:-1].split(", ")
    words = [f"{'greater than' if interval[0] == '(' else 'at least'} {low}"] if low != "-inf" else []
    words += [f"{'less than' if interval[-1] == ')' else 'at most'} {high}"] if high != "inf" else []
    return " and ".join(words)


def _convert(hint: Any, value: Any, key: str, or_null: str = "") -> Any:
    """Return the value as its annotation wants it; ValueError where that is impossible."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if is_dataclass(hint):
        kind = typing.cast(type, hint)
        return value if isinstance(value, kind) else build_record(kind, value, f"{key}.")
    if origin in (typing.Union, types.UnionType):
        is_null = value is None or (isinstance(value, Typed) and value.is_null)
        return None if is_null else _convert(arguments[0], value, key, ", or null")
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{key}={value!r} is not known; use one of {', '.join(arguments)}{or_null}.")
        return str(value)
    if hint == FilePath:
        return os.path.expanduser(_convert_scalar(str, value, key))
    if origin is Annotated:
        number = _convert(arguments[0], value, key)
        if not _is_within(number, arguments[1]):
            words = range_words(arguments[1])
            if not math.isfinite(number):
                words = f"{words} and finite" if words else "a finite number"
            raise ValueError(f"{key}={number} must be {words}{or_null}.")
        return number
    if origin is tuple:
        return _convert_tuple(arguments, value, key)
    return _convert_dict(arguments[1], value, key) if origin is dict else _convert_scalar(hint, value, key)


def _is_within(value: float, interval: str) -> bool:
    low, high = map(float, interval[1:-1].split(","))
    is_above = value > low if interval[0] == "(" else value >= low
    return is_above and (value < high if interval[-1] == ")" else value <= high)


def _convert_tuple(arguments: tuple[Any, ...], value: Any, key: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{key}={value!r} must be a list, such as [0, 90].")
    if arguments[-1] is not Ellipsis and len(value) != len(arguments):
        raise ValueError(f"{key}={value!r} must have {len(arguments)} entries.")
    return tuple(_convert(arguments[0], item, key) for item in value)


def _convert_dict(hint: Any, value: Any, key: str) -> dict[str, Any]:
    """Convert names with values of one type; where these are weights, one word is that name with weight 1."""
    if value is None or value == "" or (isinstance(value, Typed) and value.is_null):
        return {}
    is_weight = typing.get_args(hint)[:1] == (float,)
    if is_weight and isinstance(value, str):
        return {str(value): 1.0}
    if not isinstance(value, Mapping):
        form = "a name, or names with weights such as {a: 1, b: 0.5}"
        raise ValueError(f"{key}={value!r} must be {form if is_weight else 'a block of names'}.")
    return {str(name): _convert(hint, item, f"{key}.{name}") for name, item in value.items()}


def _convert_scalar(hint: type, value: Any, key: str) -> Any:
    if isinstance(value, Typed):
        value = _read_typed(hint, value)
    if type(value) not in ((float, int) if hint is float else (hint,)):
        raise ValueError(f"{key}={value!r} must be {TYPE_WORDS[hint]}.")
    return hint(value)


def _read_typed(hint: type, text: Typed) -> Any:
    """Return the value of this type that the text says, or the text if it says none; numbers are decimal."""
    if hint is bool:
        return _BOOLS.get(text.lower(), text)
    if hint is int:
        return int(text) if re.fullmatch(r"[+-]?[0-9]{1,18}", text) else text
    if hint is float and "_" not in text:
        try:
            return float(re.sub(r"^([+-]?)\.(inf|nan)$", r"\1\2", text, flags=re.IGNORECASE))
        except ValueError:
            return text
    return str(text)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
