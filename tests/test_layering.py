"""The dependency rules of docs/architecture.md, folder by folder, read from the import statements."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMFY = ("comfy", "comfy_api", "comfy_extras", "comfy_execution", "folder_paths", "server", "execution")
COMFY_INTERNALS = tuple(name for name in COMFY if name != "comfy_api")

# A folder or file -> what it must not import. Annotations count, those under TYPE_CHECKING too.
FORBIDDEN: dict[str, tuple[str, ...]] = {
    "t2mv_core": ("training", "nodes", *COMFY),
    "training": ("nodes", *COMFY),
    "nodes": ("training",),
    "training.algorithm.objectives": ("t2mv_core", "training"),
    "training.algorithm.constraint": ("t2mv_core", "training"),
}
EXCEPTIONS = {("nodes.train", "training")}

# A folder or file -> all of ours that it may import beside itself.
ALLOWED: dict[str, tuple[str, ...]] = {
    # Records and maths, below everything.
    "t2mv_core.cameras": (),
    "t2mv_core.schedule": (),
    "t2mv_core.scheduler_config": ("t2mv_core.schedule",),
    "t2mv_core.trajectory": (),
    "t2mv_core.defaults": (),
    "t2mv_core.policy": ("t2mv_core.schedule",),
    "t2mv_core.objects": ("t2mv_core.cameras",),
    "t2mv_core.toybox": ("t2mv_core.formats", "t2mv_core.objects"),
    "t2mv_core.formats": ("t2mv_core.toybox",),
    "t2mv_core.autocast": (),
    "t2mv_core.unet": ("t2mv_core.autocast", "t2mv_core.formats"),
    "t2mv_core.bundle": ("t2mv_core.defaults", "t2mv_core.schedule", "t2mv_core.formats"),
    "t2mv_core.loading": (
        "t2mv_core.bundle",
        "t2mv_core.formats",
        "t2mv_core.schedule",
        "t2mv_core.scheduler_config",
        "t2mv_core.unet",
    ),
    "t2mv_core.prompts": (),
    "t2mv_core.text": ("t2mv_core.bundle", "t2mv_core.formats", "t2mv_core.prompts"),
    "t2mv_core.images": ("t2mv_core.bundle", "t2mv_core.toybox"),
    "t2mv_core.lora": ("t2mv_core.autocast", "t2mv_core.bundle", "t2mv_core.formats"),
    "t2mv_core.denoiser": (
        "t2mv_core.bundle",
        "t2mv_core.cameras",
        "t2mv_core.formats",
        "t2mv_core.lora",
        "t2mv_core.text",
        "t2mv_core.unet",
    ),
    "t2mv_core.reference": (
        "t2mv_core.autocast",
        "t2mv_core.bundle",
        "t2mv_core.denoiser",
        "t2mv_core.lora",
        "t2mv_core.text",
        "t2mv_core.unet",
    ),
    "t2mv_core.reference_picture": ("t2mv_core.toybox",),
    "t2mv_core.rewards": (
        "t2mv_core.cameras",
        "t2mv_core.formats",
        "t2mv_core.objects",
        "t2mv_core.prompts",
        "t2mv_core.text",
        "t2mv_core.toybox",
    ),
    "t2mv_core.samplers": (
        "t2mv_core.bundle",
        "t2mv_core.defaults",
        "t2mv_core.denoiser",
        "t2mv_core.policy",
        "t2mv_core.text",
        "t2mv_core.trajectory",
        "t2mv_core.unet",
    ),
    # The trainer: the method stands on the core alone, the loop stands on top.
    "training.algorithm": ("t2mv_core",),
    "training.config": ("t2mv_core.defaults",),
    "training.data": ("t2mv_core", "training.algorithm"),
    "training.models": ("t2mv_core", "training.algorithm", "training.config", "training.data"),
    "training.evaluation": (
        "t2mv_core",
        "training.algorithm",
        "training.config",
        "training.data",
        "training.models",
    ),
    "training.run": (
        "t2mv_core",
        "training.algorithm",
        "training.config",
        "training.data",
        "training.evaluation",
        "training.models",
    ),
}
NOBODY_IMPORTS = {"training.toybox": (), "training.experiments": ("training.compare",)}
"""Folders that stand outside of the product, and who may start them."""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, `from x import y` as x and x.y."""
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - (node.level - 1)] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            names.update([base, *(f"{base}.{alias.name}" for alias in node.names)])
    return names


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def is_within_any(name: str, packages: tuple[str, ...]) -> bool:
    return any(is_within(name, package) for package in packages)


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def forbidden_imports(path: Path) -> Iterator[str]:
    module = module_name(path)
    for place, packages in FORBIDDEN.items():
        for name in sorted(imports(path)):
            is_exception = any(is_within(module, who) and is_within(name, what) for who, what in EXCEPTIONS)
            if is_within(module, place) and is_within_any(name, packages) and not is_exception:
                yield f"{module} imports {name}"


@pytest.mark.parametrize("package", ["t2mv_core", "training", "nodes"])
def test_nothing_imports_upwards_or_sideways(package):
    assert sources(package)
    assert [line for path in sources(package) for line in forbidden_imports(path)] == []


@pytest.mark.parametrize("place", ALLOWED)
def test_a_folder_imports_only_what_lies_below_it(place):
    top = place.partition(".")[0]
    paths = [path for path in sources(top) if is_within(module_name(path), place)]
    assert paths, f"{place} is gone; take it out of the table"
    assert [
        f"{module_name(path)} imports {name}"
        for path in paths
        for name in sorted(imports(path))
        if is_within_any(name, ("t2mv_core", "training", "nodes"))
        and "." in name  # `from t2mv_core import __version__` costs nothing
        and name != "t2mv_core.__version__"
        and not is_within_any(name, (place, *ALLOWED[place]))
        and not is_parent_of_allowed(name, (place, *ALLOWED[place]))
    ] == []


def is_parent_of_allowed(name: str, allowed: tuple[str, ...]) -> bool:
    """`from .. import x` names the parent package as well as x; only x counts."""
    return any(is_within(package, name) for package in allowed)


def test_every_folder_of_core_and_training_has_a_rule():
    folders = {
        f"{top}.{path.name}"
        for top in ("t2mv_core", "training")
        for path in (ROOT / top).iterdir()
        if path.is_dir()
    }
    folders -= {name for name in folders if name.endswith("__pycache__")}
    assert folders - {*ALLOWED, *NOBODY_IMPORTS} == set()


@pytest.mark.parametrize(("package", "starters"), NOBODY_IMPORTS.items())
def test_nobody_imports_what_is_not_product(package, starters):
    outside = [
        p
        for top in ("t2mv_core", "training", "nodes")
        for p in sources(top)
        if not is_within(module_name(p), package)
    ]
    found = {module_name(path) for path in outside if any(is_within(name, package) for name in imports(path))}
    assert found <= set(starters)


def test_one_file_and_one_folder_of_the_nodes_know_the_internals_of_comfyui():
    """A new ComfyUI must be a change in these; `comfy_api` is its public face."""
    found = [
        f"{module_name(path)} imports {name}"
        for path in sources("nodes")
        for name in sorted(imports(path))
        if is_within_any(name, COMFY_INTERNALS)
        and not is_within_any(module_name(path), ("nodes.native.comfyui", "nodes.common"))
    ]
    assert found == []


@pytest.mark.parametrize("package", ["t2mv_core", "nodes"])
def test_inside_the_comfyui_process_everything_is_imported_relatively(package):
    """There `t2mv_core` is `<pack>.t2mv_core`; an absolute import would load it twice, or not at all."""
    found = []
    for path in sources(package):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            else:
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            ours = ("t2mv_core", "training", "nodes")
            found += [f"{path.name}: {n}" for n in names if is_within_any(n, ours)]
    assert found == []


@pytest.mark.parametrize("path", ["__init__.py", "t2mv_core/__init__.py", "training/__init__.py"])
def test_importing_a_package_costs_nothing(path):
    top_level = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
    names = {ast.unparse(node) for node in top_level if isinstance(node, ast.Import | ast.ImportFrom)}
    assert names <= {"from __future__ import annotations", "from typing import Any"}


def test_nobody_edits_the_module_search_path():
    found = []
    for package in ("t2mv_core", "training", "nodes"):
        for path in sources(package):
            text = path.read_text(encoding="utf-8")
            parts = ast.walk(ast.parse(text if "sys." in text else ""))
            written = {ast.unparse(node) for node in parts if isinstance(node, ast.Attribute | ast.Subscript)}
            found += [f"{path.name}: {x}" for x in written if x.startswith(("sys.path.", "sys.modules["))]
    # A user's file becomes a module of its own. Training in ComfyUI's process finds the core there under
    # the name that it has on the command line: the same modules, so nothing is loaded twice.
    assert set(found) <= {"rewards.py: sys.modules[spec.name]", "session.py: sys.modules[f't2mv_core{name}']"}


@pytest.mark.parametrize("top", ["t2mv_core", "training", "nodes", "benchmarks"])
def test_no_folder_holds_more_than_twenty_source_files(top):
    folders = [ROOT / top, *(path for path in (ROOT / top).rglob("*") if path.is_dir())]
    assert {str(f.relative_to(ROOT)): n for f in folders if (n := len(list(f.glob("*.py")))) > 20} == {}
