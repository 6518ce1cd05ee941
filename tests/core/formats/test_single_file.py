"""Files without a folder: what was written under other names computes what the model did, bit for bit."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.sdxl_files import (
    FULL,
    TINY,
    create_modules,
    original_checkpoint,
    original_unet,
    original_vae,
    save_folder,
    text_settings,
    unet_settings,
    vae_settings,
)
from t2mv_core.denoiser import compute_camera_features, predict_noise
from t2mv_core.formats.infer_config import text_config, unet_config, vae_config
from t2mv_core.formats.single_file import part_of_file
from t2mv_core.formats.sources import ModelSources
from t2mv_core.formats.strict import WeightsFile
from t2mv_core.images import decode_latents
from t2mv_core.loading import load_bundle
from t2mv_core.lora.adapters import add_lora, trainable_parameters
from t2mv_core.lora.files import load_lora, save_lora
from t2mv_core.text import encode_text
from t2mv_core.unet.adapter import create_camera_encoder, save_adapter
from t2mv_core.unet.attention import install_multiview_attention

LCM_TINY = replace(TINY, guidance=64)


@pytest.fixture(scope="module")
def modules():
    torch.manual_seed(0)
    return create_modules(TINY)


@pytest.fixture(scope="module")
def lcm_unet():
    torch.manual_seed(1)
    return create_modules(LCM_TINY)["unet"]


@pytest.fixture(scope="module")
def states(modules):
    return {part: dict(module.state_dict()) for part, module in modules.items()}


@pytest.fixture(scope="module")
def places(tmp_path_factory, states, modules, lcm_unet):
    """The same random model as a folder, a checkpoint, and parts alone in either layout."""
    folder = tmp_path_factory.mktemp("files")
    save_folder(states, TINY, folder / "folder")
    checkpoint = original_checkpoint(states, TINY)
    lcm = dict(lcm_unet.state_dict())
    files = {
        "checkpoint": checkpoint,
        "lcm_diffusers": lcm,
        "lcm_original": original_unet(lcm, LCM_TINY),
        "lcm_prefixed": {f"model.diffusion_model.{k}": x for k, x in original_unet(lcm, LCM_TINY).items()},
        "vae_diffusers": {name: x + 0.01 for name, x in states["vae"].items()},
        "vae_original": original_vae({name: x + 0.01 for name, x in states["vae"].items()}, TINY),
    }
    for name, tensors in files.items():
        save_file({key: x.contiguous() for key, x in tensors.items()}, folder / f"{name}.safetensors")
    torch.manual_seed(2)
    unet = create_modules(TINY)["unet"]
    install_multiview_attention(unet)
    save_adapter(unet, create_camera_encoder(unet, 2), folder / "mvadapter.safetensors")
    return folder


@pytest.fixture(scope="module")
def load(places):
    """Loads by the names of the files; a part that is not named is the model's own."""

    def load(model, dtype=torch.float32, **parts):
        named = {part: str(places / name) for part, name in parts.items()}
        return load_bundle(ModelSources(str(places / model), **named), dtype=dtype)

    return load


def outputs(bundle, rig):
    """What every part computes on fixed inputs."""
    with torch.no_grad():
        condition = encode_text(bundle, ["a red mug", "a blue chair"], "blurry")
        x = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        cameras = compute_camera_features(bundle.camera_encoder, rig, 16, 16)
        noise = predict_noise(bundle, x, 500, condition, cameras, 4.0)
        pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        return {
            "unet": noise,
            "text": torch.cat([condition.prompt_embeds.flatten(), condition.pooled_embeds.flatten()]),
            "decoder": decode_latents(bundle.vae, x[:1, :1]),
            "encoder": bundle.vae.encode(pixels.to(bundle.dtype)).latent_dist.mean,
        }


def test_the_folder_computes_what_the_saved_modules_did(load, modules, states):
    bundle = load("checkpoint.safetensors")
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(bundle.vae(x).sample, modules["vae"](x).sample)
        ids = torch.tensor([[598, 1, 2, 599, 0, 0]])
        assert torch.equal(bundle.text_encoder_2(ids).text_embeds, modules["text_encoder_2"](ids).text_embeds)
    own = {name: x for name, x in bundle.unet.state_dict().items() if ".processor." not in name}
    assert own.keys() == states["unet"].keys()
    assert all(torch.equal(own[name], x) for name, x in states["unet"].items())


@pytest.mark.parametrize("file", ["lcm_diffusers", "lcm_original", "lcm_prefixed"])
@pytest.mark.parametrize("model", ["folder", "checkpoint.safetensors"])
def test_a_separate_unet_in_any_layout(load, places, lcm_unet, model, file):
    bundle = load(model, unet=f"{file}.safetensors")
    assert bundle.has_guidance_embedding
    assert bundle.schedule.solver == "lcm"
    loaded = bundle.unet.state_dict()
    assert all(torch.equal(loaded[name], x) for name, x in lcm_unet.state_dict().items())


@pytest.mark.parametrize("file", ["vae_diffusers", "vae_original"])
def test_a_separate_vae_in_either_layout(load, states, file):
    loaded = load("checkpoint.safetensors", vae=f"{file}.safetensors").vae
    assert all(torch.equal(loaded.state_dict()[name], x + 0.01) for name, x in states["vae"].items())
    assert loaded.config["scaling_factor"] == 0.13025


def test_a_unet_or_vae_may_be_taken_out_of_another_checkpoint(load, states):
    bundle = load("folder", unet="checkpoint.safetensors", vae="checkpoint.safetensors")
    assert torch.equal(bundle.unet.state_dict()["conv_in.weight"], states["unet"]["conv_in.weight"])
    assert torch.equal(bundle.vae.state_dict()["quant_conv.bias"], states["vae"]["quant_conv.bias"])


def test_vae_with_the_attention_names_of_older_diffusers(load, places, states, tmp_path):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(name):
        return next(
            (name.replace(f".{new}.", f".{was}.") for new, was in old.items() if f".{new}." in name), name
        )

    path = places / "vae_old.safetensors"
    renamed = {rename(name): x for name, x in states["vae"].items()}
    assert sum(name not in states["vae"] for name in renamed) == 2 * 4 * 2
    save_file(renamed, path)
    loaded = load("folder", vae=path.name).vae.state_dict()
    assert all(torch.equal(loaded[name], x) for name, x in states["vae"].items())


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
def test_any_stored_precision_is_converted(load, places, states, stored, wanted):
    path = places / "stored.safetensors"
    tensors = {
        k: x.to(stored) if x.is_floating_point() else x for k, x in original_checkpoint(states, TINY).items()
    }
    save_file(tensors, path)
    bundle = load(path.name, dtype=wanted)
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        loaded = getattr(bundle, part).state_dict()
        for name, tensor in states[part].items():
            assert torch.equal(loaded[name], tensor.to(stored).to(wanted)), name


def edited(places, states, change, name="edited"):
    tensors = original_checkpoint(states, TINY)
    change(tensors)
    save_file({key: x.contiguous() for key, x in tensors.items()}, places / f"{name}.safetensors")
    return f"{name}.safetensors"


HARMLESS = [
    "model_ema.decay",
    "model_ema.diffusion_modelinput_blocks00weight",
    "denoiser.sigmas",
    "conditioner.embedders.0.logit_scale",
    "first_stage_model.loss.logvar",
    "alphas_cumprod",
]


def test_constants_are_excepted_by_name(load, places, states, rig):
    plain = outputs(load(edited(places, states, lambda x: None, "plain")), rig)
    with_constants = lambda x: x.update({name: torch.ones(2) for name in HARMLESS})  # noqa: E731
    found = outputs(load(edited(places, states, with_constants, "harmless")), rig)
    assert all(torch.equal(found[part], plain[part]) for part in plain)


PARTS = [
    "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight",
    "first_stage_model.decoder.up.1.block.0.conv1.weight",
    "conditioner.embedders.0.transformer.text_model.encoder.layers.1.mlp.fc1.weight",
    "conditioner.embedders.1.model.transformer.resblocks.2.attn.in_proj_bias",
]


@pytest.mark.parametrize("key", PARTS)
def test_a_missing_weight_is_named(load, places, states, key):
    with pytest.raises(
        ValueError, match=r"edited.safetensors does not fit SDXL's architecture: '.*' is missing \("
    ):
        load(edited(places, states, lambda x: x.pop(key)))


@pytest.mark.parametrize("key", [key.replace("weight", "scale").replace("bias", "scale") for key in PARTS])
def test_an_unknown_weight_of_a_part_is_named(load, places, states, key):
    with pytest.raises(ValueError, match=rf"'{key}' is not known to the model \(0 missing, 1 unknown"):
        load(edited(places, states, lambda x: x.update({key: torch.ones(1)})))


@pytest.mark.parametrize(
    "strays",
    [
        ["cond_stage_model.logit_scale"],
        ["cond_stage_model.transformer.text_model.final_layer_norm.weight", "cond_stage_model.x"],
        ["conditioner.embedders.2.w", "control_model.input_hint_block.0.weight", "lora_te_x"],
    ],
)
def test_what_is_left_over_beside_a_whole_model_is_named_and_changes_nothing(
    load, places, states, rig, strays, caplog
):
    plain = outputs(load(edited(places, states, lambda x: None, "plain")), rig)
    bundle = load(edited(places, states, lambda x: x.update({name: torch.ones(1) for name in strays})))
    got = outputs(bundle, rig)
    assert all(torch.equal(got[part], plain[part]) for part in plain)
    (notice,) = bundle.notices
    assert f"holds {len(strays)} tensors that SDXL does not have, {strays[0]} for example" in notice
    assert notice in caplog.text


def test_a_weight_of_another_shape_is_named(load, places, states):
    key = "model.diffusion_model.output_blocks.0.0.skip_connection.weight"
    with pytest.raises(
        ValueError, match=rf"'{key}' has the wrong shape, \(2, 2\) instead of \(64, 128, 1, 1\)"
    ):
        load(edited(places, states, lambda x: x.update({key: torch.ones(2, 2)})))


def test_a_weight_under_two_names_is_refused(load, places, states):
    key, twin = "model.diffusion_model.out.2.bias", "model.diffusion_model.conv_out.bias"
    with pytest.raises(ValueError, match="holds 'conv_out.bias' twice"):
        load(edited(places, states, lambda x: x.update({twin: x[key].clone()})))


def test_nan_is_found_in_any_precision(load, places, states):
    key = "model.diffusion_model.out.2.bias"
    nan = torch.full((4,), float("nan"))
    with pytest.raises(ValueError, match=f"'{key}' holds NaN or infinity"):
        load(edited(places, states, lambda x: x.update({key: nan})))
    with pytest.raises(ValueError, match=rf"'{key}' \(torch.float8_e4m3fn\) is not finite as torch.float32"):
        load(edited(places, states, lambda x: x.update({key: nan.to(torch.float8_e4m3fn)})))


def test_parts_that_do_not_belong_together_are_refused(load, places, states, tmp_path):
    wide = create_modules(replace(TINY, text=((64, 1, 64, 600), (64, 1, 64, 600))))["unet"]
    save_file(dict(wide.state_dict()), places / "wide.safetensors")
    with pytest.raises(ValueError, match="takes text features of width 128, the text encoders give 192"):
        load("checkpoint.safetensors", unet="wide.safetensors", adapter="mvadapter.safetensors")


@pytest.mark.parametrize(("part", "file"), [("unet", "vae_original"), ("vae", "lcm_diffusers")])
def test_a_file_of_another_part_is_refused(load, part, file):
    with pytest.raises(ValueError, match=f"holds no {part} of SDXL"):
        load("checkpoint.safetensors", **{part: f"{file}.safetensors"})


def test_a_lora_of_ours_comes_back_on_an_sdxl_shaped_unet(load, tmp_path, rig):
    trained = load("checkpoint.safetensors", unet="lcm_original.safetensors")
    assert add_lora(trained.unet, 4, 8.0) > 100
    with torch.no_grad():
        for parameter in trainable_parameters(trained.unet):
            parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    save_lora(trained.unet, tmp_path / "lora.safetensors", {"step": 1})
    fresh = load("checkpoint.safetensors", unet="lcm_original.safetensors")
    before = outputs(fresh, rig)["unet"]
    loaded = load_lora(fresh, tmp_path / "lora.safetensors")
    active = replace(trained, loras=(replace(loaded.loras[0], name="default"),))
    got = outputs(loaded, rig)["unet"]
    torch.testing.assert_close(got, outputs(active, rig)["unet"], atol=1e-5, rtol=1e-5)
    assert float((got - before).abs().max()) > 1e-3
    assert loaded.loras[0].unmatched == ()


@pytest.fixture(scope="module")
def full_modules():
    """SDXL at its real size, without memory."""
    return create_modules(replace(FULL, guidance=256), is_empty=True)


def shapes(module):
    return {name.removeprefix("text_model."): tuple(x.shape) for name, x in module.state_dict().items()}


def test_sdxls_configurations_are_read_from_its_shapes(full_modules):
    published = unet_settings(replace(FULL, guidance=256))
    read = unet_config(shapes(full_modules["unet"]))
    assert {**read, **published} == read
    assert (read["attention_head_dim"], read["projection_class_embeddings_input_dim"]) == ([5, 10, 20], 2816)
    assert (read["in_channels"], read["out_channels"], read["layers_per_block"]) == (4, 4, 2)
    read = vae_config(shapes(full_modules["vae"]))
    assert {**read, **vae_settings(FULL)} == read
    for index, (part, activation) in enumerate((("text_encoder", "quick_gelu"), ("text_encoder_2", "gelu"))):
        assert text_config(shapes(full_modules[part]), activation) == text_settings(FULL, index)


def test_files_hold_each_weight_of_each_part_once(places, states):
    file = WeightsFile(places / "checkpoint.safetensors")
    parts = {part: part_of_file(file, part) for part in states}
    for part, state in states.items():
        bare = {name.removeprefix("text_model."): x for name, x in state.items()}
        assert parts[part].keys() == bare.keys()
        for name, tensor in bare.items():
            assert parts[part][name].shape == tuple(tensor.shape)
            assert torch.equal(parts[part][name].read(torch.float32), tensor), name


@pytest.mark.parametrize(
    ("prefix", "part"), [("first_stage_model.", "vae"), ("conditioner.embedders.1.", "text_encoder_2")]
)
def test_a_checkpoint_without_a_part_is_not_called_a_unet_alone(states, tmp_path, prefix, part):
    tensors = {key: x for key, x in original_checkpoint(states, TINY).items() if not key.startswith(prefix)}
    save_file({key: x.contiguous() for key, x in tensors.items()}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=rf"holds no {part} of SDXL \(first tensor"):
        part_of_file(WeightsFile(tmp_path / "model.safetensors"), part)
