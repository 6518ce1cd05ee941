"""Where a benchmark's figures go: report.md to read, report.json with commit, device and versions."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from training.run.environment import describe_environment


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def write_results(out: Path, module: str, title: str, text: str, figures: Any) -> None:
    """Write report.md and report.json into `out`, and print the former."""
    environment = describe_environment()
    git, device = environment["git"], environment["devices"][0]
    commit = f"{str(git['commit'])[:10]}{' with changes' if git['is_dirty'] else ''}"
    command = " ".join(["python -m", module, *sys.argv[1:]])
    made = (
        f"`{command}`, commit {commit}, {device['name']}, {torch.get_num_threads()} threads, "
        f"torch {environment['packages']['torch']}, {environment['started'][:10]}."
    )
    page = f"# {title}\n\n{made}\n\n{text}\n"
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.md").write_text(page, encoding="utf-8")
    record = {"environment": environment, "figures": figures}
    (out / "report.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(page)  # noqa: T201 - a command line
