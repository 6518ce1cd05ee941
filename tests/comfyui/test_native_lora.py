"""LoRAs on a native model; and both on a UNet with layers of another pack, as ComfyUI-GGUF has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

NativeFacts = Callable[..., dict[str, Any]]

LORAS = """
from pack.nodes.native.load_lora import add_native_lora
from pack.t2mv_core.lora.files import load_lora
from safetensors.torch import load_file, save_file

with torch.inference_mode(False), torch.no_grad():
    pair = create_pair(folder)
    torch.manual_seed(3)
    one, two = (folder / f"{name}.safetensors" for name in ("one", "two"))
    for path in (one, two):
        write_lora(pair, path)
    x, condition = torch.randn(1, RIG.num_views, 4, 8, 8), pair.condition(1, (64, 64))
    cameras = pair.cameras(RIG, 8, 8)
    ours = lambda bundle: predict_noise(bundle, x, 620, condition, cameras, 1.0)
    theirs = lambda model: evaluate(model, x, 620, condition)

    plain, patched = pair.model, pair.patched()
    plain_before, patched_before = theirs(plain), theirs(patched)
    with_one, handle = add_native_lora(patched, one, 0.8)
    with_both, _ = add_native_lora(with_one, two, -0.5)
    facts["matched"], facts["unmatched"] = handle.num_matched, len(handle.unmatched)
    facts["modules"] = len(load_file(one)) // 3
    bundle_one = load_lora(pair.bundle, one, 0.8)
    facts["one LoRA"] = relative_error(theirs(with_one), ours(bundle_one))
    facts["two LoRAs"] = relative_error(theirs(with_both), ours(load_lora(bundle_one, two, -0.5)))
    facts["LoRA matters"] = relative_error(theirs(with_one), patched_before)
    # Branches of a graph, in any order, share the weights and do not disturb each other.
    with_one_again = theirs(with_one)
    theirs(with_both)
    facts["same branch, same bits"] = torch.equal(theirs(with_one), with_one_again)
    facts["adapter alone, same bits"] = torch.equal(theirs(patched), patched_before)
    facts["plain, same bits"] = torch.equal(theirs(plain), plain_before)
    import comfy.model_management as management
    management.unload_all_models()
    facts["same bits after unloading"] = torch.equal(theirs(with_one), with_one_again)

    multiview = {key: x for key, x in load_file(one).items() if "_mv" in key}
    save_file(multiview, folder / "multiview.safetensors")
    facts["multiview parts alone"] = relative_error(
        theirs(add_native_lora(patched, folder / "multiview.safetensors", 1.0)[0]),
        ours(load_lora(pair.bundle, folder / "multiview.safetensors", 1.0)),
    )
    layer = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    text = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
    kohya = {
        f"{layer}.lora_down.weight": torch.randn(2, 192), f"{layer}.lora_up.weight": torch.randn(128, 2),
        f"{layer}.alpha": torch.tensor(1.0), f"{text}.lora_down.weight": torch.randn(2, 64),
    }
    save_file(kohya, folder / "kohya.safetensors")
    styled, handle = add_native_lora(patched, folder / "kohya.safetensors", 1.0)
    expected = ours(load_lora(pair.bundle, folder / "kohya.safetensors", 1.0))
    facts["kohya"] = relative_error(theirs(styled), expected)
    facts["kohya unmatched"] = list(handle.unmatched)
    hada = {f"{layer}.hada_{part}": torch.randn(*size) for part, size in (
        ("w1_a", (128, 2)), ("w1_b", (2, 192)), ("w2_a", (128, 2)), ("w2_b", (2, 192)),
    )}
    save_file(hada, folder / "loha.safetensors")
    exotic, handle = add_native_lora(patched, folder / "loha.safetensors", 1.0)
    facts["LoHa through ComfyUI"] = relative_error(theirs(exotic), patched_before)
    facts["LoHa unmatched"] = len(handle.unmatched)

    facts["no adapter"] = refusal(lambda: add_native_lora(plain, one, 1.0))
    save_file({"foo.lora_A.weight": torch.ones(1, 2)}, folder / "foreign.safetensors")
    facts["foreign"] = refusal(lambda: add_native_lora(patched, folder / "foreign.safetensors", 1.0))
    wrong = {f"{layer}.lora_down.weight": torch.randn(2, 99), f"{layer}.lora_up.weight": torch.randn(128, 2)}
    save_file(wrong, folder / "wrong.safetensors")
    facts["wrong"] = refusal(lambda: add_native_lora(patched, folder / "wrong.safetensors", 1.0))
"""


def test_loras_act_on_unet_and_adapter_as_in_the_diffusers_path(native_facts: NativeFacts) -> None:
    facts = native_facts(LORAS)
    assert facts["matched"] == facts["modules"]
    assert facts["unmatched"] == 0
    for name in ("one LoRA", "two LoRAs", "multiview parts alone", "kohya"):
        assert facts[name] < 1e-4, name
    for name in ("LoRA matters", "LoHa through ComfyUI"):
        assert facts[name] > 0.02, name
    for name in ("same branch, same bits", "adapter alone, same bits", "plain, same bits",
                 "same bits after unloading"):  # fmt: skip
        assert facts[name], name
    assert facts["kohya unmatched"] == ["lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"]
    assert facts["LoHa unmatched"] == 0
    assert "put Apply MV-Adapter (T2MV) before" in facts["no adapter"]
    assert "no LoRA weights for this model" in facts["foreign"]
    assert "(128, 99), this model's is (128, 192)" in facts["wrong"]


OTHERS_FILES = """
import comfy.sd
from comfy_extras.nodes_lora_extract import LORAType, calc_lora_model
from comfy_extras.nodes_model_merging import ModelSubtract
from pack.nodes.native.load_lora import add_native_lora
from pack.t2mv_core.lora.files import load_lora
from pack.t2mv_core.lora.words import describe_lora
from safetensors.torch import load_file, save_file

with torch.inference_mode(False), torch.no_grad():
    pair = create_pair(folder)
    torch.manual_seed(3)
    plain, patched = pair.model, pair.patched()
    x, condition = torch.randn(1, RIG.num_views, 4, 8, 8), pair.condition(1, (64, 64))
    cameras = pair.cameras(RIG, 8, 8)
    ours = lambda bundle: predict_noise(bundle, x, 620, condition, cameras, 1.0)
    theirs = lambda model: evaluate(model, x, 620, condition)
    comfyui = lambda path, strength: comfy.sd.load_lora_for_models(
        patched, None, load_file(path), strength, 0
    )[0]
    before = theirs(patched)

    def compare(name, path):
        model, handle = add_native_lora(patched, path, 0.8)
        bundle = load_lora(pair.bundle, path, 0.8)
        expected = theirs(comfyui(path, 0.8))
        facts[name] = {
            "native": relative_error(theirs(model), expected), "ours": relative_error(ours(bundle), expected),
            "moved": relative_error(expected, before),
            "says": describe_lora(handle), "ours says": describe_lora(bundle.loras[-1]),
        }

    # Row 1: what Extract and Save Lora writes of a model whose every weight and bias was changed.
    changed = comfy_model({
        key: value * (1 + 0.3 * torch.randn_like(value)) + 0.01 * torch.randn_like(value)
        for key, value in plain.model.diffusion_model.state_dict().items()
    }, torch.float32)
    subtract = ModelSubtract()
    difference = subtract.merge(changed, plain, 1.0)[0]
    extracted = calc_lora_model(
        difference, 4, "diffusion_model.", "diffusion_model.", {}, LORAType.STANDARD, bias_diff=True
    )
    facts["parts"] = sorted({key.rpartition(".")[2] for key in extracted} - {"weight"})
    facts["extracted modules"] = len({key.partition(".lora_")[0].partition(".diff")[0] for key in extracted})
    save_file(extracted, folder / "extracted.safetensors")
    compare("extracted", folder / "extracted.safetensors")

    # A style LoRA with text encoder parts, without alphas.
    layer = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    text = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
    save_file({
        f"{layer}.lora_down.weight": torch.randn(2, 192), f"{layer}.lora_up.weight": torch.randn(128, 2),
        f"{text}.lora_down.weight": torch.randn(2, 64), f"{text}.lora_up.weight": torch.randn(64, 2),
    }, folder / "style.safetensors")
    compare("style", folder / "style.safetensors")

    # Row 8: our own LoRA in ComfyUI's plain loader.
    write_lora(pair, folder / "own.safetensors")
    own = load_file(folder / "own.safetensors")
    ordinary = {key: tensor for key, tensor in own.items() if "_mv." not in key and "_mv_" not in key}
    save_file(ordinary, folder / "ordinary.safetensors")
    compare("ordinary", folder / "ordinary.safetensors")
    facts["multiview keys"] = len(own) - len(ordinary)
    model = comfyui(folder / "own.safetensors", 0.8)
    facts["modules of the plain loader"] = len(model.patches), len(ordinary) // 3
    facts["own in the plain loader"] = relative_error(
        theirs(model), ours(load_lora(pair.bundle, folder / "ordinary.safetensors", 0.8))
    )
"""


def test_a_file_of_others_acts_as_in_comfyui_on_both_paths(native_facts: NativeFacts) -> None:
    facts = native_facts(OTHERS_FILES)
    assert facts["parts"] == ["diff", "diff_b"]
    for name in ("extracted", "style", "ordinary"):
        file = facts[name]
        assert file["moved"] > 0.01, name
        assert max(file["native"], file["ours"]) < 1e-4, name
        assert file["says"] == file["ours says"], name
    assert facts["extracted"]["says"][0] == f"{facts['extracted modules']} modules act, 0 are left out"
    assert facts["style"]["says"] == [
        "1 modules act, 1 are left out",
        "1 modules (2 keys) are for the text encoders, which T2MV leaves as they are",
        "alpha is not stated for 1 modules; it was assumed to equal their rank",
    ]
    # The plain loader applies the ordinary parts with our scale, and leaves out the multiview ones.
    applied, ordinary = facts["modules of the plain loader"]
    assert applied == ordinary > 0
    assert facts["multiview keys"] > 0
    assert facts["own in the plain loader"] < 1e-4


QUANTISED = """
# A stand-in, written after how that pack hooks in: its linear layers have no weight until a file gives them
# one, which then has another shape and type; they compute from it and keep LoRAs beside it; its patcher is a
# class of its own.
import comfy.lora, comfy.ops, comfy.supported_models, comfy.model_detection
from comfy.model_patcher import ModelPatcher
from pack.nodes.native.load_lora import add_native_lora
from pack.t2mv_core.lora.files import load_lora

def pack_weight(weight):
    # Eight bits per number, a scale per row, all in one row of bytes: no shape of a weight is left.
    scale = weight.abs().amax(1, keepdim=True).clamp_min(1e-8) / 127
    codes = (weight / scale).round().to(torch.int8)
    return torch.cat([codes.view(torch.uint8).flatten(), scale.float().view(torch.uint8).flatten()])[None]

def unpack_weight(packed, out_features, in_features):
    codes, scale = packed[0].split([out_features * in_features, 4 * out_features])
    return codes.view(torch.int8).reshape(out_features, in_features) * scale.view(torch.float32)[:, None]

class Quantised(comfy.ops.manual_cast):
    class Linear(torch.nn.Module):
        comfy_cast_weights = True

        def __init__(self, in_features, out_features, bias=True, device=None, dtype=None):
            super().__init__()
            self.in_features, self.out_features = in_features, out_features
            self.weight, self.bias, self.patches = None, None, []
            self.weight_function, self.bias_function = [], []

        def _load_from_state_dict(self, state, prefix, *others):
            packed = pack_weight(state[prefix + "weight"])
            self.weight = torch.nn.Parameter(packed, requires_grad=False)
            if prefix + "bias" in state:
                self.bias = torch.nn.Parameter(state[prefix + "bias"], requires_grad=False)

        def forward(self, x):
            weight = unpack_weight(self.weight, self.out_features, self.in_features).to(x)
            for patches, key in self.patches:
                weight = comfy.lora.calculate_weight(patches, weight, key)
            return torch.nn.functional.linear(x, weight, self.bias)

class QuantisedPatcher(ModelPatcher):
    def patch_weight_to_device(self, key, device_to=None, inplace_update=False):
        layer = self.model.get_submodule(key.rpartition(".")[0])
        if not isinstance(layer, Quantised.Linear):
            super().patch_weight_to_device(key, device_to, inplace_update)
        elif key in self.patches:
            layer.patches = [(self.patches[key], key)]

    def unpatch_model(self, device_to=None, unpatch_weights=True):
        for layer in self.model.modules():
            if unpatch_weights and isinstance(layer, Quantised.Linear):
                layer.patches = []
        super().unpatch_model(device_to, unpatch_weights)

with torch.inference_mode(False), torch.no_grad():
    pair = create_pair(folder)
    weights = dict(pair.model.model.diffusion_model.state_dict())
    config = comfy.supported_models.SDXL(comfy.model_detection.detect_unet_config(weights, ""))
    config.set_inference_dtype(torch.float32, None)
    config.custom_operations = Quantised
    base = config.get_model(weights, "", device="cpu")
    base.load_model_weights(dict(weights), "")
    model = QuantisedPatcher(base.eval(), pair.model.load_device, torch.device("cpu"))

    x, condition = torch.randn(1, RIG.num_views, 4, 8, 8), pair.condition(1, (64, 64))
    cameras = pair.cameras(RIG, 8, 8)
    exact = predict_noise(pair.bundle, x, 620, condition, cameras, 1.0)
    write_lora(pair, folder / "lora.safetensors")
    for name, module in pair.bundle.unet.named_modules():
        if isinstance(module, torch.nn.Linear) and ".processor." not in name:
            module.weight.copy_(unpack_weight(pack_weight(module.weight), *module.weight.shape))
    ours = lambda bundle: predict_noise(bundle, x, 620, condition, cameras, 1.0)

    stored = model.model.diffusion_model.middle_block[1].transformer_blocks[0].attn1.to_q.weight
    facts["stored"] = [str(stored.dtype), stored.ndim, stored.shape[0]]
    patched = apply_adapter(model, pair.adapter_file, RIG)
    facts["patcher"] = type(patched).__name__
    facts["adapter in"] = str(next(adapter_of(patched).model.parameters()).dtype)
    expected = ours(pair.bundle)
    facts["rounds"] = relative_error(expected, exact)
    plain = evaluate(model, x, 620, condition)
    before = evaluate(patched, x, 620, condition)
    facts["quantised"] = relative_error(before, expected)
    with_lora, handle = add_native_lora(patched, folder / "lora.safetensors", 0.8)
    facts["unmatched"] = len(handle.unmatched)
    facts["with LoRA"] = relative_error(
        evaluate(with_lora, x, 620, condition), ours(load_lora(pair.bundle, folder / "lora.safetensors", 0.8))
    )
    facts["LoRA matters"] = relative_error(evaluate(with_lora, x, 620, condition), expected)
    facts["same bits"] = torch.equal(evaluate(patched, x, 620, condition), before)
    facts["plain, same bits"] = torch.equal(evaluate(model, x, 620, condition), plain)
"""


def test_the_adapter_and_loras_join_layers_of_another_kind(native_facts: NativeFacts) -> None:
    facts = native_facts(QUANTISED)
    assert facts["stored"] == ["torch.uint8", 2, 1]
    assert facts["patcher"] == "QuantisedPatcher"
    assert facts["adapter in"] == "torch.float32"
    assert facts["rounds"] > 1e-3
    assert facts["quantised"] < 1e-5
    assert facts["unmatched"] == 0
    assert facts["with LoRA"] < 1e-4
    assert facts["LoRA matters"] > 0.02
    assert facts["same bits"]
    assert facts["plain, same bits"]
