"""Facts about pyproject.toml and its neighbours that nothing else would notice."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:  # pytest and mypy bring it where Python has none
    import tomli as tomllib

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_a_wheel_has_the_toybox_and_what_the_trainer_reads(project):
    shipped = {
        path
        for package, patterns in project["tool"]["setuptools"]["package-data"].items()
        for pattern in patterns
        for path in (ROOT / package).glob(pattern)
    }
    tracked = subprocess.run(
        ["git", "ls-files", "t2mv_core", "training"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert [name for name in tracked if not name.endswith(".py") and ROOT / name not in shipped] == []


def test_requirements_are_the_same_for_pip_and_for_the_manager(project):
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    assert lines == project["project"]["dependencies"]


def test_nothing_is_pinned_and_torch_is_left_to_comfyui(project):
    # A pin in one pack breaks the others; a listed torch makes pip replace ComfyUI's build.
    for requirement in project["project"]["dependencies"]:
        assert re.fullmatch(r"[a-z-]+>=[\d.]+", requirement), requirement
        assert not requirement.startswith("torch")


def test_versions_agree(project):
    source = (ROOT / "t2mv_core" / "__init__.py").read_text(encoding="utf-8")
    version = project["project"]["version"]
    assert f'__version__ = "{version}"' in source
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_registry_entry_is_complete(project):
    comfy = project["tool"]["comfy"]
    assert comfy.keys() >= {"PublisherId", "DisplayName", "Icon", "Banner", "requires-comfyui"}
    assert project["project"]["urls"]["Repository"].startswith("https://")
    for picture in ("Icon", "Banner"):
        assert (ROOT / "docs" / "images" / comfy[picture].rpartition("/")[2]).is_file()
    assert "comfyui" not in project["project"]["name"].lower()


def test_continuous_integration_runs_what_people_run():
    commands = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert commands[-1] == "make test"
    assert "set -euo pipefail" in commands
