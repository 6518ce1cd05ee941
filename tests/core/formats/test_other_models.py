"""Other models are refused by their names, whatever else is in the file."""

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.sdxl_files import TINY, create_modules, original_checkpoint, original_unet
from t2mv_core.formats.kinds import refuse_other_models
from t2mv_core.formats.strict import WeightsFile

PREFIX = "model.diffusion_model."


@pytest.fixture(scope="module")
def states():
    return {part: dict(module.state_dict()) for part, module in create_modules(TINY).items()}


@pytest.fixture
def refuse(tmp_path):
    def run(tensors):
        save_file({key: x.contiguous() for key, x in tensors.items()}, tmp_path / "model.safetensors")
        refuse_other_models(WeightsFile(tmp_path / "model.safetensors"))

    return run


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("v_pred", "is a v-prediction model; T2MV needs an SDXL model"),
        ("edm_vpred.sigma_max", r"is a v-prediction \(EDM\) model"),
        ("edm_mean", "is an EDM model"),
        ("ztsnr", "is a model of zero terminal SNR"),
        (f"{PREFIX}encoder_hid_proj.weight", "is a UNet with an input of its own"),
    ],
)
def test_marks_of_sdxls_trained_otherwise(refuse, states, key, words):
    with pytest.raises(ValueError, match=words):
        refuse({**original_checkpoint(states, TINY), key: torch.ones(1)})


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("conditioner.embedders.0.model.ln_final.weight", "is an SDXL refiner"),
        (
            "cond_stage_model.transformer.text_model.final_layer_norm.weight",
            "is a Stable Diffusion 1.x model",
        ),
        ("cond_stage_model.model.ln_final.weight", "is a Stable Diffusion 2.x model"),
        ("control_model.input_hint_block.0.weight", "is a ControlNet"),
    ],
)
def test_marks_of_other_models_count_where_sdxls_text_encoders_are_not(refuse, states, key, words):
    whole = original_checkpoint(states, TINY)
    refuse({**whole, key: torch.ones(1)})
    rest = {name: x for name, x in whole.items() if not name.startswith("conditioner.embedders.0")}
    with pytest.raises(ValueError, match=words):
        refuse({**rest, key: torch.ones(1)})


@pytest.mark.parametrize("key", ["modelspec.prediction_type", "modelspec.predict_key"])
def test_a_header_that_names_another_prediction_is_believed(tmp_path, states, key):
    for value in ("epsilon", "eps", "v", "v_prediction"):
        path = tmp_path / "model.safetensors"
        save_file({"conv_in.weight": torch.ones(4, 4, 3, 3)}, path, {key: value, "modelspec.title": "v"})
        if value.startswith("eps"):
            refuse_other_models(WeightsFile(path))
        else:
            with pytest.raises(ValueError, match=rf"another prediction type \({value}, says its header\)"):
                refuse_other_models(WeightsFile(path))


LAYER = f"{PREFIX}input_blocks.4.1.proj_in."


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({f"{LAYER}comfy_quant": torch.ones(9, dtype=torch.uint8)}, "by ComfyUI"),
        ({f"{LAYER}comfy_quant": torch.ones(9), f"{LAYER}weight_scale": torch.ones(1)}, "by ComfyUI"),
        ({f"{LAYER}weight_scale": torch.ones(1)}, "scaled fp8 or fp4"),
        ({f"{LAYER}scale_weight": torch.ones(1)}, "scaled fp8"),
        ({f"{PREFIX}scaled_fp8": torch.ones(0)}, "scaled fp8"),
        ({f"{LAYER}weight.quant_state.bitsandbytes__nf4": torch.ones(80)}, "by bitsandbytes, nf4"),
        ({f"{LAYER}weight.absmax": torch.ones(80)}, "by bitsandbytes"),
        ({f"{LAYER}SCB": torch.ones(80)}, "by bitsandbytes, int8"),
        ({f"{LAYER}qweight": torch.ones(80)}, "GPTQ, AWQ or SVDQuant"),
        ({f"{LAYER}weight": torch.ones(8, 4, dtype=torch.uint8)}, "has the type U8"),
        ({f"{LAYER}weight": torch.ones(8, 4, dtype=torch.int8)}, "has the type I8"),
    ],
)
def test_quantised_weights_are_called_that(refuse, states, tensors, words):
    with pytest.raises(ValueError, match=rf"model.safetensors is quantised \(.*{words}"):
        refuse({**original_checkpoint(states, TINY), **tensors})


def test_a_header_may_say_that_weights_are_quantised(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"conv_in.weight": torch.ones(4, 4, 3, 3)}, path, {"_quantization_metadata": "{}"})
    with pytest.raises(ValueError, match="is quantised"):
        refuse_other_models(WeightsFile(path))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["double_blocks.0.img_attn.qkv.weight", "img_in.weight"], "is a Flux model"),
        ([f"{PREFIX}double_blocks.0.img_attn.qkv.weight"], "is a Flux model"),
        (["joint_blocks.0.x_block.attn.qkv.weight"], "is a Stable Diffusion 3 model"),
        (["lora_unet_conv_in.lora_down.weight"], "is a LoRA .* models/loras"),
        (["unet.down_blocks.1.attentions.0.proj_in.lora_A.weight"], "is a LoRA .* models/loras"),
        (["unet.conv_in.lora.down.weight"], "is a LoRA .* models/loras"),
        (["lycoris_conv_in.hada_w1_a"], "is a LoRA .* models/loras"),
        (
            ["down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_q_mv.weight"],
            "is an MV-Adapter",
        ),
        (["transformer_blocks.0.attn.to_q.weight"], "is a transformer such as"),
        (["emb_params"], "is a textual inversion"),
    ],
)
def test_files_of_other_kinds(refuse, keys, words):
    with pytest.raises(ValueError, match=words):
        refuse({key: torch.ones(2, 2) for key in keys})


@pytest.mark.parametrize("layout", ["original", "prefixed", "diffusers"])
@pytest.mark.parametrize(
    ("channels", "words"), [(9, "is an inpainting model"), (8, "is an image-editing model")]
)
def test_input_channels_tell_what_a_unet_is_for(refuse, states, layout, channels, words):
    unet = {**states["unet"], "conv_in.weight": torch.ones(32, channels, 3, 3)}
    if layout != "diffusers":
        prefix = PREFIX if layout == "prefixed" else ""
        unet = {prefix + key: x for key, x in original_unet(unet, TINY).items()}
    with pytest.raises(ValueError, match=words):
        refuse(unet)


@pytest.mark.parametrize(
    ("width", "words"),
    [(768, "Stable Diffusion 1.x"), (1024, "Stable Diffusion 2.x"), (1280, "an SDXL refiner")],
)
def test_width_of_the_text_tells_unets_without_size_input_apart(refuse, width, words):
    keys = ("input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", "input_blocks.0.0.weight")
    with pytest.raises(ValueError, match=words):
        refuse({keys[0]: torch.ones(320, width), keys[1]: torch.ones(320, 4, 3, 3)})
