"""Weights files of other programs are read and never run."""

from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from t2mv_core.formats.checkpoint import read_checkpoint

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.zeros(2)}


@pytest.mark.parametrize(
    "content",
    [
        WEIGHTS,
        {"state_dict": WEIGHTS, "epoch": 3},
        {"model": {f"module.{name}": tensor for name, tensor in WEIGHTS.items()}},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_state_dicts_by_torch_save_are_read_in_every_wrapping(tmp_path, content, zipped):
    path = tmp_path / "weights.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    read = read_checkpoint(path)
    assert read.keys() == WEIGHTS.keys()
    assert all(torch.equal(read[name], WEIGHTS[name]) for name in WEIGHTS)


def test_safetensors_are_read(tmp_path):
    save_file(WEIGHTS, tmp_path / "weights.safetensors")
    assert torch.equal(read_checkpoint(tmp_path / "weights.safetensors")["a.weight"], WEIGHTS["a.weight"])


def test_quantised_safetensors_are_called_that(tmp_path):
    save_file({**WEIGHTS, "a.weight.absmax": torch.ones(2)}, tmp_path / "weights.SAFETENSORS")
    with pytest.raises(ValueError, match=r"weights.SAFETENSORS is quantised \(by bitsandbytes\)"):
        read_checkpoint(tmp_path / "weights.SAFETENSORS")


class Attack:
    """What an evil pickle does when it is loaded: it leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_file_that_would_run_code_is_refused_and_does_not_run(tmp_path, writer):
    path, mark = tmp_path / "evil.pth", tmp_path / "was_here"
    if writer == "torch":
        torch.save({"state_dict": WEIGHTS, "x": Attack(str(mark))}, path)
    else:
        path.write_bytes(pickle.dumps({"x": Attack(str(mark))}))
    with pytest.raises(ValueError, match=r"evil.pth cannot be read as weights") as refusal:
        read_checkpoint(path)
    assert not mark.exists()
    assert "weights_only" not in str(refusal.value)  # torch's own words advise to switch safety off


def test_a_torchscript_archive_is_refused_in_words(tmp_path):
    path = tmp_path / "jit.pt"
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), str(path))
    with pytest.raises(ValueError, match="save its state dict as safetensors"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "holds no weights by name"),
        ({}, "holds no weights by name"),
        ({"a": 1.5}, "'a' is float, not a tensor"),
        ({"state_dict": {"a": {"b": torch.zeros(1)}}}, "'a' is dict, not a tensor"),
    ],
)
def test_other_contents_are_refused_in_words(tmp_path, content, words):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=words):
        read_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_missing_and_damaged_files_are_refused_in_words(tmp_path, name):
    with pytest.raises(FileNotFoundError, match="There is no weights file at"):
        read_checkpoint(tmp_path / name)
    for content in (b"", b"PK\x03\x04 not really", b"garbage" * 100):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="damaged"):
            read_checkpoint(tmp_path / name)


@pytest.mark.parametrize("zipped", [True, False])
def test_an_interrupted_download_is_refused_in_words(tmp_path, zipped):
    path = tmp_path / "model.pt"
    torch.save({"state_dict": {"a": torch.rand(1000)}}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for length in (3, 100, len(whole) // 2, len(whole) - 100):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="interrupted download"):
            read_checkpoint(path)


def test_an_archive_that_says_it_spans_disks_is_told(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"a": torch.arange(40.0)}, path)
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\6\7") + 16] = 2  # the number of disks, in the ZIP64 locator
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        read_checkpoint(path)


def with_damaged_directory(path, place):
    """Write weights whose entry in the ZIP's directory has a byte 0x80."""
    torch.save({"a": torch.arange(40.0)}, path)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + place] = 0x80
    path.write_bytes(content)


def test_a_damaged_name_in_the_directory_is_told(tmp_path):
    with_damaged_directory(tmp_path / "model.pt", 46)  # no UTF-8
    with pytest.raises(ValueError, match=r"model\.pt.* damaged"):
        read_checkpoint(tmp_path / "model.pt")


def test_a_version_that_only_pythons_reader_minds_does_no_harm(tmp_path):
    with_damaged_directory(tmp_path / "model.pt", 6)  # version 12.8, which nobody has
    assert torch.equal(read_checkpoint(tmp_path / "model.pt")["a"], torch.arange(40.0))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10**6), byte=st.integers(0, 255), zipped=st.booleans())
def test_a_damaged_byte_gives_tensors_or_a_sentence_that_names_the_file(tmp_path, place, byte, zipped):
    path = tmp_path / "model.pt"
    torch.save({"a": torch.arange(40.0)}, path, _use_new_zipfile_serialization=zipped)
    content = bytearray(path.read_bytes())
    content[place % len(content)] = byte
    path.write_bytes(content)
    said, read = str(path), {"a": torch.zeros(40)}
    try:
        read = read_checkpoint(path)
    except ValueError as refusal:  # anything else is a traceback for the user
        said = str(refusal)
    assert str(path) in said
    assert len(read) == 1
    assert all(tensor.isfinite().all() for tensor in read.values())


@pytest.mark.parametrize(
    "content", [b"<!DOCTYPE html><html>", b"\n <html>", b"version https://git-lfs.github.com/spec/v1\noid"]
)
def test_a_web_page_and_a_git_pointer_are_told(tmp_path, content):
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(ValueError, match="a web page, or git-lfs' pointer"):
        read_checkpoint(tmp_path / "model.pt")


def test_an_old_torch_opens_no_pickles(tmp_path, monkeypatch):
    torch.save(WEIGHTS, tmp_path / "model.pt")
    monkeypatch.setattr(torch, "__version__", "2.5.1+cu121")
    with pytest.raises(ValueError, match="PyTorch 2.5.1.cu121 cannot open safely; use PyTorch 2.6 or newer"):
        read_checkpoint(tmp_path / "model.pt")


def test_an_ending_in_capitals_is_the_same_ending(tmp_path):
    torch.save(WEIGHTS, tmp_path / "MODEL.PT")
    assert read_checkpoint(tmp_path / "MODEL.PT").keys() == WEIGHTS.keys()


def test_weights_that_are_no_numbers_are_named(tmp_path):
    torch.save({"good": torch.zeros(2), "bad": torch.tensor([1.0, float("nan")])}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="weight 'bad' holds NaN or infinity"):
        read_checkpoint(tmp_path / "x.pt")
