import re

import pytest
import torch

from t2mv_core.formats.safetensors_io import read_safetensors
from t2mv_core.formats.strict import WeightsFile
from t2mv_core.lora.adapters import add_lora
from t2mv_core.unet.adapter import (
    adapter_state_dict,
    create_camera_encoder,
    has_reference_weights,
    load_adapter,
    refuse_other_adapters,
    save_adapter,
)


@pytest.fixture
def adapter_path(lcm_bundle, tmp_path):
    path = tmp_path / "mvadapter.safetensors"
    save_adapter(lcm_bundle.unet, lcm_bundle.camera_encoder, path)
    return path


def test_keys_are_the_published_ones(adapter_path):
    tensors, _ = read_safetensors(adapter_path)
    stem = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor."
    multiview = {name.removeprefix(stem) for name in tensors if name.startswith(stem)}
    # docs/method.md, section 9: q, k, v without bias, the output projection with one.
    expected = {
        "to_q_mv.weight",
        "to_k_mv.weight",
        "to_v_mv.weight",
        "to_out_mv.0.weight",
        "to_out_mv.0.bias",
    }
    assert multiview == expected
    others = [name for name in tensors if ".attn1.processor." not in name]
    assert others
    assert all(name.startswith("adapter.") for name in others)
    assert not any(re.search(r"attn2|lora|base_layer", name) for name in tensors)


def test_saved_adapter_comes_back_bit_for_bit(adapter_path, make_lcm_bundle, lcm_bundle):
    other = make_lcm_bundle()
    for tensor in adapter_state_dict(other.unet, other.camera_encoder).values():
        tensor.zero_()
    load_adapter(other.unet, other.camera_encoder, adapter_path)
    for bundle_name in ("unet", "camera_encoder"):
        expected = getattr(lcm_bundle, bundle_name).state_dict()
        loaded = getattr(other, bundle_name).state_dict()
        assert all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_camera_encoder_has_the_published_shape(lcm_bundle):
    encoder = create_camera_encoder(lcm_bundle.unet, vae_scale_factor=8)
    assert encoder.config["adapter_type"] == "full_adapter_xl"
    assert (encoder.config["in_channels"], encoder.config["num_res_blocks"]) == (6, 2)
    assert encoder.config["downscale_factor"] == 16
    assert list(encoder.config["channels"]) == [32, 32, 32, 32]  # the block widths, the last one doubled up


def test_half_precision_file_is_taken(adapter_path, edit_weights, make_lcm_bundle):
    edit_weights(adapter_path, lambda x: x.update({name: tensor.half() for name, tensor in x.items()}))
    bundle = make_lcm_bundle()
    load_adapter(bundle.unet, bundle.camera_encoder, adapter_path)
    assert {x.dtype for x in adapter_state_dict(bundle.unet, bundle.camera_encoder).values()} == {
        torch.float32
    }


def test_a_file_without_a_layer_is_refused_in_words(adapter_path, edit_weights, lcm_bundle):
    edit_weights(adapter_path, lambda tensors: tensors.pop(sorted(tensors)[0]))
    words = r"does not fit this UNet as its MV-Adapter: 'adapter\..* \(1 missing, 0 unk"
    with pytest.raises(ValueError, match=words):
        load_adapter(lcm_bundle.unet, lcm_bundle.camera_encoder, adapter_path)


def test_attached_loras_are_not_saved_with_the_adapter(make_lcm_bundle, adapter_path, tmp_path):
    bundle = make_lcm_bundle()
    add_lora(bundle.unet, rank=2, alpha=2.0)
    save_adapter(bundle.unet, bundle.camera_encoder, tmp_path / "again.safetensors")
    again, expected = read_safetensors(tmp_path / "again.safetensors")[0], read_safetensors(adapter_path)[0]
    assert again.keys() == expected.keys()
    assert all(torch.equal(again[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mvadapter_tg2mv_sdxl.safetensors", r"the geometry-guided MV-Adapter \(text and a mesh"),
        (
            "mvadapter_ig2mv_partial_sdxl.safetensors",
            r"the geometry-guided MV-Adapter \(a picture and a mesh",
        ),
        ("mvadapter_i2mv_sd21.safetensors", "the MV-Adapter of Stable Diffusion 2.1"),
        ("mvadapter_t2mv_sd21.safetensors", "the MV-Adapter of Stable Diffusion 2.1"),
    ],
)
def test_other_published_adapters_are_named_though_their_weights_would_fit(lcm_bundle, tmp_path, name, words):
    save_adapter(lcm_bundle.unet, lcm_bundle.camera_encoder, tmp_path / name)
    with pytest.raises(ValueError, match=f"{name} is {words}.* Fetch mvadapter_t2mv_sdxl"):
        refuse_other_adapters(WeightsFile(tmp_path / name))
    with pytest.raises(ValueError, match=f"{name} is {words}.*; only SDXL's of text and of pictures"):
        load_adapter(lcm_bundle.unet, lcm_bundle.camera_encoder, tmp_path / name)


def test_image_adapter_has_the_published_keys_and_comes_back_bit_for_bit(make_image_bundle, tmp_path):
    bundle, other, path = make_image_bundle("lcm"), make_image_bundle("lcm"), tmp_path / "i2mv.safetensors"
    expected = adapter_state_dict(bundle.unet, bundle.camera_encoder)
    save_adapter(bundle.unet, bundle.camera_encoder, path)
    stem = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor."
    reference = {name.removeprefix(stem) for name in expected if name.startswith(stem) and "_ref" in name}
    # As those of multiview attention: q, k, v without bias, the output projection with one.
    assert reference == {
        "to_q_ref.weight",
        "to_k_ref.weight",
        "to_v_ref.weight",
        "to_out_ref.0.weight",
        "to_out_ref.0.bias",
    }
    assert sum("_ref." in name for name in expected) == 7 * 5  # 7 self-attentions
    for tensor in adapter_state_dict(other.unet, other.camera_encoder).values():
        tensor.zero_()
    load_adapter(other.unet, other.camera_encoder, path)
    loaded = adapter_state_dict(other.unet, other.camera_encoder)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


def test_the_weights_say_what_an_adapter_is_for(lcm_bundle, image_bundle, tmp_path):
    save_adapter(lcm_bundle.unet, lcm_bundle.camera_encoder, tmp_path / "mvadapter_i2mv_sdxl.safetensors")
    save_adapter(image_bundle.unet, image_bundle.camera_encoder, tmp_path / "mvadapter_t2mv_sdxl.safetensors")
    assert not has_reference_weights(tmp_path / "mvadapter_i2mv_sdxl.safetensors")
    assert has_reference_weights(tmp_path / "mvadapter_t2mv_sdxl.safetensors")


def test_an_image_adapter_does_not_fit_a_unet_of_text(lcm_bundle, image_bundle, tmp_path):
    save_adapter(image_bundle.unet, image_bundle.camera_encoder, tmp_path / "adapter.safetensors")
    with pytest.raises(ValueError, match=r"to_k_ref.weight' is not known to the model \(0 missing, 35 unkn"):
        load_adapter(lcm_bundle.unet, lcm_bundle.camera_encoder, tmp_path / "adapter.safetensors")


@pytest.mark.parametrize("name", ["mvadapter_t2mv_sdxl", "mvadapter", "my-t2mv-tuned"])
def test_the_text_adapters_names_pass(lcm_bundle, tmp_path, name):
    path = tmp_path / f"{name}.safetensors"
    save_adapter(lcm_bundle.unet, lcm_bundle.camera_encoder, path)
    file = WeightsFile(path)
    refuse_other_adapters(file)
    assert file.shapes.keys() == adapter_state_dict(lcm_bundle.unet, lcm_bundle.camera_encoder).keys()
