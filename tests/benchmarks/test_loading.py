"""The benchmark of loading runs; at real size memory stays near the size of the files."""

import pytest
import torch

from benchmarks.loading import CASES, REFERENCE, run_in_fresh_process, to_table, write_files
from benchmarks.sdxl_files import FULL, TINY
from t2mv_core.formats.sources import ModelSources
from t2mv_core.formats.strict import WeightsFile
from t2mv_core.loading import load_bundle
from t2mv_core.lora.adapters import add_lora, trainable_parameters
from t2mv_core.lora.files import load_lora, lora_state_dict, save_lora

LCM = "single file + LCM UNet (diffusers layout) + VAE file"


def test_every_layout_is_loaded_and_reported(tmp_path):
    write_files(tmp_path, TINY)
    row = run_in_fresh_process(tmp_path, LCM)
    assert row["stored_bytes"] == row["wanted_bytes"] > 10**6
    assert row["peak_bytes"] > row["before_bytes"] > 0
    assert to_table([row]).count("\n") == 2


@pytest.fixture(scope="module")
def full_files(tmp_path_factory):
    """31 GB, deleted afterwards."""
    import shutil

    folder = tmp_path_factory.mktemp("full")
    write_files(folder, FULL)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith(REFERENCE)])
def test_memory_at_real_size(full_files, case):
    row = run_in_fresh_process(full_files, case)
    assert row["wanted_bytes"] > 6.9e9
    # fp8 files are asked for in bf16, which no loader can hold in fewer bytes than that.
    assert row["peak_bytes"] - row["before_bytes"] < 1.3 * max(row["stored_bytes"], row["wanted_bytes"])


@pytest.mark.slow
def test_a_lora_of_ours_comes_back_at_real_size(full_files, tmp_path):
    """docs/method.md, section 7: rank 16 on every attention projection: 70 blocks of 4 + 4 + 4."""
    sources = ModelSources(
        str(full_files / "checkpoint.safetensors"), unet=str(full_files / "lcm_original.safetensors")
    )
    bundle = load_bundle(sources, dtype=torch.bfloat16)
    weights = WeightsFile(full_files / "checkpoint.safetensors")
    key = "conditioner.embedders.1.model.transformer.resblocks.31.mlp.c_fc.weight"
    last = bundle.text_encoder_2.state_dict()
    name = next(name for name in last if name.endswith("layers.31.mlp.fc1.weight"))
    assert torch.equal(last[name], weights.read(key, torch.bfloat16))
    assert add_lora(bundle.unet, 16, 16.0) == 70 * 12
    with torch.no_grad():
        for parameter in trainable_parameters(bundle.unet):
            parameter.normal_(std=0.02)
    save_lora(bundle.unet, tmp_path / "lora.safetensors", {"base_model": "lcm-sdxl"})
    loaded = load_lora(bundle, tmp_path / "lora.safetensors").loras[0]
    assert (loaded.num_matched, loaded.unmatched, loaded.layout) == (840, (), "kohya")
    saved = lora_state_dict(bundle.unet)
    again = lora_state_dict(bundle.unet, loaded.name)
    assert all(torch.equal(again[key], x.to(again[key].dtype)) for key, x in saved.items())
