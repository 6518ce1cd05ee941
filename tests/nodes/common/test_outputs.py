"""File names stay inside the folder, and files are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from t2mv_pack.nodes.common import outputs


def assert_stays_in_the_folder(prefix: str) -> None:
    """On either system, whatever the parts of the name."""
    for flavour, root in ((PurePosixPath, "/out/put"), (PureWindowsPath, "C:/out/put")):
        joined = flavour(root) / prefix
        assert joined.is_relative_to(root)
        assert ".." not in [part.strip() for part in joined.parts]
    assert os.path.normpath(f"/out/put/{prefix}").startswith("/out/put/")


@pytest.mark.parametrize(
    "prefix", ["turntable", "T2MV/turntable", "a b/ü 转台", "%year%-%month%/x", "v1..2/x", ".x", "a\\b"]
)
def test_ordinary_names_pass_and_stay_in_the_folder(prefix: str) -> None:
    outputs.check_prefix("filename_prefix", prefix)
    assert_stays_in_the_folder(prefix)


def test_a_linked_name_passes_before_the_run() -> None:
    assert outputs.check_prefix("filename_prefix", None) is None


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
        ("%date:yyyy-MM-dd%", "write %year%-%month%-%day%"),
        ("x/a:b", "holds ':'"),  # on Windows, a stream of the file a
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
def test_names_that_leave_or_cannot_be_written_are_refused(prefix: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        outputs.check_prefix("filename_prefix", prefix)


@given(st.text(alphabet=st.sampled_from("ab./\\:~ %ü\x00*"), max_size=20))
@settings(max_examples=500, deadline=None)
def test_no_accepted_name_leaves_the_folder(prefix: str) -> None:
    try:
        outputs.check_prefix("filename_prefix", prefix)
    except ValueError:
        return
    assert_stays_in_the_folder(prefix)
