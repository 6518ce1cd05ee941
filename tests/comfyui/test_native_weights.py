"""Weights of a native model: number types, users that share them, offloading, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

NativeFacts = Callable[..., dict[str, Any]]

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
    meshes = pair.adapter_file.with_name("mvadapter_tg2mv_sdxl.safetensors")
    meshes.write_bytes(pair.adapter_file.read_bytes())
    facts["other adapter"] = refusal(lambda: apply_adapter(pair.model, meshes, RIG))
"""


def test_types_sharing_and_refusals(native_facts: NativeFacts) -> None:
    facts = native_facts(TYPES)
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
    assert "is the geometry-guided MV-Adapter" in facts["other adapter"]


SMALL_CARD = """
import comfy.model_management as management
import torch

# "cpu:0" computes as "cpu" does, and is taken for a card here.
card = torch.device("cpu", 0)
management.get_torch_device = lambda: card
management.is_device_cpu = lambda device: device == torch.device("cpu")
management.get_free_memory = lambda device=None, torch_free_too=False: (0, 0) if torch_free_too else 2**40
management.vram_state = management.VRAMState.NORMAL_VRAM
management.soft_empty_cache = lambda force=False: None
"""

NO_ROOM = """
import weakref
from pack.nodes.native.load_lora import add_native_lora

with torch.inference_mode(False), torch.no_grad():
    pair = create_pair(folder)
    write_lora(pair, folder / "lora.safetensors")
    model, _ = add_native_lora(pair.patched(), folder / "lora.safetensors", 1.0)
    adapter = adapter_of(model)
    x, condition = torch.randn(1, RIG.num_views, 4, 8, 8), pair.condition(1, (64, 64))
    whole = evaluate(model, x, 620, condition)
    facts["both are on the card"] = all(
        p.loaded_size() == p.model_size() and p.model.device == card for p in (model, adapter)
    )
    facts["two models"] = len(management.current_loaded_models) == 2

    management.unload_all_models()
    facts["both left"] = all(
        p.loaded_size() == 0 and {w.device for w in p.model.parameters()} == {torch.device("cpu")}
        for p in (model, adapter)
    )
    management.vram_state = management.VRAMState.NO_VRAM
    streamed = evaluate(model, x, 620, condition)
    facts["nothing stays on the card"] = adapter.loaded_size() < 0.1 * adapter.model_size()
    facts["streamed by layer"] = adapter.model.model_lowvram
    facts["streamed, with LoRA"] = relative_error(streamed, whole)

    adapter.partially_load(card, 0.5 * adapter.model_size())
    facts["half is there"] = 0.2 < adapter.loaded_size() / adapter.model_size() < 0.8
    # As it lies: 0.33's `load_models_gpu` would ask for one byte more, and set LoRAs on loaded layers again.
    as_it_lies = lambda: evaluate(model, x, 620, condition, loads=False)
    facts["half, with LoRA"] = relative_error(as_it_lies(), whole)
    facts["freed in part"] = adapter.partially_unload(torch.device("cpu"), 0.2 * adapter.model_size()) > 0
    facts["less, with LoRA"] = relative_error(as_it_lies(), whole)

    # The residuals are freed after a sampling: they would stay in the card's memory.
    sigmas, residuals = torch.tensor([10.0, 0.0]), []
    keep = lambda module, inputs, outputs: residuals.extend(map(weakref.ref, outputs))
    adapter.model.adapter.register_forward_hook(keep)
    sample(model, x.flatten(0, 1), sigmas, comfy_conditions(condition, RIG.num_views), 1.0)
    facts["residuals were computed"] = len(residuals) > 0
    facts["residuals are freed"] = all(residual() is None for residual in residuals)
"""


@pytest.mark.parametrize("dynamic_vram", [False], indirect=True)
def test_the_adapter_is_offloaded_as_comfyuis_own_weights(native_facts: NativeFacts) -> None:
    facts = native_facts(NO_ROOM, before=SMALL_CARD)
    for name in ("streamed, with LoRA", "half, with LoRA", "less, with LoRA"):
        assert facts.pop(name) < 1e-5, name
    assert [name for name, holds in facts.items() if not holds] == []


NO_ROOM_DYNAMIC = """
import comfy.model_management as management
from imitated_card.dynamic_vram import BUDGET, Reservation
from pack.nodes.native.load_lora import add_native_lora

# A card without room: a static model would send the dynamic ones away, dynamic ones share it as they run.
management.get_free_memory = lambda device=None, torch_free_too=False: (0, 0) if torch_free_too else 0

with torch.inference_mode(False), torch.no_grad():
    pair = create_pair(folder)
    write_lora(pair, folder / "lora.safetensors")
    patched = pair.patched()
    model, _ = add_native_lora(patched, folder / "lora.safetensors", 1.0)
    base, adapter = pair.model, adapter_of(model)
    x, condition = torch.randn(1, RIG.num_views, 4, 8, 8), pair.condition(1, (64, 64))
    own = evaluate(patched, x, 620, condition)
    management.unload_all_models()
    places = lambda patcher: sum(place.loaded_size() for place in patcher.model.dynamic_vbars.values())
    facts["the adapter is dynamic"] = adapter.is_dynamic()
    facts["unloaded"] = places(base) == places(adapter) == 0
    plain = evaluate(base, x, 620, condition)
    filled = places(base)
    freed, free = [], Reservation.free_memory
    Reservation.free_memory = lambda self, size: freed.append(self) or free(self, size)
    big = lambda: {key: x for key, x in adapter.model.state_dict().items() if "_mv" in key and x.ndim > 1}
    before = {key: weight.data_ptr() for key, weight in big().items()}
    whole = evaluate(model, x, 620, condition)
    facts["the base stays on the card"] = filled > 0 and places(base) >= filled and not freed
    facts["the adapter is on the card"] = places(adapter) >= sum(x.nbytes for x in big().values())
    facts["no second copy of its weights"] = len(before) > 20 and before == {
        key: weight.data_ptr() for key, weight in big().items()
    }
    facts["LoRA matters"] = relative_error(whole, own) > 0.02
    for name, branch, bits in (("own", patched, own), ("plain", base, plain), ("LoRA", model, whole)):
        facts[f"{name} branch, same bits"] = torch.equal(evaluate(branch, x, 620, condition), bits)
    management.unload_all_models()
    facts["all left"] = places(base) == places(adapter) == 0
    for name, budget in (("nothing stays", 0), ("some stays", filled // 2)):
        BUDGET[0] = budget
        facts[name] = relative_error(evaluate(model, x, 620, condition), whole) < 1e-5
        facts[name + ", places"] = places(base) + places(adapter) <= budget
    management.unload_all_models()
    BUDGET[0] = 2**40
    facts["same bits again"] = torch.equal(evaluate(model, x, 620, condition), whole)
"""


@pytest.mark.parametrize("dynamic_vram", [True], indirect=True)
def test_dynamic_vram_loads_the_adapter_beside_the_base(native_facts: NativeFacts) -> None:
    facts = native_facts(NO_ROOM_DYNAMIC)
    assert [name for name, holds in facts.items() if not holds] == []
