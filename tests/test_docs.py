"""What the documents name exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).parents[1]
CODE_NAME = re.compile(r"`((?:t2mv_core|training)(?:\.\w+)+)`")
PAGE = re.compile(
    r"(?<![\w/.-])((?:docs|web|t2mv_core|training|nodes|benchmarks|example_workflows)/[\w/.-]+\.(?:md|py|json|yaml))\b"
)
TEXTS = ("t2mv_core", "training", "nodes", "benchmarks", "tests", "docs", "web")


def names_in(path: Path) -> set[str]:
    """Functions, classes, methods and constants of a file."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    names |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return names


def exists_in_code(dotted: str) -> bool:
    """Whether a dotted name is a module, or a name (or a class's method) in one."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        module = ROOT.joinpath(*parts[:length])
        for path in (module.with_suffix(".py"), module / "__init__.py"):
            if path.is_file():
                return set(parts[length:]) <= names_in(path)
    return ROOT.joinpath(*parts).is_dir()


def test_every_equation_names_code_that_exists():
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    names = CODE_NAME.findall(text)
    assert len(names) > 20
    assert [name for name in names if not exists_in_code(name)] == []


def test_every_page_and_file_that_a_text_names_exists():
    paths = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    paths += [p for top in TEXTS for p in (ROOT / top).rglob("*") if p.suffix in (".py", ".md")]
    absent = {
        f"{path.relative_to(ROOT)} names {target}"
        for path in paths
        if "results" not in path.parts and path != Path(__file__)
        for target in PAGE.findall(path.read_text(encoding="utf-8"))
        if not (ROOT / target).exists() and not (path.parent / target).exists()
    }
    assert absent == set()


def test_published_results_name_no_folder_of_the_machine_that_made_them():
    results = [path for path in (ROOT / "docs").rglob("*") if path.suffix in (".json", ".md")]
    assert any(path.parent.name == "runs" for path in results)
    for path in results:
        found = re.findall(
            r"[\"'` =](?:/(?:root|home|work|tmp|Users|opt|mnt)/|[A-Z]:\\\\)", path.read_text("utf-8")
        )
        assert not found, f"{path.relative_to(ROOT)}: {found[0]}"


def anchors_of(path: Path) -> set[str]:
    """What GitHub calls the headings of a page: small letters, hyphens for blanks, no other signs."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_between_documents_lead_to_a_file_and_a_heading():
    num_anchors = 0
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
            if "://" in target:
                continue  # other people's pages are not ours to test
            file, _, anchor = target.partition("#")
            page = path.parent / unquote(file) if file else path
            assert page.exists(), f"{path.name}: {target}"
            if anchor:
                assert anchor in anchors_of(page), f"{path.name}: {target}"
                num_anchors += 1
    assert num_anchors > 10
