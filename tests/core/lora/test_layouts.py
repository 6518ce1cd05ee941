"""One LoRA written in every published layout acts as its matrices merged into the weights would."""

import copy
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks.sdxl_files import TINY, create_modules, original_unet
from t2mv_core.formats.safetensors_io import read_safetensors, write_safetensors
from t2mv_core.lora.adapters import activate_loras, add_lora, attached_loras, trainable_parameters
from t2mv_core.lora.files import load_lora, save_lora
from t2mv_core.lora.layouts import sort_lora
from t2mv_core.lora.words import describe_unmatched
from t2mv_core.unet.attention import install_multiview_attention

RANK, ALPHA = 3, 1.5


@pytest.fixture(scope="module")
def base(lcm_bundle):
    """An SDXL-shaped UNet in a bundle of which LoRAs need nothing else."""
    torch.manual_seed(0)
    unet = create_modules(TINY)["unet"].eval().requires_grad_(False)
    install_multiview_attention(unet)
    return replace(lcm_bundle, unet=unet)


@pytest.fixture
def bundle(base):
    return replace(base, unet=copy.deepcopy(base.unet))


@pytest.fixture(scope="module")
def matrices(base):
    """Random matrices for every linear layer and convolution, the multiview ones included."""
    generator = torch.Generator().manual_seed(1)
    out = {}
    for name, layer in base.unet.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            out_size, in_size, *kernel = layer.weight.shape
            down = 0.1 * torch.randn(RANK, in_size, *kernel, generator=generator)
            up = 0.1 * torch.randn(out_size, RANK, *([1] * len(kernel)), generator=generator)
            out[name] = (down, up)
    assert len(out) > 150
    return out


def compute(bundle):
    generator = torch.Generator().manual_seed(2)
    x, text, pooled = (torch.randn(s, generator=generator) for s in ((4, 4, 8, 8), (4, 12, 192), (4, 64)))
    added = {"text_embeds": pooled, "time_ids": torch.ones(4, 6)}
    views = {"num_views": 2, "latent_size": (8, 8)}
    activate_loras(bundle)
    with torch.no_grad():
        return bundle.unet(x, 500, text, added_cond_kwargs=added, cross_attention_kwargs=views).sample


def merged(bundle, matrices, scale):
    """What the LoRA means: its product added to the weights."""
    unet = copy.deepcopy(bundle.unet)
    with torch.no_grad():
        for name, (down, up) in matrices.items():
            weight = unet.get_submodule(name).weight
            weight += scale * (up.flatten(1) @ down.flatten(1)).view(weight.shape)
    return compute(replace(bundle, unet=unet))


def original_name(name):
    return next(iter(original_unet({f"{name}.weight": None}, TINY))).removesuffix(".weight")


def kohya(name):
    return "lora_unet_" + name.replace(".", "_")


def write(path, matrices, rename, down=".lora_down.weight", up=".lora_up.weight", alpha=ALPHA):
    tensors = {}
    for name, (a, b) in matrices.items():
        tensors[rename(name) + down], tensors[rename(name) + up] = a, b
        if alpha is not None:
            tensors[rename(name) + ".alpha"] = torch.tensor(alpha)
    write_safetensors(tensors, path, {})
    return path


def without_mv(matrices):
    return {name: pair for name, pair in matrices.items() if "processor" not in name}


@pytest.mark.parametrize(
    "naming", [kohya, lambda name: kohya(original_name(name))], ids=["diffusers", "original"]
)
def test_kohya_in_both_namings(base, bundle, matrices, tmp_path, naming):
    ordinary = without_mv(matrices)
    loaded = load_lora(bundle, write(tmp_path / "a.safetensors", ordinary, naming), 0.8)
    expected = merged(base, ordinary, 0.8 * ALPHA / RANK)
    torch.testing.assert_close(compute(loaded), expected, atol=1e-4, rtol=1e-4)
    (handle,) = loaded.loras
    assert (handle.num_matched, handle.unmatched, handle.layout) == (len(ordinary), (), "kohya")
    assert float((compute(loaded) - compute(bundle)).abs().max()) > 1e-2


def wrap_blocks(name):
    """As in a UNet whose transformer blocks were compiled one by one."""
    return re.sub(r"(transformer_blocks\.\d+)\.", r"\1._orig_mod.", name)


@pytest.mark.parametrize(
    ("rename", "down", "up", "layout"),
    [
        (str, ".lora_A.weight", ".lora_B.weight", "PEFT"),
        (lambda n: f"base_model.model.{n}", ".lora_A.weight", ".lora_B.weight", "PEFT"),
        (lambda n: f"base_model.model.{n}", ".lora_A.default.weight", ".lora_B.default.weight", "PEFT"),
        (lambda n: f"unet.{n}", ".lora.down.weight", ".lora.up.weight", "diffusers"),
        # Behind wrappers: PEFT's twice, compiled, in parallel; the adapter's name before ".weight" or none.
        (lambda n: f"unet.base_model.model.{n}", ".lora_A.x.weight", ".lora_B.x.weight", "PEFT"),
        (lambda n: f"_orig_mod.{n}", ".lora_A.default_0.weight", ".lora_B.default_0.weight", "PEFT"),
        (lambda n: f"module.unet._orig_mod.{n}", ".lora_A", ".lora_B", "PEFT"),
        (wrap_blocks, ".lora_A.weight", ".lora_B.weight", "PEFT"),
        (lambda n: kohya(wrap_blocks(n)), ".lora_down.weight", ".lora_up.weight", "kohya"),
        (lambda n: kohya(f"_orig_mod.{n}"), ".lora_down.weight", ".lora_up.weight", "kohya"),
    ],
)
def test_dotted_layouts_reach_the_multiview_layers_too(
    base, bundle, matrices, tmp_path, rename, down, up, layout
):
    path = write(tmp_path / "a.safetensors", matrices, rename, down, up, alpha=None)
    loaded = load_lora(bundle, path)
    torch.testing.assert_close(compute(loaded), merged(base, matrices, 1.0), atol=1e-4, rtol=1e-4)
    assert loaded.loras[0].layout == layout
    assert (loaded.loras[0].num_matched, loaded.loras[0].unmatched) == (len(matrices), ())


def test_older_diffusers_files_with_loras_in_the_attention_processor(base, bundle, matrices, tmp_path):
    attention = {n: pair for n, pair in without_mv(matrices).items() if re.search(r"attn[12]\.to_", n)}

    def rename(name):
        return "unet." + re.sub(r"\.to_(q|k|v|out)(\.0)?$", r".processor.to_\1", name)

    path = write(tmp_path / "a.safetensors", attention, rename, "_lora.down.weight", "_lora.up.weight", None)
    loaded = load_lora(bundle, path)
    expected = merged(base, attention, 1.0)
    torch.testing.assert_close(compute(loaded), expected, atol=1e-4, rtol=1e-4)
    assert loaded.loras[0].num_matched == len(attention)


def test_a_1x1_convolution_stands_for_a_matrix(base, bundle, matrices, tmp_path):
    name = "mid_block.attentions.0.proj_in"
    down, up = matrices[name]
    as_convolution = {name: (down[:, :, None, None], up[:, :, None, None])}
    loaded = load_lora(bundle, write(tmp_path / "a.safetensors", as_convolution, kohya))
    expected = merged(base, {name: (down, up)}, ALPHA / RANK)
    torch.testing.assert_close(compute(loaded), expected, atol=1e-4, rtol=1e-4)


def test_text_encoder_parts_are_reported_in_words(bundle, matrices, tmp_path):
    path = write(tmp_path / "a.safetensors", without_mv(matrices), kohya)
    tensors, _ = read_safetensors(path)
    extra = {
        "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(2, 2),
        "lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha": torch.tensor(1.0),
        "lora_unet_up_blocks_9_conv.lora_down.weight": torch.ones(2, 2),
    }
    write_safetensors({**tensors, **extra}, path, {})
    (handle,) = load_lora(bundle, path).loras
    assert handle.num_matched == len(without_mv(matrices))
    assert set(handle.unmatched) == extra.keys()
    assert describe_unmatched(handle.unmatched) == [
        "2 modules (2 keys) are for the text encoders, which T2MV leaves as they are",
        "1 modules (1 keys) lack one of their two matrices",
    ]


@pytest.mark.parametrize(
    ("ending", "kind"),
    [
        (".dora_scale", "DoRA"),
        (".lora_magnitude_vector.default.weight", "PEFT's DoRA"),
        (".lora_mid.weight", "LoCon with a middle layer"),
        (".hada_w1_a", "LoHa"),
        (".lokr_w2_b", "LoKr"),
        (".oft_blocks", "OFT"),
        (".oft_R.default.weight", "PEFT's OFT"),
        (".a1.weight", "GLoRA"),
        (".on_input", r"(IA)3"),
        (".ia3_l.default", r"(IA)3"),
        (".lora_B.default.bias", "PEFT with biases"),
        (".set_weight", "replaced weights"),
    ],
)
def test_a_module_with_more_than_a_lora_is_left_out_as_a_whole(ending, kind):
    names = ["mid_block.attentions.0.proj_in", "conv_in"]
    tensors = {}
    for name in names:
        tensors |= {f"{kohya(name)}.lora_{x}.weight": torch.ones(2, 2) for x in ("down", "up")}
    strange = kohya("conv_in") + ending
    content = sort_lora({**tensors, strange: torch.ones(2)}, names, 2)
    assert list(content.modules) == [names[0]]
    assert len(content.unmatched) == 3
    (sentence,) = describe_unmatched(content.unmatched)
    assert sentence.startswith(
        f"1 modules (3 keys) are of another kind of adapter ({kind}), which T2MV applies"
    )
    assert sentence.endswith(("nowhere", "only in Load LoRA, native"))


def test_a_file_of_another_kind_is_refused_with_what_it_is(bundle, tmp_path):
    tensors = {f"{kohya('conv_in')}.hada_{x}": torch.ones(2, 2) for x in ("w1_a", "w1_b", "w2_a", "w2_b")}
    write_safetensors(tensors, tmp_path / "loha.safetensors", {})
    with pytest.raises(ValueError, match=r"has no LoRA weights for this model .*\(4 keys\) are .*\(LoHa\)"):
        load_lora(bundle, tmp_path / "loha.safetensors")
    assert attached_loras(bundle.unet) == []


def test_two_loras_for_one_module_in_a_file_are_refused(bundle, matrices, tmp_path):
    pair = {"conv_in": matrices["conv_in"]}
    path = write(
        tmp_path / "a.safetensors", {**pair, "input_blocks.0.0": [x.clone() for x in pair["conv_in"]]}, kohya
    )
    with pytest.raises(ValueError, match=r"a\.safetensors: It holds two LoRAs for 'conv_in'"):
        load_lora(bundle, path)


@pytest.mark.parametrize("alpha", [torch.zeros(0), torch.ones(2)])
def test_alpha_must_be_one_number(alpha):
    with pytest.raises(ValueError, match=rf"'conv_in\.alpha' has {len(alpha)} numbers"):
        sort_lora(
            {"conv_in.lora_down.weight": alpha, "conv_in.lora_up.weight": alpha, "conv_in.alpha": alpha},
            ["conv_in"],
            1,
        )


@pytest.mark.parametrize("change", [{"dtype": torch.int8}, {"scale": ".lora_up.weight_scale"}])
def test_a_quantised_lora_is_refused_by_its_name(bundle, matrices, tmp_path, change):
    down, up = matrices["conv_in"]
    dtype = change.get("dtype", torch.float8_e4m3fn)
    tensors = {"conv_in.lora_down.weight": down.to(dtype), "conv_in.lora_up.weight": up.to(dtype)}
    tensors |= {f"conv_in{change[key]}": torch.ones(1) for key in change if key == "scale"}
    write_safetensors(tensors, tmp_path / "a.safetensors", {})
    with pytest.raises(ValueError, match=r"a\.safetensors is quantised"):
        load_lora(bundle, tmp_path / "a.safetensors")


def test_a_file_with_the_adapters_of_two_names_is_refused(bundle, matrices, tmp_path):
    down, up = matrices["conv_in"]
    tensors = {f"conv_in.lora_{x}.{n}.weight": t for x, t in (("A", down), ("B", up)) for n in ("one", "two")}
    write_safetensors(
        {key: tensor.clone() for key, tensor in tensors.items()}, tmp_path / "a.safetensors", {}
    )
    with pytest.raises(ValueError, match="two LoRAs for 'conv_in'"):
        load_lora(bundle, tmp_path / "a.safetensors")


@pytest.mark.filterwarnings("ignore")
def test_diffusers_itself_applies_the_ordinary_parts_of_our_files(bundle, tmp_path):
    from diffusers.loaders import StableDiffusionXLLoraLoaderMixin as Loader

    add_lora(bundle.unet, RANK, ALPHA)
    with torch.no_grad():
        for parameter in trainable_parameters(bundle.unet):
            parameter.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
    save_lora(bundle.unet, tmp_path / "lora.safetensors", {})
    plain = create_modules(TINY)["unet"]
    read = Loader.lora_state_dict(tmp_path / "lora.safetensors", unet_config=plain.config)
    Loader.load_lora_into_unet(*read[:2], plain)
    theirs = {name: layer for name, layer in plain.named_modules() if hasattr(layer, "lora_A")}
    ours = {name: layer for name, layer in bundle.unet.named_modules() if hasattr(layer, "lora_A")}
    assert theirs.keys() == {name for name in ours if not name.partition(".processor.")[1]}
    for name, layer in theirs.items():
        difference = layer.get_delta_weight(layer.active_adapters[0])
        torch.testing.assert_close(difference, ours[name].get_delta_weight("default"), atol=1e-5, rtol=1e-5)
