"""YAML in which a value without quotes stays as it was typed, and no key is there twice.

YAML 1.1, which the library reads, takes `045` for 37, `20241128_01` for 2024112801 and `no` for false; of two
equal keys it keeps the last. Here a setting's own type decides what its text means (`parsing`).
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from .parsing import Typed


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {"<": [("tag:yaml.org,2002:merge", re.compile("<<"))]}  # noqa: RUF012 - yaml's

    def construct_text(self, node: yaml.ScalarNode) -> str:
        return str(node.value) if node.style else Typed(node.value)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        known: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in known:
                problem = f"{key.value} is there twice; keep one of them"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
            known.add(str(key.value))
        super().flatten_mapping(node)


_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_text)


def read_yaml(text: str, place: str) -> Any:
    """Return what a document says: mappings, lists, Typed values, and plain strings where quotes stood.

    Args:
        text: the document.
        place: its file or setting, for messages.

    Raises:
        ValueError: not valid YAML, or a key is there twice, with the line.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{place}{line}: this is not valid YAML ({error.problem}).") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{place}: this is not valid YAML ({str(error).splitlines()[0]}).") from error
    except (ValueError, LookupError, AttributeError) as error:  # yaml's, of `!!int x` and the like
        raise ValueError(
            f"{place}: a value does not fit the `!!type` before it; leave the type out."
        ) from error


def read_value(text: str, key: str) -> Any:
    """Return a value of the command line: lists, blocks and quotes are YAML, everything else is as typed.

    Raises:
        ValueError: a key is there twice, see `read_yaml`.
    """
    text = text.strip()
    if not text.startswith(("[", "{", '"', "'")):
        return Typed(text)
    try:
        return read_yaml(text, key)
    except ValueError as error:
        if isinstance(error.__cause__, yaml.constructor.ConstructorError):
            raise
        return Typed(text)  # a text that begins so, such as "[deformed], ugly"
