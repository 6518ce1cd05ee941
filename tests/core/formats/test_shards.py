"""Weights in pieces are read whole, and what is missing of them is named."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from t2mv_core.formats.shards import has_weights, open_weights
from t2mv_core.formats.sources import ModelSources, resolve_sources
from t2mv_core.loading import load_bundle

STEM = "diffusion_pytorch_model"


def cut(folder, stem=STEM, variant="", index_end=".index"):
    """Cut a folder's weights in two as diffusers' save_pretrained does; return the shards."""
    whole = folder / f"{stem}.safetensors"
    tensors = load_file(whole)
    names = sorted(tensors)
    shards = [folder / f"{stem}{variant}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    places = {}
    for shard, keys in zip(shards, (names[::2], names[1::2]), strict=True):
        save_file({key: tensors[key] for key in keys}, shard)
        places |= dict.fromkeys(keys, shard.name)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / f"{stem}.safetensors{index_end}.json").write_text(json.dumps(index))
    whole.unlink()
    return shards


@pytest.mark.parametrize(
    ("variant", "index"), [("", ".index"), (".fp16", ".index.fp16"), (".fp16", ".fp16.index")]
)
def test_shards_load_what_the_whole_file_held(own_folder, lcm_bundle, variant, index):
    for part, stem in (("unet", STEM), ("text_encoder_2", "model"), ("vae", STEM)):
        cut(own_folder / part, stem, variant, index)
    bundle = load_bundle(str(own_folder))
    for part, module in lcm_bundle.modules().items():
        loaded = bundle.modules()[part].state_dict()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in module.state_dict().items()), part
    assert bundle.notices == ()


def test_a_folder_has_its_weights_when_all_shards_are_there(own_folder):
    folder = own_folder / "unet"
    assert has_weights(folder)
    shards = cut(folder)
    assert has_weights(folder)
    shards[1].unlink()
    assert not has_weights(folder)
    (folder / f"{STEM}.safetensors.index.json").write_text("{")
    assert not has_weights(folder)


def test_the_whole_file_beside_shards_is_read_and_the_shards_are_named(own_folder, lcm_bundle):
    folder = own_folder / "unet"
    whole = load_file(folder / f"{STEM}.safetensors")
    cut(folder)
    save_file({key: tensor + 1 for key, tensor in whole.items()}, folder / f"{STEM}.safetensors")
    bundle = load_bundle(str(own_folder))
    assert torch.equal(bundle.unet.state_dict()["conv_in.bias"], whole["conv_in.bias"] + 1)
    (notice,) = bundle.notices
    assert notice == f"{folder} holds {STEM}.safetensors and shards beside it; the shards are not read."


def test_full_precision_is_taken_before_half(own_folder):
    folder = own_folder / "unet"
    whole = load_file(folder / f"{STEM}.safetensors")
    save_file({key: tensor.half() + 1 for key, tensor in whole.items()}, folder / f"{STEM}.fp16.safetensors")
    assert torch.equal(load_bundle(str(own_folder)).unet.state_dict()["conv_in.bias"], whole["conv_in.bias"])


def test_a_missing_shard_is_named(own_folder):
    cut(own_folder / "unet")[1].unlink()
    with pytest.raises(FileNotFoundError, match=r"00002-of-00002.safetensors is missing, one of the 2 files"):
        load_bundle(str(own_folder))


def test_a_truncated_shard_is_named(own_folder):
    shard = cut(own_folder / "unet")[1]
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"00002-of-00002.safetensors is damaged"):
        load_bundle(str(own_folder))


def test_shards_of_another_save_are_named(own_folder):
    shards = cut(own_folder / "unet")
    shards[1].write_bytes(shards[0].read_bytes())
    with pytest.raises(ValueError, match="they are of different saves"):
        load_bundle(str(own_folder))


def test_a_missing_index_is_named(own_folder):
    cut(own_folder / "unet")
    (own_folder / "unet" / f"{STEM}.safetensors.index.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"00001-of-00002.safetensors is one of several; their index"):
        load_bundle(str(own_folder))


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd"])
def test_an_index_cannot_name_a_file_elsewhere(tmp_path, name):
    (tmp_path / f"{STEM}.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ValueError, match="which is not in its folder"):
        open_weights(tmp_path, [])


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "pytorch_model.BIN", "model.ckpt"])
def test_a_folder_of_pickles_is_refused_by_name(own_folder, name):
    (own_folder / "unet" / f"{STEM}.safetensors").rename(own_folder / "unet" / name)
    with pytest.raises(ValueError, match=f"{name} is a pickle, which can run programs"):
        load_bundle(str(own_folder))


@pytest.mark.parametrize("ending", ["ckpt", "pt", "BIN", "pth"])
def test_a_pickle_named_as_model_or_part_is_refused_by_name(lcm_folder, tmp_path, ending):
    path, adapter = tmp_path / f"model.{ending}", str(lcm_folder / "mvadapter.safetensors")
    torch.save({"a": torch.ones(1)}, path)
    for sources in (
        ModelSources(str(path), adapter=adapter),
        ModelSources(str(lcm_folder), unet=str(path)),
        ModelSources(str(lcm_folder), vae=str(path)),
    ):
        with pytest.raises(ValueError, match=f"model.{ending} is a pickle, which can run programs"):
            resolve_sources(sources)


@pytest.mark.parametrize("name", ["unet.SAFETENSORS", "unet.sft", "unet.Sft"])
def test_endings_in_capitals_and_sft_are_read(lcm_folder, tmp_path, lcm_bundle, name):
    path = tmp_path / name
    path.write_bytes((lcm_folder / "unet" / f"{STEM}.safetensors").read_bytes())
    # A UNet alone has SDXL's heads of 64; the tiny one has others, so only the names and shapes are compared.
    assert resolve_sources(ModelSources(str(lcm_folder), unet=str(path))).unet == path
    assert torch.equal(
        open_weights(path, []).weights()["conv_in.bias"].read(torch.float32), lcm_bundle.unet.conv_in.bias
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"GGUF\x03\x00\x00\x00", "is a GGUF file, which holds quantised weights"),
        (b"<!DOCTYPE html><html>", "is no weights file but text"),
        (b"version https://git-lfs.github.com/spec/v1", "is no weights file but text"),
        (b"PK\x03\x04" + bytes(100), "is a pickle with another ending"),
        (b"\x80\x02}q\x00" + bytes(100), "is a pickle with another ending"),
    ],
)
@pytest.mark.parametrize("name", ["unet.safetensors", "unet.gguf"])
def test_a_file_that_is_something_else_is_called_that(lcm_folder, tmp_path, content, words, name):
    path = tmp_path / name
    path.write_bytes(content)
    if name.endswith("gguf") and "GGUF" not in words:
        words = "is (no weights file but text|damaged or not a safetensors file)"
    with pytest.raises(ValueError, match=words):
        load_bundle(ModelSources(str(lcm_folder), unet=str(path)))


@pytest.mark.parametrize("name", ["unet.txt", "unet"])
def test_a_file_of_another_kind_is_refused(lcm_folder, tmp_path, name):
    (tmp_path / name).write_text("hello")
    with pytest.raises(
        ValueError, match=rf"{name} is no safetensors file; choose one that ends in .safetensors or"
    ):
        load_bundle(ModelSources(str(lcm_folder), unet=str(tmp_path / name)))
