"""The dependency rules of docs/architecture.md, read from the import statements."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMFY = ("comfy", "comfy_api", "comfy_extras", "comfy_execution", "folder_paths", "server", "execution")

# Where a module lies -> what it must not import.
FORBIDDEN: dict[str, tuple[str, ...]] = {
    "t2mv_core": ("training", "nodes", *COMFY),
    "training": ("nodes", *COMFY),
    "nodes": ("training",),
    "t2mv_core.rewards.registry": ("t2mv_core.samplers",),
    "t2mv_core.lora.adapters": ("t2mv_core.samplers",),
    "training.algorithm.objectives": ("t2mv_core", "training"),
    "training.algorithm.constraint": ("t2mv_core", "training"),
}
EXCEPTIONS = {("nodes.train.node", "training.config")}

# Modules of the core -> all they may import of our own, annotations aside. `files` lies below everything.
ALLOWED_IN_CORE: dict[str, tuple[str, ...]] = {
    "files": (),
    "hub": (),
    "cameras": (),
    "schedule": (),
    "images": (),
    "text_attention": (),
    "attention": ("text_attention",),
    "weights": ("files",),
    "original_layout": (),
    "architecture": (),
    "recognise": ("weights",),
    "single_file": ("original_layout", "recognise", "weights"),
    "sources": ("hub", "toybox"),
    "parts": ("architecture", "original_layout", "single_file", "sources", "weights"),
    "adapter": ("files", "weights"),
    "text": (),
    "trajectory": (),
    "memory": (),
    "toybox": (),
    "policy": ("schedule",),
    "lora_layouts": ("original_layout",),
    "lora_linear": (),
    "lora": ("files", "lora_layouts", "lora_linear"),
    "bundle": (
        "attention",
        "adapter",
        "text",
        "schedule",
        "lora",
        "memory",
        "architecture",
        "parts",
        "sources",
        "weights",
    ),
    "denoiser": ("bundle", "cameras", "lora"),
    "samplers": ("denoiser", "policy", "trajectory"),
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def walk(node: ast.AST, with_annotations: bool) -> Iterator[ast.AST]:
    """All nodes, those inside functions too; without those that only a type checker reads, if so wished."""
    for child in ast.iter_child_nodes(node):
        if with_annotations or not is_type_checking(child):
            yield child
            yield from walk(child, with_annotations)


def imports(path: Path, with_annotations: bool = True) -> set[str]:
    """Absolute names of all modules that a file imports, `from x import y` as x and x.y."""
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    found: set[str] = set()
    for node in walk(ast.parse(path.read_text(encoding="utf-8")), with_annotations):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - (node.level - 1)] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            found.update([base, *(f"{base}.{alias.name}" for alias in node.names)])
    return found


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def violations(path: Path) -> list[str]:
    module = module_name(path)
    banned = {name for place, names in FORBIDDEN.items() if is_within(module, place) for name in names}
    return [
        f"{module} imports {name}"
        for name in sorted(imports(path))
        for package in banned
        if is_within(name, package)
        and not any(module == who and is_within(name, what) for who, what in EXCEPTIONS)
    ]


@pytest.mark.parametrize("package", ["t2mv_core", "training", "nodes"])
def test_nothing_imports_upwards_or_sideways(package):
    assert sources(package)
    assert [line for path in sources(package) for line in violations(path)] == []


def test_core_modules_import_only_what_lies_below_them():
    found = []
    for path in sources("t2mv_core"):
        module = module_name(path).removeprefix("t2mv_core").lstrip(".").split(".")[0]
        if module in ALLOWED_IN_CORE:
            ours = {
                n.split(".")[1] for n in imports(path, with_annotations=False) if n.startswith("t2mv_core.")
            }
            found += [f"{path.name} imports {n}" for n in ours - {module, *ALLOWED_IN_CORE[module]}]
    assert found == []


def test_every_core_module_has_a_place_in_the_order():
    modules = {
        module_name(path).split(".")[1] for path in sources("t2mv_core") if path.parent.name != "t2mv_core"
    }
    modules |= {path.stem for path in (ROOT / "t2mv_core").glob("*.py")} - {"__init__"}
    assert modules == {*ALLOWED_IN_CORE, "rewards"}


@pytest.mark.parametrize("package", ["t2mv_core", "nodes"])
def test_inside_the_comfyui_process_everything_is_imported_relatively(package):
    """There `t2mv_core` is `<pack>.t2mv_core`; an absolute import would load it twice, or not at all."""
    found = []
    for path in sources(package):
        for node in walk(ast.parse(path.read_text(encoding="utf-8")), with_annotations=True):
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            else:
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            ours = ("t2mv_core", "training", "nodes")
            found += [f"{path.name}: {n}" for n in names if any(is_within(n, package) for package in ours)]
    assert found == []


@pytest.mark.parametrize(
    "path", ["__init__.py", "t2mv_core/__init__.py", "nodes/__init__.py", "training/__init__.py"]
)
def test_importing_a_package_costs_nothing(path):
    top_level = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
    names = {ast.unparse(node) for node in top_level if isinstance(node, ast.Import | ast.ImportFrom)}
    assert names <= {"from __future__ import annotations", "from typing import Any"}


def test_nobody_edits_the_module_search_path():
    found = []
    for package in ("t2mv_core", "training", "nodes"):
        for path in sources(package):
            parts = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            written = {ast.unparse(node) for node in parts if isinstance(node, ast.Attribute | ast.Subscript)}
            found += [f"{path.name}: {x}" for x in written if x.startswith(("sys.path.", "sys.modules["))]
    # A user's file becomes a module under a name of its own; nothing of ours gets a second name.
    assert set(found) <= {"own_rewards.py: sys.modules[spec.name]"}
