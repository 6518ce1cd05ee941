"""Print the reference of all settings as Markdown, or all settings of a run as YAML.

python -m training.config > docs/configuration.md
python -m training.config demo optim.lr=1e-3
"""

from __future__ import annotations

import ast
import json
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from t2mv_core.defaults import DEFAULTS, FEW_STEP, OF_PICTURE, TOYBOX_OF_PICTURE

from . import config_to_dict, load_config, sections
from .parsing import FilePath, range_words

HEAD = """# Settings of a training run

`python -m training.config` prints this page; `python -m training.config demo optim.lr=1e-3` prints every
setting of a run with this preset and this change. Set a value with `section.key=value` on the command line,
or in a preset: a YAML file with a block per section. Each setting stands here with its default.

Text stays as it is typed (`run.out_dir=007`, `sampling.negative_prompt=low quality #1`; in a file ` #`
begins a comment), numbers are decimal, `null` is no value, `~` at the start of a path is the home folder.
Lists and blocks are YAML (`[0, 90]`, `{a: 1}`). A key that stands twice in a file is refused.

## The models' own numbers

`sampling` takes these (`t2mv_core/defaults.py`) where neither preset nor command line states others; the
nodes have the same. A model that is in no row, such as a folder, takes those of the preset's model; if that
is in no row either, the defaults below hold.
"""
TOYBOX_OF_PICTURE_NAME = "`toybox-image` (`sampling.references`)"
OF_PICTURE_NAME = "`sdxl` with an image adapter (`sampling.references`)"
FEW_STEP_NAME = "few-step weights for SDXL (`model.solver`)"
PREFIXES = {
    "TrainConfig": "",
    "BaseLoraConfig": "model.base_loras[].",
    "OwnRewardConfig": "reward.own.<name>.",
}
"""Of the classes that are no section; the others are named `<Section>Config`."""


def reference_markdown() -> str:
    """Return a list per section: setting, default, limits, and the sentence of the field."""
    lines = [HEAD, *_model_table(), ""]
    for node in ast.parse(Path(sections.__file__).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            title = str(ast.get_docstring(node)).rstrip(".")
            lines += [f"## {title}", "", *_items(node), ""]
    return "\n".join(lines)


def _model_table() -> Iterator[str]:
    records = {f"`{name}`": record for name, record in DEFAULTS.items()}
    records |= {TOYBOX_OF_PICTURE_NAME: TOYBOX_OF_PICTURE, OF_PICTURE_NAME: OF_PICTURE}
    records |= {FEW_STEP_NAME: FEW_STEP}
    columns = list(FEW_STEP.numbers())
    yield f"| model | {' | '.join(f'`{name}`' for name in columns)} | numbers are |"
    yield "|---" * (len(columns) + 2) + "|"
    for name, record in records.items():
        yield f"| {name} | {' | '.join(f'{x:g}' for x in record.numbers().values())} | {record.source} |"


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


def main(words: Sequence[str]) -> int:
    """Print the page, or the settings of a preset with changes; return 1 if these are wrong."""
    try:
        text = _yaml(load_config(words[0], words[1:])) if words else reference_markdown()
    except (ValueError, OSError) as error:
        print(f"config: {error}", file=sys.stderr)  # noqa: T201 - a command line
        return 1
    print(text, end="")  # noqa: T201
    return 0


def _yaml(config: sections.TrainConfig) -> str:
    import yaml

    return yaml.safe_dump(config_to_dict(config), sort_keys=False, allow_unicode=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
