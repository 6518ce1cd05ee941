"""Pictures on ComfyUI's own UNet with an MV-Adapter of image to multiview, against our diffusers path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

NativeFacts = Callable[..., dict[str, Any]]

PRELUDE = """
from dataclasses import replace
from pack.nodes.native.reference import Reference
from pack.t2mv_core.reference import reference_of_latents

def pictures(count, height, width):
    scaled = torch.randn(count, 4, height, width)
    return scaled, scaled / pair.model.model.latent_format.scale_factor

def features(scaled, condition, bundle=None):
    each = scaled.expand(len(condition), -1, -1, -1)
    return reference_of_latents(bundle or pair.bundle, each, condition)
"""
EVALUATE = (
    PRELUDE
    + """
with torch.inference_mode():
    pair = create_pair(folder, has_reference=True)
    for name, sets, count, height, width, ref_scale, mv_scale in (
        ("one set", 1, 1, 8, 8, 1.0, 1.0),
        ("two sets, two pictures", 2, 2, 8, 8, 1.0, 1.0),
        ("two sets, one picture", 2, 1, 8, 8, 1.0, 1.0),
        ("levels with an odd height", 1, 1, 10, 6, 1.0, 1.0),
        ("weaker picture", 1, 1, 8, 8, 0.4, 1.0),
        ("no picture", 1, 1, 8, 8, 0.0, 1.0),
        ("no multiview attention", 1, 1, 8, 8, 1.0, 0.0),
    ):
        for processor in pair.bundle.unet.attn_processors.values():
            processor.mv_scale = mv_scale
        x = torch.randn(sets, RIG.num_views, 4, height, width)
        scaled, latents = pictures(count, height, width)
        condition = pair.condition(sets, (8 * height, 8 * width))
        cameras = pair.cameras(RIG, height, width)
        found = features(scaled, condition).scaled(ref_scale)
        ours = predict_noise(pair.bundle, x, 620, condition, cameras, 1.0, 1.0, found)
        patched = pair.patched(mv_scale=mv_scale, reference=Reference(latents, ref_scale))
        facts[name] = relative_error(evaluate(patched, x, 620, condition), ours)
        other = pair.patched(mv_scale=mv_scale, reference=Reference(latents.flip(-1), ref_scale))
        facts["other picture: " + name] = relative_error(evaluate(other, x, 620, condition), ours)
        by_option = pair.patched(mv_scale=mv_scale, reference=Reference(latents, 9.0))
        by_option.model_options["transformer_options"]["t2mv_ref_scale"] = ref_scale
        facts[name + ", by option"] = relative_error(evaluate(by_option, x, 620, condition), ours)
"""
)


@pytest.mark.parametrize(
    ("option", "dynamic_vram"),
    [
        ("", False),
        ("", True),
        ("use_pytorch_cross_attention", False),
        ("use_split_cross_attention", False),
    ],
    indirect=["dynamic_vram"],
)
def test_one_evaluation_is_the_diffusers_paths(native_facts: NativeFacts, option: str) -> None:
    facts = native_facts(EVALUATE, before=f"args.{option} = True" if option else "")
    assert len(facts) == 21
    for name, error in facts.items():
        if name.startswith("other picture: ") and name != "other picture: no picture":
            assert error > 0.01, name
        else:
            assert error < 1e-5, name


RUNS = (
    PRELUDE
    + """
from pack.nodes.native.guidance import embed_guidance
from pack.nodes.native.load_lora import add_native_lora
from pack.nodes.native.schedule import T2MVShiftSNR
from pack.nodes.native.zigzag.loop import ZigzagSettings
from pack.nodes.native.zigzag.node import ZigzagSampler
from pack.t2mv_core.lora.files import load_lora
from pack.t2mv_core.samplers import SamplingSettings, sample_standard, sample_zmv
import comfy.sample
from comfy.k_diffusion.sampling import default_noise_sampler
from safetensors.torch import load_file, save_file

def drawn(model, zigzag=None, cfg=5.0):
    sigmas = pair.bundle.schedule.alpha_bar[pair.bundle.schedule.timesteps(4)]
    sigmas = torch.cat([((1 - sigmas) / sigmas).sqrt().float(), torch.zeros(1)])
    model = T2MVShiftSNR.execute(model, "lcm", 8.0).args[0]
    return comfy.sample.sample_custom(
        model, first.flatten(0, 1), cfg, ZigzagSampler(zigzag or ZigzagSettings("lcm", 0, 1, 1.0, 1.0)),
        sigmas, *comfy_conditions(condition, RIG.num_views), torch.zeros_like(first.flatten(0, 1)), seed=0,
        disable_pbar=True,
    ) * pair.model.model.latent_format.scale_factor

def expected(bundle, scaled, settings, sample=sample_standard):
    draw, given = default_noise_sampler(first.flatten(0, 1), seed=0), [first]
    noise = lambda size: given.pop() if given else draw(None, None).reshape(size)
    found = features(scaled, condition, bundle)
    return sample(bundle, condition, cameras, noise, settings, reference=found).denoised.flatten(0, 1)

def set_up(size):
    global pair, condition, cameras, first
    pair = create_pair(folder, size, has_reference=True)
    pair.bundle.unet.register_to_config(sample_size=8)
    condition, cameras = pair.condition(2, (64, 64)), pair.cameras(RIG, 8, 8)
    first = torch.randn(2, RIG.num_views, 4, 8, 8)

with torch.inference_mode(False), torch.no_grad():
    set_up(SMALL)
    scaled, latents = pictures(2, 8, 8)
    patched = pair.patched(reference=Reference(latents, 0.7))
    guided = SamplingSettings(4, 5.0, ref_scale=0.7)
    ours = expected(pair.bundle, scaled, guided)
    together = drawn(patched)
    facts["guided"] = relative_error(together, ours)
    facts["the same again"] = relative_error(drawn(patched), together)
    facts["another picture"] = relative_error(
        drawn(pair.patched(reference=Reference(latents.flip(0), 0.7))), ours
    )
    zigzag = ZigzagSettings("lcm", 2, 1, 1.5, 0.3, 0.2)
    core = SamplingSettings(4, 5.0, 1.0, 2, 1, 1.5, 0.3, ref_scale=0.7, inverse_ref_scale=0.2)
    facts["zigzag"] = relative_error(drawn(patched, zigzag), expected(pair.bundle, scaled, core, sample_zmv))
    same = replace(zigzag, inverse_ref_scale=0.7)
    facts["zag's scale matters"] = relative_error(drawn(patched, zigzag), drawn(patched, same))

    # The UNet looks at the pictures once per sampling, whatever the number of steps and conditions.
    unet, need = patched.model.diffusion_model, type(patched.model).memory_required
    before, calls = unet._forward, []
    unet._forward = lambda x, *a, **k: calls.append(len(x)) or before(x, *a, **k)
    drawn(patched)
    facts["together"] = list(calls)
    type(patched.model).memory_required = lambda self, shape, **_: 0 if shape[0] <= 6 else 1e18
    calls.clear()
    facts["conditions apart"] = relative_error(drawn(patched), together)
    facts["apart"] = list(calls)
    type(patched.model).memory_required = need
    calls.clear()
    single = pair.patched(reference=Reference(latents[:1]))
    drawn(single)
    facts["two prompts, one picture"] = calls[0]
    calls.clear()
    condition = replace(condition, **{
        name: getattr(condition, name)[:1].repeat_interleave(2, 0)
        for name in ("prompt_embeds", "pooled_embeds", "negative_embeds", "negative_pooled")
    })
    facts["one prompt, one picture"] = relative_error(
        drawn(single), expected(pair.bundle, scaled[:1], SamplingSettings(4, 5.0))
    )
    facts["shared look"] = calls[0]
    del unet._forward

    lora = folder / "lora.safetensors"
    write_lora(pair, lora)
    parts = {key: x for key, x in load_file(lora).items() if "_ref" in key}
    save_file(parts, folder / "ref.safetensors")
    facts["reference parts"] = len(parts)
    for name in ("lora", "ref"):
        path = folder / f"{name}.safetensors"
        with_lora, handle = add_native_lora(patched, path, 0.8)
        facts[f"{name} unmatched"] = len(handle.unmatched)
        ours = expected(load_lora(pair.bundle, path, 0.8), scaled, guided)
        facts[f"{name}"] = relative_error(drawn(with_lora), ours)
        facts[f"{name} matters"] = relative_error(drawn(with_lora), drawn(patched))

    # The pictures are looked at without a guidance in the time embedding.
    set_up(replace(SMALL, guidance=64))
    scaled, latents = pictures(2, 8, 8)
    key = "time_embedding.cond_proj.weight"
    pair.bundle.unet.get_parameter(key).mul_(10)
    save_file({key: pair.bundle.unet.get_parameter(key).clone()}, folder / "lcm.safetensors")
    ours = expected(pair.bundle, scaled, SamplingSettings(4, 7.0))
    for name in ("behind", "before"):
        model = pair.model
        if name == "before":
            model = embed_guidance(model, folder / "lcm.safetensors", 7.0)
        model = apply_adapter(model, pair.adapter_file, RIG, reference=Reference(latents))
        if name == "behind":
            model = embed_guidance(model, folder / "lcm.safetensors", 7.0)
        facts[f"embedded {name}"] = relative_error(drawn(model, cfg=1.0), ours)
"""
)


@pytest.fixture(scope="module")
def facts(native_facts: NativeFacts) -> dict[str, Any]:
    """What RUNS measured, once."""
    return native_facts(RUNS)


def test_trajectories_are_the_diffusers_paths(facts: dict[str, Any]) -> None:
    for name in ("guided", "zigzag", "one prompt, one picture", "embedded behind", "embedded before"):
        assert facts[name] < 1e-4, name
    assert facts["the same again"] == 0
    assert facts["another picture"] > 0.02
    assert facts["zag's scale matters"] > 1e-3


def test_the_unet_looks_at_the_pictures_once(facts: dict[str, Any]) -> None:
    # Two sets of three views; two pictures, seen with the positive condition only.
    assert facts["together"] == [2] + 4 * [12]
    assert sorted(facts["apart"]) == [2] + 8 * [6]
    assert facts["conditions apart"] < 1e-5
    assert facts["two prompts, one picture"] == 2
    assert facts["shared look"] == 1


def test_loras_act_on_reference_attention_too(facts: dict[str, Any]) -> None:
    assert facts["reference parts"] > 0
    for name in ("lora", "ref"):
        assert facts[name] < 1e-4, name
        assert facts[f"{name} matters"] > 0.01, name
        assert facts[f"{name} unmatched"] == 0


ALONE = (
    PRELUDE
    + """
from comfy.samplers import calc_cond_batch

def again(args):
    (alone,) = calc_cond_batch(
        args["model"], [args["uncond"]], args["input"], args["sigma"], args["model_options"])
    facts["alone"] = relative_error(alone, args["uncond_denoised"])
    facts["sides differ"] = relative_error(args["cond_denoised"], args["uncond_denoised"])
    return args["denoised"]

with torch.inference_mode():
    pair = create_pair(folder, has_reference=True)
    scaled, latents = pictures(1, 8, 8)
    patched = pair.patched(reference=Reference(latents))
    patched.set_model_sampler_post_cfg_function(again, disable_cfg1_optimization=True)
    sample(patched, torch.randn(RIG.num_views, 4, 8, 8), torch.tensor([1.0, 0.0]),
           comfy_conditions(pair.condition(1, (64, 64)), RIG.num_views), 3.0)
"""
)


def test_a_negative_condition_evaluated_by_itself_has_no_picture_either(native_facts: NativeFacts) -> None:
    """As Self-Attention Guidance and DualModelGuider do; ComfyUI then numbers it like a positive one."""
    facts = native_facts(ALONE)
    assert facts["alone"] < 1e-5
    assert facts["sides differ"] > 0.01


REFUSALS = (
    PRELUDE
    + """
with torch.inference_mode():
    text = create_pair(folder / "text") if (folder / "text").mkdir() is None else None
    pair = create_pair(folder, has_reference=True)
    scaled, latents = pictures(2, 8, 8)
    facts["none"] = refusal(pair.patched)
    facts["of text"] = refusal(lambda: text.patched(reference=Reference(latents)))
    facts["other VAE"] = refusal(lambda: pair.patched(reference=Reference(torch.zeros(1, 16, 8, 8))))
    condition = pair.condition(1, (64, 64))
    def draw(count, size):
        patched = pair.patched(reference=Reference(torch.zeros(count, 4, size, size)))
        noise = torch.randn(RIG.num_views, 4, 8, 8)
        return refusal(lambda: sample(patched, noise, torch.tensor([1.0, 0.0]),
                                      comfy_conditions(condition, RIG.num_views), 1.0))
    from comfy.samplers import ksampler
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG
    guider, (positive, negative) = (
        Guider_DualCFG(pair.patched(reference=Reference(latents[:1]))),
        comfy_conditions(condition, RIG.num_views),
    )
    guider.set_conds(positive, positive, negative)
    guider.set_cfg(2.0, 2.0)
    noise = torch.randn(RIG.num_views, 4, 8, 8)
    sigmas = torch.tensor([1.0, 0.0])
    facts["two sides"] = refusal(
        lambda: guider.sample(noise, torch.zeros_like(noise), ksampler("euler"), sigmas)
    )
    facts["two for one"] = draw(2, 8)
    facts["other size"] = draw(1, 6)
    facts["fits"] = draw(1, 8)
"""
)


def test_what_does_not_fit_is_refused_in_words(native_facts: NativeFacts) -> None:
    facts = native_facts(REFUSALS)
    assert "draws the views of a picture, and none is connected" in facts["none"]
    assert "draws views of a text and cannot see a picture" in facts["of text"]
    assert "this model takes [pictures, 4, height, width]" in facts["other VAE"]
    assert "two positive conditionings (DualCFGGuider)" in facts["two sides"]
    assert "2 reference pictures are given for 1 sets of 3 views" in facts["two for one"]
    assert (
        "has 48x48 px, the views have 64x64. Set 'size' of Read Reference Image to 64" in facts["other size"]
    )
    assert facts["fits"] == "accepted"
