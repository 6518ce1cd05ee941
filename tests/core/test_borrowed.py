"""A bundle over somebody else's tensors computes what the same weights from files do, and holds no copy."""

import gc
import weakref

import pytest
import torch

from benchmarks.sdxl_files import TINY, create_modules, original_unet, original_vae, save_folder
from t2mv_core.adapter import create_camera_encoder, save_adapter
from t2mv_core.attention import install_multiview_attention
from t2mv_core.borrowed import PART_NAMES, borrow_bundle, borrow_part
from t2mv_core.bundle import ModelSources, load_bundle
from t2mv_core.cameras import CameraRig
from t2mv_core.denoiser import encode_cameras, predict_noise
from t2mv_core.images import decode_latents
from t2mv_core.lora import add_lora, load_lora, save_lora, trainable_parameters
from t2mv_core.text import encode_text

RIG = CameraRig((0.0, 90.0, 180.0), (0.0, 0.0, 0.0))
LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def states():
    torch.manual_seed(0)
    return {part: dict(module.state_dict()) for part, module in create_modules(TINY).items()}


@pytest.fixture(scope="module")
def owner(states):
    """The tensors as ComfyUI has them: UNet and VAE in the original layout, text in transformers'."""

    def text(part):
        starts = ("text_model.", "text_projection.")
        return {k if k.startswith(starts) else f"text_model.{k}": x for k, x in states[part].items()}

    return {
        "unet": original_unet(states["unet"], TINY),
        "vae": original_vae(states["vae"], TINY),
        "text_encoder": text("text_encoder"),
        "text_encoder_2": text("text_encoder_2"),
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory, states):
    """The same weights as a folder with its adapter, and a LoRA."""
    folder = tmp_path_factory.mktemp("model")
    save_folder(states, TINY, folder)
    torch.manual_seed(1)
    unet = create_modules(TINY)["unet"]
    unet.load_state_dict(states["unet"])
    install_multiview_attention(unet)
    save_adapter(unet, create_camera_encoder(unet, vae_scale_factor=2), folder / "mvadapter.safetensors")
    add_lora(unet, 2, 4.0)
    with torch.no_grad():
        for parameter in trainable_parameters(unet):
            parameter.normal_(std=0.3)
    save_lora(unet, folder / "lora.safetensors", {})
    return folder


@pytest.fixture
def loaded(files):
    return load_bundle(ModelSources(str(files)))


@pytest.fixture
def borrowed(owner, files):
    return borrow_bundle(owner, files / "mvadapter.safetensors")


def bind(parts, owner):
    for name, part in parts.items():
        part.bind(owner[name], "cpu")


def predict(bundle):
    x = torch.randn(1, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    condition = encode_text(bundle, ["a red mug"], "blurry")
    return predict_noise(bundle, x, 500, condition, encode_cameras(bundle, RIG, 16, 16), 4.0)


def test_it_computes_what_the_same_weights_from_files_do(owner, loaded, borrowed):
    bundle, parts = borrowed
    bind(parts, owner)
    assert torch.equal(predict(bundle), predict(loaded))
    latents = torch.randn(1, 2, 4, 6, 6)
    assert torch.equal(decode_latents(bundle.vae, latents), decode_latents(loaded.vae, latents))
    assert (bundle.schedule.sampler, bundle.image_px) == (loaded.schedule.sampler, loaded.image_px)


def test_bound_weights_are_the_owners_memory_and_no_more(owner, borrowed):
    bundle, parts = borrowed
    bind(parts, owner)
    for name in PART_NAMES:
        theirs = {tensor.untyped_storage().data_ptr() for tensor in owner[name].values()}
        ours = {
            id(weight) for layer in parts[name].own_layers() for weight in layer.parameters(recurse=False)
        }
        shared = [weight for weight in getattr(bundle, name).parameters() if id(weight) not in ours]
        assert {weight.untyped_storage().data_ptr() for weight in shared} == theirs
        assert bool(ours) == (name == "unet")  # the adapter's
    held = weakref.ref(bundle.unet.conv_in.weight)
    for part in parts.values():
        part.release()
    gc.collect()
    assert held() is None
    assert bundle.unet.conv_in.weight.is_meta
    assert bundle.dtype == torch.float32  # known all the same


def test_it_follows_what_the_owner_puts_in_place(owner, borrowed):
    bundle, parts = borrowed
    bind(parts, owner)
    before = predict(bundle)
    other = {name: {key: x * 1.1 for key, x in tensors.items()} for name, tensors in owner.items()}
    bind(parts, other)
    assert not torch.equal(predict(bundle), before)
    bind(parts, owner)
    assert torch.equal(predict(bundle), before)


@pytest.mark.parametrize("is_bound", [True, False])
def test_loras_can_be_attached_at_any_time(owner, files, loaded, borrowed, is_bound):
    bundle, parts = borrowed
    if is_bound:
        bind(parts, owner)
    before = predict(loaded)
    acting = load_lora(bundle, files / "lora.safetensors", 0.5)
    bind(parts, owner)
    assert torch.equal(predict(acting), predict(load_lora(loaded, files / "lora.safetensors", 0.5)))
    assert float((predict(acting) - before).abs().max()) > 1e-2
    assert torch.equal(predict(bundle), before)  # not where no bundle lists it
    assert bundle.unet.get_submodule(LAYER).base_layer.weight.data_ptr() in {
        x.data_ptr() for x in owner["unet"].values()
    }


def test_half_precision_is_the_owners(owner, files):
    half = {name: {key: x.bfloat16() for key, x in tensors.items()} for name, tensors in owner.items()}
    bundle, parts = borrow_bundle(half, files / "mvadapter.safetensors")
    bind(parts, half)
    loaded = load_bundle(ModelSources(str(files)), dtype=torch.bfloat16)
    assert torch.equal(predict(bundle), predict(loaded))


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("unet", lambda x: {**x, "extra.weight": torch.ones(1)}, "'extra.weight' is not known to SDXL"),
        ("unet", lambda x: {k: v for k, v in x.items() if k != "out.2.bias"}, "'conv_out.bias' is missing"),
        ("unet", lambda x: {**x, "out.0.weight": torch.ones(9)}, "'conv_norm_out.weight' has another shape"),
        ("vae", lambda _: {"taesd_decoder.1.weight": torch.ones(1)}, "is missing or of another kind"),
        ("text_encoder", lambda _: {"shared.weight": torch.ones(1)}, "is missing or of another kind"),
    ],
)
def test_what_is_not_sdxl_is_refused_by_name(owner, part, change, message):
    with pytest.raises(ValueError, match=f"not a {part} of SDXL: .*{message}"):
        borrow_part(part, change(owner[part]))


def test_parts_that_do_not_belong_together_are_refused(owner, files):
    second = {key: x for key, x in owner["text_encoder_2"].items() if "text_projection" not in key}
    swapped = {**owner, "text_encoder": second}
    with pytest.raises(ValueError, match="MODEL and CLIP do not belong together"):
        borrow_bundle(swapped, files / "mvadapter.safetensors")


def test_a_weight_the_owner_left_elsewhere_is_named(owner, borrowed):
    _, parts = borrowed
    elsewhere = {**owner["unet"], "out.2.bias": owner["unet"]["out.2.bias"].to("meta")}
    with pytest.raises(ValueError, match=r"'out\.2\.bias' is on meta, not on cpu"):
        parts["unet"].bind(elsewhere, "cpu")
