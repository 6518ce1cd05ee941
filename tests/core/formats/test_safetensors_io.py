import os
import stat

import pytest
import torch

from t2mv_core.formats.safetensors_io import file_identity, read_safetensors, write_safetensors


def test_tensors_and_metadata_come_back(tmp_path):
    path = tmp_path / "deep" / "folder" / "weights.safetensors"
    transposed = torch.arange(6.0).reshape(2, 3).T  # not contiguous: safetensors alone would refuse it
    tensors = {
        "a": transposed,
        "b": torch.tensor([1, 2]),
        "c": torch.zeros(0),
        "d": torch.ones(2, dtype=torch.half),
    }
    write_safetensors(tensors, path, {"rank": "4"})
    loaded, metadata = read_safetensors(path)
    assert metadata == {"rank": "4"}
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor)
        assert loaded[name].dtype == tensor.dtype


def test_file_without_metadata_is_read(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / "plain.safetensors")
    assert read_safetensors(tmp_path / "plain.safetensors")[1] == {}


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_folder_is_an_os_error(tmp_path):
    tmp_path.chmod(stat.S_IREAD | stat.S_IEXEC)
    with pytest.raises(OSError, match="ermission"):
        write_safetensors({"a": torch.ones(1)}, tmp_path / "weights.safetensors", {})


@pytest.mark.parametrize("name", ["missing.safetensors", ""])
def test_missing_file_is_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match="There is no weights file at"):
        read_safetensors(tmp_path / name)  # "" is the folder itself


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00",
        b"not a safetensors file at all",
        b"\xff" * 64,
    ],
    ids=["empty", "one byte", "text", "huge header"],
)
def test_foreign_files_give_a_sentence(tmp_path, content):
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"is (damaged or not a safetensors|a pickle with)"):
        read_safetensors(path)


@pytest.mark.parametrize(
    "content", [b"PK\x03\x04" + b"\x00" * 100, b"\x80\x02}q\x00."], ids=["zip", "pickle"]
)
def test_a_pickle_under_this_ending_is_named(tmp_path, content):
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is a pickle with another ending, which can run programs"):
        read_safetensors(path)


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.95, 0.999])
def test_cut_off_file_gives_a_sentence(tmp_path, kept):
    path = tmp_path / "cut.safetensors"
    write_safetensors({f"weight_{i}": torch.ones(50) for i in range(10)}, path, {"key": "value"})
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match="damaged or not a safetensors file"):
        read_safetensors(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_that_are_not_finite_are_refused(tmp_path, value, dtype):
    path = tmp_path / "nan.safetensors"
    write_safetensors({"good": torch.ones(2), "bad": torch.tensor([1.0, value], dtype=dtype)}, path, {})
    with pytest.raises(ValueError, match="'bad' holds NaN or infinity"):
        read_safetensors(path)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_file_is_as_readable_as_the_umask_allows(tmp_path):
    path = tmp_path / "weights.safetensors"
    old = os.umask(0o022)
    try:
        write_safetensors({"a": torch.ones(1)}, path, {})
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_identity_changes_with_the_content_only(tmp_path):
    path, link, other = (tmp_path / name for name in ("a", "link", "other"))
    path.write_bytes(b"one")
    link.symlink_to(path)
    before, status = file_identity(path), path.stat()
    assert file_identity(link) == before
    os.utime(path, ns=(status.st_atime_ns + 10**9, status.st_mtime_ns))
    assert file_identity(path) == before
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))  # written again
    assert file_identity(path) != before
    other.write_bytes(b"two")  # a new file of the old one's size and time takes its place
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)
    assert file_identity(path) != before
