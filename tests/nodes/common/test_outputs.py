"""File names stay inside the folder, and files are written whole or not at all."""

from __future__ import annotations

import importlib
import os
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def outputs(pack: ModuleType) -> ModuleType:
    return importlib.import_module(f"{pack.__name__}.nodes.common.outputs")


@pytest.mark.parametrize(
    "prefix", ["turntable", "T2MV/turntable", "a b/ü 转台", "%year%-%month%/x", "v1..2/x", ".x", "a\\b", None]
)
def test_ordinary_names_pass(outputs: ModuleType, prefix: str | None) -> None:
    outputs.check_prefix("filename_prefix", prefix)


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        ("", "names no file"),
        ("a/", "names no file"),
        ("a/..", "names no file"),
        ("a/ . ", "names no file"),
        ("../x", "leaves ComfyUI's folder"),
        ("a/../../x", "leaves ComfyUI's folder"),
        ("a/.. /x", "leaves ComfyUI's folder"),
        ("..\\..\\x", "leaves ComfyUI's folder"),
        ("/etc/x", "leaves ComfyUI's folder"),
        ("\\\\server\\x", "leaves ComfyUI's folder"),
        ("C:\\x", "leaves ComfyUI's folder"),
        ("c:x", "leaves ComfyUI's folder"),
        ("~/x", "leaves ComfyUI's folder"),
        ("x\x00y", "characters that file names cannot have"),
        ("x\ny", "characters that file names cannot have"),
        ("x\ud800", "characters that file names cannot have"),
        ("a*b", "characters that file names cannot have"),
        ("x" * 10_000, "too long"),
        ("ü" * 150, "too long"),
        ("a/" * 500 + "x", "too long"),
    ],
)
def test_names_that_leave_or_cannot_be_written_are_refused(
    outputs: ModuleType, prefix: str, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        outputs.check_prefix("filename_prefix", prefix)


@given(st.text(alphabet=st.sampled_from("ab./\\:~ %ü\x00*"), max_size=20))
@settings(max_examples=500, deadline=None)
def test_no_accepted_name_leaves_the_folder(outputs: ModuleType, prefix: str) -> None:
    try:
        outputs.check_prefix("filename_prefix", prefix)
    except ValueError:
        return
    for flavour, root in ((PurePosixPath, "/out/put"), (PureWindowsPath, "C:/out/put")):
        joined = flavour(root) / prefix
        assert joined.is_relative_to(root)
        assert ".." not in [part.strip() for part in joined.parts]
    assert os.path.normpath(f"/out/put/{prefix}").startswith("/out/put/")


def test_a_file_is_written_whole(outputs: ModuleType, tmp_path: Path) -> None:
    outputs.write_whole(tmp_path / "x.webp", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["x.webp"]
    assert (tmp_path / "x.webp").read_bytes() == b"new"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    outputs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.webp").write_bytes(b"old")
    write_bytes = Path.write_bytes

    def full_disk(path: Path, content: bytes) -> int:
        write_bytes(path, content[:1])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left"):
        outputs.write_whole(tmp_path / "x.webp", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["x.webp"]
    assert (tmp_path / "x.webp").read_bytes() == b"old"
