import os
import stat

import pytest

from t2mv_core.formats.atomic import replaced


def test_the_new_file_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "new folder" / "x.txt"
    for content in ("first", "second"):
        with replaced(path) as temporary:
            temporary.write_text(content)
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == content
        assert os.listdir(path.parent) == ["x.txt"]


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    path = tmp_path / "x.txt"
    path.write_text("old")

    def full_disk(*_args):
        raise OSError(28, "No space left on device")

    def write():
        with replaced(path) as temporary:
            temporary.write_text("ne")
            if step == "write":
                full_disk()

    if step != "write":
        monkeypatch.setattr(os, step, full_disk)
    with pytest.raises(OSError, match="No space left"):
        write()
    assert os.listdir(tmp_path) == ["x.txt"]
    assert path.read_text() == "old"


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot flush folders")
def test_the_content_is_flushed_before_the_rename_and_the_folder_after_it(tmp_path, monkeypatch):
    steps = []
    fsync, replace = os.fsync, os.replace

    def flush(descriptor):
        steps.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "content")
        fsync(descriptor)

    def rename(old, new):
        steps.append("rename")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "replace", rename)
    with replaced(tmp_path / "x.txt") as temporary:
        temporary.write_text("new")
    assert steps == ["content", "rename", "folder"]
