"""Tensor by tensor into a module without memory."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from t2mv_core.formats.strict import Weight, WeightsFile, fill_module, load_strictly, without_weights


@pytest.fixture
def file(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {"weight": torch.randn(3, 2, generator=generator), "bias": torch.arange(3.0)}
    save_file(tensors, tmp_path / "w.safetensors", {"made": "here"})
    return WeightsFile(tmp_path / "w.safetensors")


def test_names_shapes_and_metadata_are_known_before_reading(file):
    assert file.shapes == {"weight": (3, 2), "bias": (3,)}
    assert file.metadata == {"made": "here"}


def test_an_empty_module_is_filled_and_computes(file):
    with without_weights():
        linear = nn.Linear(2, 3)
    assert linear.weight.is_meta
    fill_module(linear, {name: Weight(file, name) for name in file.shapes}, torch.float64, "it")
    x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    expected = x @ file.read("weight", torch.float64).T + torch.arange(3.0, dtype=torch.float64)
    assert torch.equal(linear(x), expected)


def test_making_modules_takes_no_random_numbers(file):
    state = torch.get_rng_state()
    with without_weights():
        nn.Linear(2, 3)
    assert torch.equal(torch.get_rng_state(), state)


def test_constants_of_an_empty_module_are_real():
    class WithConstant(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("positions", torch.arange(4), persistent=False)

    with without_weights():
        module = WithConstant()
    assert module.positions.tolist() == [0, 1, 2, 3]


def test_a_change_is_applied_before_conversion_and_to_the_shape(file):
    half = Weight(file, "weight", lambda x: x[:, :1])
    assert half.shape == (3, 1)
    assert torch.equal(half.read(torch.bfloat16), file.read("weight", torch.float32)[:, :1].bfloat16())
    assert Weight(file, "weight", lambda x: x.T).read(torch.float32).is_contiguous()


def test_what_was_read_does_not_depend_on_the_file_any_more(file):
    read = file.read("weight", torch.float32)
    before = read.clone()
    file.path.write_bytes(bytes(file.path.stat().st_size))  # overwritten in place, as some download tools do
    assert torch.equal(read, before)


def test_everything_is_compared_before_anything_is_read(file, monkeypatch):
    with without_weights():
        linear = nn.Linear(5, 3)
    monkeypatch.setattr(WeightsFile, "read", lambda *_: pytest.fail("a tensor was read"))
    with pytest.raises(
        ValueError,
        match=r"w\.safetensors does not fit its place: 'weight' has the wrong shape, \(3, 2\) inst",
    ):
        fill_module(linear, {name: Weight(file, name) for name in file.shapes}, torch.float32, "its place")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("1.bias"), "some.file does not fit this model: '1.bias' is missing"),
        (lambda w: w.update(extra=torch.zeros(1)), "'extra' is not known to the model"),
        (
            lambda w: w.update({"0.weight": torch.zeros(2, 3)}),
            r"'0.weight' has the wrong shape, \(2, 3\) instead of \(3, 2\)",
        ),
    ],
)
def test_the_first_wrong_weight_is_named(change, words):
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    weights = dict(model.state_dict())
    change(weights)
    with pytest.raises(ValueError, match=words):
        load_strictly(model, weights, "some.file")


def test_a_weight_is_named_as_in_the_file():
    model = nn.Sequential(nn.Linear(2, 3))
    weights = {f"body.{name}": tensor for name, tensor in model.state_dict().items()}
    load_strictly(model, weights, "some.file", lambda name: f"body.{name}")
    del weights["body.0.bias"]
    with pytest.raises(ValueError, match="'body.0.bias' is missing"):
        load_strictly(model, weights, "some.file", lambda name: f"body.{name}")


def test_a_module_without_weights_takes_the_tensors_themselves():
    with without_weights():
        model = nn.Linear(2, 3)
    assert model.weight.is_meta
    weights = {"weight": torch.rand(3, 2, dtype=torch.float16), "bias": torch.rand(3, dtype=torch.float16)}
    load_strictly(model, weights, "some.file")
    assert model.weight.data_ptr() == weights["weight"].data_ptr()
    assert model.weight.dtype == torch.float16


def test_a_number_too_large_for_the_wanted_type_is_refused(tmp_path):
    save_file({"a": torch.tensor([1e6])}, tmp_path / "w.safetensors")
    with pytest.raises(
        ValueError, match=r"'a' \(torch.float32\) is not finite as torch.float16; use bfloat16"
    ):
        WeightsFile(tmp_path / "w.safetensors").read("a", torch.float16)


PEAK = """
import sys, torch
from pathlib import Path
from t2mv_core.formats.strict import WeightsFile

def kilobytes(field):
    return int(next(x for x in open("/proc/self/status") if x.startswith(field)).split()[1])

torch.zeros(1).to(torch.float16).isfinite().all()
file = WeightsFile(Path(sys.argv[1]))
before = kilobytes("VmRSS")
read = [file.read(key, getattr(torch, sys.argv[2])) for key in file.shapes]
print((kilobytes("VmHWM") - before) * 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_stays_near_the_size_of_the_file(tmp_path):
    """640 MB are read; the mapping is let go of every 128 MB, one tensor is 16 MB."""
    tensors = {f"w{i}": torch.full((2**23,), 0.5, dtype=torch.bfloat16) for i in range(40)}
    save_file(tensors, tmp_path / "big.safetensors")
    size = 40 * 2**24
    for dtype in ("bfloat16", "float16"):
        command = [sys.executable, "-c", PEAK, str(tmp_path / "big.safetensors"), dtype]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert size < int(done.stdout) < 1.3 * size
