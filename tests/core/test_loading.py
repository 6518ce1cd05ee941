import copy
import json
import shutil
from dataclasses import replace

import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from torch import nn

from t2mv_core.denoiser import encode_cameras, predict_noise
from t2mv_core.formats.safetensors_io import read_safetensors, write_safetensors
from t2mv_core.formats.sources import ModelSources
from t2mv_core.images import decode_latents
from t2mv_core.loading import load_bundle, with_float8_storage
from t2mv_core.lora.adapters import add_lora, trainable_parameters
from t2mv_core.lora.files import load_lora, save_lora
from t2mv_core.reference import encode_reference
from t2mv_core.text import bundle_tokenizers, encode_text
from t2mv_core.toybox import toybox_path
from t2mv_core.unet.adapter import save_adapter


@pytest.fixture
def x():
    return torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(3))


def predict(bundle, rig, prompts):
    x = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return predict_noise(
        bundle, x, 500, encode_text(bundle, prompts, "blurry"), encode_cameras(bundle, rig), 4.0
    )


@pytest.mark.parametrize("kind", ["lcm", "ddim"])
def test_loaded_model_computes_what_the_saved_one_did(kind, request, rig, prompts):
    saved = request.getfixturevalue(f"{kind}_bundle")
    loaded = load_bundle(str(request.getfixturevalue(f"{kind}_folder")))
    assert torch.equal(predict(loaded, rig, prompts), predict(saved, rig, prompts))
    latents = torch.ones(1, 1, 4, 8, 8)
    assert torch.equal(decode_latents(loaded.vae, latents), decode_latents(saved.vae, latents))


def test_the_vae_may_have_another_precision(lcm_folder):
    bundle = load_bundle(str(lcm_folder), dtype=torch.bfloat16, vae_dtype=torch.float32)
    dtypes = {name: {x.dtype for x in module.parameters()} for name, module in bundle.modules().items()}
    assert dtypes.pop("vae") == {torch.float32}
    assert set.union(*dtypes.values()) == {torch.bfloat16}
    assert torch.equal(
        bundle.vae.decoder.conv_in.weight, load_bundle(str(lcm_folder)).vae.decoder.conv_in.weight
    )  # never rounded


def test_the_adapters_weights_say_what_a_model_draws_views_from(
    own_folder, lcm_bundle, make_image_bundle, rig, prompts, pictures, x
):
    assert load_bundle(str(own_folder)).tasks == ("text-to-multiview",)
    image = make_image_bundle("lcm")
    base = {name: y for name, y in lcm_bundle.unet.state_dict().items() if ".processor." not in name}
    image.unet.load_state_dict(base, strict=False)
    save_adapter(image.unet, image.camera_encoder, own_folder / "mvadapter.safetensors")
    saved = replace(
        lcm_bundle, unet=image.unet, camera_encoder=image.camera_encoder, tasks=("image-to-multiview",)
    )
    loaded = load_bundle(str(own_folder))
    assert loaded.tasks == ("image-to-multiview",)

    def predict_with_picture(bundle):
        condition = encode_text(bundle, prompts)
        reference = encode_reference(bundle, pictures, condition)
        with torch.no_grad():
            return predict_noise(bundle, x, 500, condition, encode_cameras(bundle, rig), 4.0, 1.0, reference)

    expected = predict_with_picture(saved)
    assert torch.equal(predict_with_picture(loaded), expected)
    stored = with_float8_storage(loaded)  # the copy knows its attentions by the same names
    processor = stored.unet.mid_block.attentions[0].transformer_blocks[0].attn1.processor
    assert (stored.tasks, processor.to_q_ref.weight.dtype) == (loaded.tasks, torch.float8_e4m3fn)
    rounded = predict_with_picture(stored)
    assert float((rounded - expected).norm()) < 0.2 * float(expected.norm())


@pytest.mark.parametrize(("kind", "has_embedding", "clip_range"), [("lcm", True, None), ("ddim", False, 3.0)])
def test_facts_about_the_model(kind, has_embedding, clip_range, request):
    folder = request.getfixturevalue(f"{kind}_folder")
    bundle = load_bundle(str(folder))
    assert (bundle.latent_px, bundle.latent_channels, bundle.vae_scale_factor, bundle.image_px) == (
        8,
        4,
        2,
        16,
    )
    assert bundle.has_guidance_embedding is has_embedding
    assert (bundle.schedule.solver, bundle.schedule.clip_range) == (kind, clip_range)
    assert (bundle.name, bundle.loras) == (str(folder), ())
    assert (bundle.device, bundle.dtype) == (torch.device("cpu"), torch.float32)
    first, second = bundle_tokenizers(bundle)
    assert (first.vocab_size, first.pad_id, second.pad_id) == (600, 599, 0)


def test_an_unknown_sampler_is_refused_before_weights_are_read(own_folder):
    (own_folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="solver='euler' is unknown; use one of lcm, ddim, ddim-trailing"):
        load_bundle(ModelSources(str(own_folder), solver="euler"))


def test_loaded_weights_are_frozen_and_in_evaluation_mode(lcm_folder):
    bundle = load_bundle(str(lcm_folder))
    assert set(bundle.modules()) == {"unet", "vae", "text_encoder", "text_encoder_2", "camera_encoder"}
    for module in bundle.modules().values():
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())


def test_adapter_may_lie_inside_beside_or_elsewhere(own_folder, tmp_path):
    inside = own_folder / "mvadapter.safetensors"
    load_bundle(str(own_folder))
    beside = inside.rename(own_folder.parent / "mvadapter.safetensors")
    load_bundle(str(own_folder))
    elsewhere = beside.rename(tmp_path / "other.safetensors")
    load_bundle(ModelSources(str(own_folder), adapter=str(elsewhere)))
    with pytest.raises(FileNotFoundError, match="No MV-Adapter was named"):
        load_bundle(str(own_folder))


def test_unet_and_scheduler_may_come_from_other_folders(ddim_folder, lcm_folder):
    # A UNet with a guidance embedding is sampled as LCM, whatever the scheduler's folder says.
    sources = ModelSources(
        str(ddim_folder),
        adapter=str(lcm_folder / "mvadapter.safetensors"),
        unet=str(lcm_folder / "unet"),
    )
    assert load_bundle(str(ddim_folder)).schedule.solver == "ddim"
    bundle = load_bundle(sources)
    assert bundle.has_guidance_embedding
    assert bundle.schedule.solver == "lcm"
    scheduler = ModelSources(str(ddim_folder), scheduler=str(lcm_folder / "scheduler"))
    assert load_bundle(scheduler).schedule.solver == "lcm"


def test_a_model_folder_needs_no_unet_of_its_own_when_another_is_named(own_folder, lcm_folder):
    shutil.rmtree(own_folder / "unet")
    bundle = load_bundle(ModelSources(str(own_folder), unet=str(lcm_folder / "unet")))
    assert bundle.has_guidance_embedding


@pytest.mark.parametrize("prefix", ["text_model.", ""])
def test_text_encoders_load_with_and_without_prefix(own_folder, edit_weights, lcm_bundle, prefix, prompts):
    # transformers 4 saves `text_model.…`, transformers 5 does not; some files also hold a constant.
    def rename(tensors):
        bare = {name.removeprefix("text_model."): tensors.pop(name) for name in list(tensors)}
        tensors.update({name if "projection" in name else prefix + name: x for name, x in bare.items()})
        tensors["text_model.embeddings.position_ids"] = torch.arange(12)[None]

    for name in ("text_encoder", "text_encoder_2"):
        edit_weights(own_folder / name / "model.safetensors", rename)
    loaded, saved = encode_text(load_bundle(str(own_folder)), prompts), encode_text(lcm_bundle, prompts)
    assert torch.equal(loaded.prompt_embeds, saved.prompt_embeds)
    assert torch.equal(loaded.pooled_embeds, saved.pooled_embeds)


PARTS = [
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
    "text_encoder_2/config.json",
    "scheduler/scheduler_config.json",
]


@pytest.mark.parametrize("part", PARTS)
def test_missing_file_is_named(own_folder, part):
    (own_folder / part).unlink()
    with pytest.raises(FileNotFoundError, match=part.split("/")[0]):
        load_bundle(str(own_folder))


@pytest.mark.parametrize("part", [*PARTS, "mvadapter.safetensors"])
def test_damaged_file_is_named(own_folder, part):
    path = own_folder / part
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"{part.split('/')[-1]} is (damaged|not readable)"):
        load_bundle(str(own_folder))


def test_model_of_another_prediction_type_is_refused(own_folder):
    path = own_folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prediction_type": "v_prediction"}))
    with pytest.raises(ValueError, match="'v_prediction' is not supported"):
        load_bundle(str(own_folder))


@pytest.mark.parametrize("name", ["no-such-model", "/no/such/folder", "./models/none", "~/models"])
def test_unknown_model_is_answered_with_what_is_known(name):
    with pytest.raises(
        FileNotFoundError, match="use one of toybox, .*, toybox-image-teacher, lcm-sdxl, sdxl, a local folder"
    ):
        load_bundle(name)


def test_hub_id_that_is_not_cached_is_not_downloaded_unasked(monkeypatch):
    import socket

    def no_network(*_args, **_options):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    with pytest.raises(
        FileNotFoundError, match="not in the Hub.s local cache; allow downloads, or give a local path"
    ):
        load_bundle("t2mv-tests/there-is-no-such-model")


class ClientError(HfHubHTTPError.__bases__[0]):
    """What the Hub's client raises when there is no answer."""

    def __init__(self):
        Exception.__init__(self)


@pytest.mark.parametrize(
    "error", [ConnectionError("no route"), ClientError(), HFValidationError("bad id"), OSError("disk full")]
)
def test_trouble_with_the_hub_is_told_in_a_sentence(monkeypatch, error):
    def fail(*_args, **_kwargs):
        raise error

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(FileNotFoundError, match="'some/model' .*check"):
        load_bundle(ModelSources("some/model", allow_download=True))


def test_toybox_part_that_is_not_there_says_how_to_make_it():
    with pytest.raises(FileNotFoundError, match=r"python -m training.toybox all"):
        toybox_path("no-such-part")


def test_a_unet_file_may_hold_only_what_differs_from_the_models_own(own_folder, tmp_path, lcm_bundle):
    """Half of the weights are changed and saved with the mark; the UNet has these and the model's others."""
    other = tmp_path / "other" / "unet"
    shutil.copytree(own_folder / "unet", other)
    path = next(other.glob("*.safetensors"))
    tensors, _ = read_safetensors(path)
    changed = {key: tensor + 1.0 for key, tensor in list(tensors.items())[::2]}
    write_safetensors(changed, path, {"t2mv_rest": "model"})
    loaded = load_bundle(ModelSources(str(own_folder), unet=str(other))).unet.state_dict()
    for key, tensor in tensors.items():
        assert torch.equal(loaded[key], changed.get(key, tensor)), key


def test_an_incomplete_unet_file_without_the_mark_is_refused(own_folder, tmp_path):
    other = tmp_path / "other" / "unet"
    shutil.copytree(own_folder / "unet", other)
    path = next(other.glob("*.safetensors"))
    tensors, metadata = read_safetensors(path)
    write_safetensors(dict(list(tensors.items())[::2]), path, metadata)
    with pytest.raises(ValueError, match="is missing"):
        load_bundle(ModelSources(str(own_folder), unet=str(other)))


def test_eight_bit_storage_halves_the_weights_and_changes_the_given_bundle_not(bundle, x, condition, cameras):
    bundle = replace(bundle, unet=copy.deepcopy(bundle.unet).bfloat16())
    before = predict_noise(bundle, x, 500, condition, cameras, 4.0)
    stored = with_float8_storage(bundle)
    after = predict_noise(stored, x, 500, condition, cameras, 4.0)
    assert (stored.dtype, after.dtype) == (torch.bfloat16, torch.bfloat16)
    assert torch.equal(predict_noise(bundle, x, 500, condition, cameras, 4.0), before)
    weight = stored.unet.mid_block.attentions[0].transformer_blocks[0].attn1.processor.to_q_mv.weight
    assert weight.dtype == torch.float8_e4m3fn
    assert stored.unet.conv_in.weight.dtype == torch.bfloat16
    # Weights are off by 2^-4 of themselves at most (3 bits of mantissa), so the prediction by a few percent.
    error = (after - before).float().norm() / before.float().norm()
    assert 0 < float(error) < 0.1


def test_eight_bit_storage_computes_what_rounded_weights_compute(lcm_bundle, x, rig, prompts):
    condition, cameras = encode_text(lcm_bundle, prompts), encode_cameras(lcm_bundle, rig)
    stored = with_float8_storage(lcm_bundle)
    kinds = {name: p.dtype for name, p in stored.unet.named_parameters()}
    rounded = copy.deepcopy(lcm_bundle.unet)
    with torch.no_grad():
        for name, parameter in rounded.named_parameters():
            parameter.copy_(parameter.to(kinds[name]).to(parameter.dtype))
    expected = predict_noise(replace(lcm_bundle, unet=rounded), x, 500, condition, cameras, 4.0)
    got = predict_noise(stored, x, 500, condition, cameras, 4.0)
    assert torch.float8_e4m3fn in kinds.values()
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)


def test_a_lora_acts_on_eight_bit_storage_in_its_own_precision(make_lcm_bundle, x, rig, prompts, tmp_path):
    bundle = make_lcm_bundle()
    add_lora(bundle.unet, 2, 2.0)
    for parameter in trainable_parameters(bundle.unet):
        nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(0))
    save_lora(bundle.unet, tmp_path / "lora.safetensors", {})
    plain = make_lcm_bundle()
    condition, cameras = encode_text(plain, prompts), encode_cameras(plain, rig)
    stored = with_float8_storage(plain)  # before the LoRA: a copy of a UNet has the LoRAs attached by then
    before = with_float8_storage(load_lora(plain, tmp_path / "lora.safetensors"))
    after = load_lora(stored, tmp_path / "lora.safetensors")
    assert {p.dtype for p in trainable_parameters(stored.unet, after.loras[0].name)} == {torch.float32}
    silent = predict_noise(replace(before, loras=()), x, 500, condition, cameras, 4.0)
    first = predict_noise(before, x, 500, condition, cameras, 4.0)
    assert float((first - silent).abs().max()) > 1e-3
    torch.testing.assert_close(predict_noise(after, x, 500, condition, cameras, 4.0), first)
