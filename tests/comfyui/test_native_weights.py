"""Weights of a native model: LoRAs, number types, branches that share them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conftest import ComfyInstall

PRELUDE = """
import json, torch
from pathlib import Path
sys.path.append(sys.argv[1])
folder, facts = Path(sys.argv[2]), {}
from native_pair import *
def refusal(call):
    try:
        call()
    except ValueError as error:
        return str(error)
    return "accepted"
"""


def run(comfy_install: ComfyInstall, code: str, folder: Path) -> dict[str, Any]:
    return json.loads(
        comfy_install.run_code(PRELUDE + code, str(Path(__file__).parent), str(folder)).splitlines()[-1]
    )


LORAS = """
from pack.nodes.native.load_lora import add_native_lora
from pack.t2mv_core.lora.adapters import add_lora, remove_lora, trainable_parameters
from pack.t2mv_core.lora.files import load_lora, save_lora
from safetensors.torch import load_file, save_file

with torch.inference_mode(False), torch.no_grad():
    pair = create_pair(folder)
    torch.manual_seed(3)
    files = []
    for name in ("one", "two"):
        add_lora(pair.bundle.unet, rank=2, alpha=3, name=name)
        for parameter in trainable_parameters(pair.bundle.unet, name):
            parameter.normal_(std=0.15)
        files.append(folder / f"{name}.safetensors")
        save_lora(pair.bundle.unet, files[-1], {}, name=name)
        remove_lora(pair.bundle.unet, name)
    one, two = files
    x, condition = torch.randn(1, RIG.num_views, 4, 8, 8), pair.condition(1, (64, 64))
    cameras = pair.cameras(RIG, 8, 8)
    ours = lambda bundle: predict_noise(bundle, x, 620, condition, cameras, 1.0)
    theirs = lambda model: evaluate(model, x, 620, condition)

    plain, patched = pair.model, pair.patched()
    plain_before, patched_before = theirs(plain), theirs(patched)
    with_one, handle = add_native_lora(patched, one, 0.8)
    with_both, _ = add_native_lora(with_one, two, -0.5)
    facts["matched"], facts["unmatched"] = handle.num_matched, len(handle.unmatched)
    facts["modules"] = len(load_file(one)) // 2
    bundle_one = load_lora(pair.bundle, one, 0.8)
    facts["one LoRA"] = relative_error(theirs(with_one), ours(bundle_one))
    facts["two LoRAs"] = relative_error(theirs(with_both), ours(load_lora(bundle_one, two, -0.5)))
    facts["LoRA matters"] = relative_error(theirs(with_one), patched_before)
    # Branches of a graph, in any order, share the weights and never hear of each other.
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
print(json.dumps(facts))
"""


def test_loras_act_on_unet_and_adapter_as_in_the_diffusers_path(
    comfy_install: ComfyInstall, tmp_path: Path
) -> None:
    facts = run(comfy_install, LORAS, tmp_path)
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


TYPES = """
from benchmarks.sdxl_files import original_unet

with torch.inference_mode():
    pair = create_pair(folder)
    x, condition = torch.randn(1, RIG.num_views, 4, 8, 8), pair.condition(1, (64, 64))
    cameras = pair.cameras(RIG, 8, 8)
    ours = predict_noise(pair.bundle, x, 620, condition, cameras, 1.0)

    # fp8 weights, computed in float32: our path gets the same rounded weights, and agrees.
    weights = {key: x for key, x in pair.model.model.diffusion_model.state_dict().items()}
    fp8 = {key: x.to(torch.float8_e4m3fn) for key, x in weights.items()}
    small = comfy_model(fp8, torch.float8_e4m3fn, torch.float32)
    patched = lambda model: apply_adapter(model, pair.adapter_file, RIG)
    stored = next(small.model.diffusion_model.parameters()).dtype
    facts["fp8 is stored"] = stored == torch.float8_e4m3fn
    rounded = evaluate(patched(small), x, 620, condition)
    for name, parameter in pair.bundle.unet.named_parameters():
        if ".processor." not in name:
            parameter.copy_(parameter.to(torch.float8_e4m3fn))
    expected = predict_noise(pair.bundle, x, 620, condition, cameras, 1.0)
    facts["fp8"] = relative_error(rounded, expected)
    facts["fp8 rounds"] = relative_error(expected, ours)
    facts["adapter beside fp8"] = str(next(adapter_of(patched(small)).model.parameters()).dtype)

    for dtype in (torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        half = comfy_model({key: x.to(dtype) for key, x in weights.items()}, dtype)
        model = patched(half)
        facts[f"adapter in {name}"] = str(next(adapter_of(model).model.parameters()).dtype)
        facts[name] = relative_error(evaluate(model, x, 620, condition), ours)

    # One file in memory for all who use it with the same type.
    first, second = pair.patched(), pair.patched(CameraRig((0.0, 90.0), (0.0, 0.0)))
    facts["weights are shared"] = adapter_of(first).model is adapter_of(second).model
    facts["also by clones"] = adapter_of(first.clone().clone()).model is adapter_of(first).model
    facts["two rigs, two results"] = evaluate(second, x[:, :2], 620, condition).shape[1] == 2

    noise, sigmas = torch.randn(6, 4, 8, 8), torch.tensor([10.0, 0.0])
    conditions = comfy_conditions(condition, 1)
    try_batch = lambda size, rig=RIG, cfg=1.0, shape=(8, 8): refusal(
        lambda: sample(pair.patched(rig), torch.randn(size, 4, *shape), sigmas, conditions, cfg)
    )
    facts["6 of 3"], facts["4 of 3"] = try_batch(6), try_batch(4)
    six = CameraRig((0.0,) * 6, (0.0,) * 6)
    facts["3 of 6, twice"] = try_batch(3, six, 5.0)
    facts["odd"] = try_batch(3, RIG, 1.0, (8, 9))
    facts["3 of 6, inside"] = refusal(lambda: pair.patched(six).model.diffusion_model(
        torch.randn(6, 4, 8, 8), torch.ones(6), torch.randn(6, 12, 192), torch.randn(6, 1600),
        transformer_options={
            **pair.patched(six).model_options["transformer_options"], "cond_or_uncond": [0, 1]
        },
    ))
    facts["second adapter"] = refusal(lambda: apply_adapter(first, pair.adapter_file, RIG))
    other = create_pair(folder, Size(
        widths=(64, 128, 192), depths=(0, 1, 2), text=SMALL.text, pooled=64, vae_widths=(32, 64),
        vae_layers=1, tokens=12,
    ))
    facts["other UNet"] = refusal(lambda: apply_adapter(pair.model, other.adapter_file, RIG))
print(json.dumps(facts))
"""


def test_types_sharing_and_refusals(comfy_install: ComfyInstall, tmp_path: Path) -> None:
    facts = run(comfy_install, TYPES, tmp_path)
    assert facts["fp8 is stored"]
    assert facts["fp8"] < 1e-5
    assert facts["fp8 rounds"] > 1e-3
    assert facts["adapter beside fp8"] == "torch.float32"  # the type that is computed in
    for name, bound in (("bfloat16", 0.05), ("float16", 0.01)):
        assert facts[f"adapter in {name}"] == f"torch.{name}"
        assert facts[name] < bound, name
    assert facts["weights are shared"]
    assert facts["also by clones"]
    assert facts["two rigs, two results"]
    assert facts["6 of 3"] == "accepted"
    assert "batch of 4, which is no multiple of the 3 views" in facts["4 of 3"]
    assert "batch of 3, which is no multiple of the 6 views" in facts["3 of 6, twice"]
    assert "batch of 3, which is no multiple of the 6 views" in facts["3 of 6, inside"]
    assert "multiples of 16 px" in facts["odd"]
    assert "already has an MV-Adapter" in facts["second adapter"]
    assert "does not fit this model's UNet" in facts["other UNet"]
