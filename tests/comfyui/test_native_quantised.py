"""A UNet with layers of another pack, as ComfyUI-GGUF has: a stand-in written after how that pack hooks in.

Its linear layers have no weight until a file gives them one, which then has another shape and type; they
compute from it and keep LoRAs beside it; the patcher is a class of its own. The adapter joins all the same.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import ComfyInstall

QUANTISED = """
import json, torch
from pathlib import Path
sys.path.append(sys.argv[1])
folder, facts = Path(sys.argv[2]), {}
from native_pair import *
import comfy.lora, comfy.ops, comfy.supported_models, comfy.model_detection
from comfy.model_patcher import ModelPatcher
from pack.nodes.native.load_lora import add_native_lora
from pack.t2mv_core.lora.adapters import add_lora, remove_lora, trainable_parameters
from pack.t2mv_core.lora.files import load_lora, save_lora

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
    add_lora(pair.bundle.unet, rank=2, alpha=3, name="lora")
    for parameter in trainable_parameters(pair.bundle.unet, "lora"):
        parameter.normal_(std=0.15)
    save_lora(pair.bundle.unet, folder / "lora.safetensors", {}, name="lora")
    remove_lora(pair.bundle.unet, "lora")
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
print(json.dumps(facts))
"""


def test_the_adapter_and_loras_join_layers_of_another_kind(
    comfy_install: ComfyInstall, tmp_path: Path
) -> None:
    out = comfy_install.run_code(QUANTISED, str(Path(__file__).parent), str(tmp_path))
    facts = json.loads(out.splitlines()[-1])
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
