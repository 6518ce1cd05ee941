"""Print the reference of all settings as Markdown: python -m training.config > docs/configuration.md."""

from __future__ import annotations

import ast
import json
import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING, fields
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from . import sections
from .parsing import FilePath, range_words

HEAD = """# Settings of a training run

`python -m training.config` prints this page. Set a value with `section.key=value` on the command line, or in
a preset: a YAML file with a block per section. Each setting stands here with its default.

Text stays as it is typed (`run.out_dir=007`, `sampling.negative_prompt=low quality #1`; in a file ` #`
begins a comment), numbers are decimal, `null` is no value, `~` at the start of a path is the home folder.
Lists and blocks are YAML (`[0, 90]`, `{a: 1}`). A key that stands twice in a file is refused.
"""
PREFIXES = {
    "TrainConfig": "",
    "BaseLoraConfig": "model.base_loras[].",
    "OwnRewardConfig": "reward.own.<name>.",
}
"""Of the classes that are no section; the others are named `<Section>Config`."""


def reference_markdown() -> str:
    """Return a list per section: setting, default, limits, and the sentence of the field."""
    lines = [HEAD]
    for node in ast.parse(Path(sections.__file__).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            title = str(ast.get_docstring(node)).rstrip(".")
            lines += [f"## {title}", "", *_items(node), ""]
    return "\n".join(lines)


def _items(node: ast.ClassDef) -> Iterator[str]:
    kind = getattr(sections, node.name)
    prefix = PREFIXES.get(node.name, node.name.removesuffix("Config").lower() + ".")
    hints, known = typing.get_type_hints(kind, include_extras=True), {f.name: f for f in fields(kind)}
    for place, sentence in pairwise(node.body):
        if isinstance(place, ast.AnnAssign) and isinstance(sentence, ast.Expr):
            name, text = ast.unparse(place.target), " ".join(ast.literal_eval(sentence.value).split())
            field = known[name]
            value = field.default if field.default_factory is MISSING else field.default_factory()
            yield f"* `{prefix}{name}={json.dumps(value)}`{limits(hints[name])}: {text}"


def limits(hint: Any) -> str:
    """Return the choices or the range that an annotation allows, in brackets; empty where it sets none."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType, tuple, dict):
        return limits(arguments[-1] if origin is dict else arguments[0])
    if origin is Literal:
        return f" ({', '.join(f'`{word}`' for word in arguments)})"
    is_range = origin is Annotated and hint != FilePath
    return f" ({words})" if is_range and (words := range_words(arguments[1])) else ""


if __name__ == "__main__":
    print(reference_markdown(), end="")  # noqa: T201 - a command line
