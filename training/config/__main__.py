"""Print the reference of all settings as Markdown: python -m training.config > docs/configuration.md."""

from __future__ import annotations

import ast
import json
import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from . import sections
from .parsing import TYPE_WORDS, range_words

HEAD = """# Settings of a training run

`python -m training.config` prints this page. Set a value with `section.key=value` on the command line, or in
a preset: a YAML file with a block per section.
"""
TABLE = "| setting | values | default | what |\n|---|---|---|---|"
PREFIXES = {
    "TrainConfig": "",
    "BaseLoraConfig": "model.base_loras[].",
    "OwnRewardConfig": "reward.own.<name>.",
}
"""Of the classes that are no section; the others are named `<Section>Config`."""


def reference_markdown() -> str:
    """Return a table per section: setting, allowed values, default, and the sentence of the field."""
    lines = [HEAD]
    for node in ast.parse(Path(sections.__file__).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            title = str(ast.get_docstring(node)).rstrip(".")
            lines += [f"## {title}", "", TABLE, *_rows(node), ""]
    return "\n".join(lines)


def _rows(node: ast.ClassDef) -> Iterator[str]:
    kind = getattr(sections, node.name)
    prefix = PREFIXES.get(node.name, node.name.removesuffix("Config").lower() + ".")
    hints, known = typing.get_type_hints(kind, include_extras=True), {f.name: f for f in fields(kind)}
    for place, sentence in pairwise(node.body):
        if isinstance(place, ast.AnnAssign) and isinstance(sentence, ast.Expr):
            name, text = ast.unparse(place.target), " ".join(ast.literal_eval(sentence.value).split())
            field = known[name]
            value = field.default if field.default_factory is MISSING else field.default_factory()
            yield f"| `{prefix}{name}` | {describe(hints[name])} | `{json.dumps(value)}` | {text} |"


def describe(hint: Any) -> str:
    """Return the values that an annotation allows, in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return f"{describe(arguments[0])}, or `null`"
    if origin is Literal:
        return ", ".join(f"`{word}`" for word in arguments)
    if origin is Annotated:
        return " ".join(filter(None, [TYPE_WORDS[arguments[0]], range_words(arguments[1])]))
    if origin is tuple:
        return f"a list: {describe(arguments[0])}"
    if origin is dict:
        return f"names, each with {describe(arguments[1])}"
    return "a block" if is_dataclass(hint) else TYPE_WORDS[hint]


if __name__ == "__main__":
    print(reference_markdown(), end="")  # noqa: T201 - a command line
