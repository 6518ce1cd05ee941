"""The files of the native memory benchmark are what they say, though they never were in memory."""

import torch
from safetensors.torch import load_file

from benchmarks.native_memory import Anonymous, _write_random


def test_tensors_without_content_become_random_weights(tmp_path):
    real = torch.arange(5)
    tensors = {
        "large": torch.empty(5, 2**20, device="meta"),
        "ids": real,
        "small": torch.empty(3, device="meta"),
    }
    _write_random(tensors, tmp_path / "file.safetensors")
    found = load_file(tmp_path / "file.safetensors")
    assert {name: tensor.shape for name, tensor in found.items()} == {
        name: tensor.shape for name, tensor in tensors.items()
    }
    assert torch.equal(found["ids"], real)
    for name in ("large", "small"):
        assert found[name].dtype == torch.bfloat16
        assert bool(found[name].isfinite().all())
    assert 0.019 < float(found["large"].float().std()) < 0.021


def test_memory_that_came_and_went_is_in_the_peak_of_its_stage():
    watch = Anonymous()
    before = watch.end_stage()
    block = torch.ones(2**25)  # 128 MiB
    peak = watch.end_stage()
    del block
    assert peak - before > 100 * 2**20
    watch.end_stage()
    assert watch.end_stage() < peak - 100 * 2**20
