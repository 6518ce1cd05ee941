"""What the Comfy Registry would get: nothing that it flags, everything that runs, nothing else."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Versions with these are banned or flagged: a node starts no program, reads no secret, opens no connection.
MODULES = {
    "subprocess", "multiprocessing", "pty", "pexpect", "socket", "requests", "httpx", "aiohttp", "websocket",
    "websockets", "ftplib", "smtplib", "telnetlib", "paramiko", "pickle", "cPickle", "dill", "cloudpickle",
    "marshal", "shelve", "ctypes", "urllib.request", "http.client",
}  # fmt: skip
CALLS = {"eval", "exec", "compile", "__import__"}
OS_NAMES = {
    "system", "popen", "startfile", "fork", "forkpty", "environ", "environb", "getenv", "getenvb", "putenv",
    "setuid", "kill",
}  # fmt: skip
OS_BEGINNINGS = ("exec", "spawn", "posix_spawn")
ALIASES = {"Popen", "check_output", "check_call", "create_subprocess_exec", "create_subprocess_shell"}


def published_files() -> list[Path]:
    """Everything of the repository that .comfyignore lets into the archive, by git's own reading of it."""

    def listed(*words: str) -> set[str]:
        command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", *words]
        return set(filter(None, subprocess.check_output(command, text=True).split("\0")))

    ignored = listed("--ignored", "--exclude-from", str(ROOT / ".comfyignore"))
    return [ROOT / name for name in sorted(listed() - ignored) if (ROOT / name).is_file()]


def findings(source: str) -> Iterator[str]:
    """What the registry would flag in a Python file, with its line."""
    for node in ast.walk(ast.parse(source)):
        line = getattr(node, "lineno", 0)
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name in MODULES or name.partition(".")[0] in MODULES or is_os_name(name):
                yield f"line {line}: import of {name}"
        if isinstance(node, ast.Attribute):
            if is_os_name(ast.unparse(node)) or node.attr in ALIASES:
                yield f"line {line}: {ast.unparse(node)}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS:
            yield f"line {line}: {node.func.id}()"
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            safe = [k for k in node.keywords if k.arg == "weights_only" and ast.unparse(k.value) == "True"]
            if not safe:
                yield f"line {line}: torch.load without weights_only=True"


def is_os_name(name: str) -> bool:
    top, _, rest = name.partition(".")
    return top == "os" and (rest in OS_NAMES or rest.startswith(OS_BEGINNINGS))


@pytest.mark.parametrize(
    "source",
    [
        "import subprocess",
        "from subprocess import run as go",
        "import os\nos.system('x')",
        "from os import environ",
        "import os\nx = os.environ['HOME']",
        "import os\nos.execv('/bin/sh', ['sh'])",
        "import asyncio\nasyncio.create_subprocess_exec('ls')",
        "import urllib.request",
        "from urllib import request",
        "import aiohttp.web",
        "eval('1')",
        "import torch\ntorch.load('x.pt')",
        "import torch\ntorch.load('x.pt', weights_only=False)",
        "def later():\n    import pickle",
    ],
)
def test_the_scan_sees_what_it_looks_for(source: str) -> None:
    assert list(findings(source))


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos.path.join('a')\nos.cpu_count()\nos.fsync(0)",
        "model.eval()\nspec.loader.exec_module(m)\nre.compile('x')",
        "import torch\ntorch.load('x.pt', weights_only=True)",
        "import urllib.parse",
    ],
)
def test_the_scan_lets_ordinary_code_pass(source: str) -> None:
    assert not list(findings(source))


def test_the_archive_holds_nothing_that_the_registry_flags() -> None:
    files = published_files()
    assert ROOT / "nodes" / "train" / "session.py" in files
    python = [path for path in files if path.suffix == ".py"]
    found = {
        str(path.relative_to(ROOT)): lines
        for path in python
        if (lines := list(findings(path.read_text("utf-8"))))
    }
    assert found == {}


def test_the_archive_has_what_runs_and_nothing_else() -> None:
    """`.comfyignore` has git's rules: a pattern without a leading slash would also hit `web/docs`."""
    names = {path.relative_to(ROOT).as_posix() for path in published_files()}
    tops = {name.partition("/")[0] for name in names}
    assert not tops & {".ci", ".github", "benchmarks", "docs", "tests", "CONTRIBUTING.md", "Makefile"}
    assert not [name for name in names if name.startswith(("training/experiments/", "training/toybox/"))]
    wanted = ("__init__.py", "pyproject.toml", "requirements.txt", "LICENSE", "README.md")
    assert set(wanted) <= names
    for folder in (
        "nodes/", "web/docs/", "locales/zh/", "example_workflows/", "training/config/presets/",
        "training/data/prompt_sets/", "t2mv_core/toybox/",
    ):  # fmt: skip
        assert any(name.startswith(folder) for name in names), folder


def test_the_archive_runs_without_what_was_left_out(tmp_path: Path) -> None:
    """The trainer's command line and every module that is in the archive, from a copy of it alone."""
    modules = []
    for path in published_files():
        relative = path.relative_to(ROOT)
        if relative.parts[0] not in ("t2mv_core", "training"):
            continue
        (tmp_path / relative).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / relative).symlink_to(path)
        if path.suffix == ".py" and path.stem not in ("__init__", "__main__"):
            modules.append(".".join(relative.with_suffix("").parts))
    assert {"t2mv_core.loading", "training.mvczigal"} <= set(modules)
    code = "import importlib, sys\nfor name in sys.argv[1:]: print(importlib.import_module(name).__file__)"
    command = [sys.executable, "-c", code, *modules]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [Path(file).is_relative_to(tmp_path) for file in done.stdout.split()] == [True] * len(modules)
