"""What the documents name exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"\| `([\w.]+)` \| `([\w/.]+)::(\w+)` \|$", re.MULTILINE)


def names_in(path: Path) -> set[str]:
    parts = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {node.name for node in parts if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def test_every_equation_names_a_function_and_a_test_that_exist():
    text = (ROOT / "docs" / "math.md").read_text(encoding="utf-8")
    rows = ROW.findall(text)
    assert len(rows) == text.count("::")
    for function, test_file, test in rows:
        module, _, name = function.rpartition(".")
        source = module if module.startswith("training.") else f"t2mv_core.{module}"
        assert name in names_in(ROOT / f"{source.replace('.', '/')}.py"), function
        folder = ROOT / "tests" if test_file.startswith("training/") else ROOT / "tests" / "core"
        assert test in names_in(folder / test_file), f"{test_file}::{test}"


def test_published_results_name_no_folder_of_the_machine_that_made_them():
    results = [path for path in (ROOT / "docs").rglob("*") if path.suffix in (".json", ".md")]
    assert any(path.parent.name == "runs" for path in results)
    for path in results:
        found = re.findall(
            r"[\"'` =](?:/(?:root|home|work|tmp|Users|opt|mnt)/|[A-Z]:\\\\)", path.read_text("utf-8")
        )
        assert not found, f"{path.relative_to(ROOT)}: {found[0]}"


def test_links_between_documents_lead_somewhere():
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
            if "://" in target:
                continue  # other people's pages are not ours to test
            assert (path.parent / target).exists(), f"{path.name}: {target}"
