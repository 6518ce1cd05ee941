"""ComfyUI's own UNet with the MV-Adapter against our diffusers path: same weights, same numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

NativeFacts = Callable[..., dict[str, Any]]

EVALUATE = """
import comfy.ldm.modules.attention as attention

facts["attention"] = attention.optimized_attention.__name__
with torch.inference_mode():
    pair = create_pair(folder)
    for name, num_prompts, height, width, scales in (
        ("one set", 1, 8, 8, (1.0, 1.0)),
        ("two sets, not square", 2, 12, 16, (1.0, 1.0)),
        ("levels with an odd height", 1, 10, 6, (1.0, 1.0)),
        ("weaker cameras", 1, 8, 8, (1.0, 0.4)),
        ("no cameras", 1, 8, 8, (1.0, 0.0)),
        ("weaker multiview attention", 1, 8, 8, (0.3, 1.0)),
    ):
        mv_scale, view_scale = scales
        for processor in pair.bundle.unet.attn_processors.values():
            processor.mv_scale = mv_scale
        x = torch.randn(num_prompts, RIG.num_views, 4, height, width)
        condition = pair.condition(num_prompts, (8 * height, 8 * width))
        cameras = pair.cameras(RIG, height, width)
        ours = predict_noise(pair.bundle, x, 620, condition, cameras, 1.0, view_scale)
        theirs = evaluate(pair.patched(mv_scale=mv_scale, view_scale=view_scale), x, 620, condition)
        facts[name] = relative_error(theirs, ours)
        facts["plain: " + name] = relative_error(evaluate(pair.model, x, 620, condition), ours)
        by_option = pair.patched(mv_scale=mv_scale, view_scale=9.0)
        by_option.model_options["transformer_options"]["t2mv_view_scale"] = view_scale  # as a sampler may
        facts[name + ", by option"] = relative_error(evaluate(by_option, x, 620, condition), ours)
"""


@pytest.mark.parametrize(
    ("option", "function", "dynamic_vram"),
    [
        ("", "attention_sub_quad", False),
        ("", "attention_sub_quad", True),
        ("use_pytorch_cross_attention", "attention_pytorch", False),
        ("use_split_cross_attention", "attention_split", False),
    ],
    indirect=["dynamic_vram"],
)
def test_one_evaluation_is_the_diffusers_paths(native_facts: NativeFacts, option: str, function: str) -> None:
    facts = native_facts(EVALUATE, before=f"args.{option} = True" if option else "")
    assert facts.pop("attention") == function
    assert len(facts) == 18
    for name, error in facts.items():
        if name.startswith("plain: "):
            assert error > 0.02, name  # without the adapter it is another model
        else:
            assert error < 1e-5, name


RUNS = """
import functools
from dataclasses import replace
from safetensors.torch import save_file
from pack.nodes.native.guidance import embed_guidance
from pack.nodes.native.schedule import T2MVShiftSNR
from pack.t2mv_core.samplers.settings import SamplingSettings
from pack.t2mv_core.samplers.standard import sample_standard

def shift(model, sampling="the model's own", scale=8.0):
    return T2MVShiftSNR.execute(model, sampling, scale).args[0]

def sigma_of(t):
    alpha_bar = pair.bundle.schedule.alpha_bar[t]
    return ((1 - alpha_bar) / alpha_bar).sqrt().float()

def with_end(sigmas):
    return torch.cat([sigmas, torch.zeros(1)])

def ours_lcm(guidance):
    draws = iter(noises)
    record = sample_standard(
        pair.bundle, condition, cameras, lambda size: next(draws).reshape(size), SamplingSettings(4, guidance)
    )
    return record.denoised.flatten(0, 1) / latent_scale

def theirs_lcm(model, cfg):
    draws, sigmas = iter(noises[1:]), with_end(sigma_of(pair.bundle.schedule.timesteps(4)))
    return sample(
        shift(model, "lcm"), noises[0].flatten(0, 1), sigmas, comfy_conditions(condition, RIG.num_views), cfg,
        "lcm", lambda *_: next(draws).flatten(0, 1),
    )

def control():
    sizes = [(64, 8)] * 3 + [(64, 4)] + [(128, 4)] * 2 + [(128, 2)] * 3
    skips = [0.3 * torch.randn(6, channels, px, px) for channels, px in sizes]
    middle = 0.3 * torch.randn(6, 128, 2, 2)
    unet, x = pair.bundle.unet, noises[0]
    alone = predict_noise(pair.bundle, x, 620, condition, cameras, 1.0)
    unet.forward = functools.partial(
        type(unet).forward, unet, down_block_additional_residuals=skips, mid_block_additional_residual=middle
    )
    ours = predict_noise(pair.bundle, x, 620, condition, cameras, 1.0)
    del unet.forward
    parts = {"input": [], "middle": [middle], "output": list(skips)}  # as ComfyUI's ControlNet gives them
    facts["controlled"] = relative_error(evaluate(pair.patched(), x, 620, condition, parts), ours)
    facts["control matters"] = relative_error(alone, ours)

def schedules():
    plain, lcm = shift(pair.model), shift(pair.model, "lcm").get_model_object("model_sampling")
    sigmas = plain.get_model_object("model_sampling").sigmas
    facts["shifted sigmas"] = relative_error(sigmas, sigma_of(torch.arange(1000)))
    facts["shifted LCM sigmas"] = relative_error(lcm.sigmas, sigma_of(torch.arange(19, 1000, 20)))
    unshifted = shift(pair.model, scale=1.0).get_model_object("model_sampling").sigmas
    facts["unshifted"] = torch.equal(unshifted, pair.model.model.model_sampling.sigmas)
    facts["LCM keeps its timesteps"] = int(lcm.timestep(sigma_of(759)[None])[0])

def lcm():
    expected = ours_lcm(5.0)
    facts["LCM, 4 steps"] = relative_error(theirs_lcm(pair.patched(), 5.0), expected)
    facts["LCM without the adapter"] = relative_error(theirs_lcm(pair.model, 5.0), expected)

def euler():
    # Written out: x' = x + (sigma' - sigma)·eps, in ComfyUI's variance-exploding coordinates.
    timesteps = [999, 749, 499, 249]
    sigmas = with_end(sigma_of(torch.tensor(timesteps)))
    x = noises[0] * (1 + sigmas[0] ** 2) ** 0.5
    for step, t in enumerate(timesteps):
        scaled = x / (1 + sigmas[step] ** 2) ** 0.5
        noise_pred = predict_noise(pair.bundle, scaled, t, condition, cameras, 5.0)
        x = x + (sigmas[step + 1] - sigmas[step]) * noise_pred
    conditions = comfy_conditions(condition, RIG.num_views)
    run = lambda model: sample(shift(model), noises[0].flatten(0, 1), sigmas, conditions, 5.0)
    together = run(pair.patched())
    facts["Euler, 4 steps"] = relative_error(together, x.flatten(0, 1) / latent_scale)

    apart = pair.patched()
    need = type(apart.model).memory_required
    calls, before = [], apart.model.diffusion_model._forward
    apart.model.diffusion_model._forward = lambda x, *a, **k: calls.append(len(x)) or before(x, *a, **k)
    type(apart.model).memory_required = lambda self, shape, **_: 0 if shape[0] <= 6 else 1e18
    facts["conditions apart"] = relative_error(run(apart), together)
    facts["batches apart"] = sorted(set(calls))
    type(apart.model).memory_required = need
    calls.clear()
    run(apart)
    facts["batches together"] = sorted(set(calls))
    del apart.model.diffusion_model._forward

def embedded():
    # A latent consistency UNet, whose guidance input ComfyUI leaves out.
    key = "time_embedding.cond_proj.weight"
    pair.bundle.unet.get_parameter(key).mul_(10)
    weight = pair.bundle.unet.get_parameter(key).clone()
    for name, tensors in (
        ("lcm", {key: weight}), ("original names", {"time_embed.cond_proj.weight": weight}),
        ("no lcm", {"other": torch.ones(1)}), ("other lcm", {key: torch.ones(99, 64)}),
    ):
        save_file(tensors, folder / f"{name}.safetensors")
    patched, expected = pair.patched(), ours_lcm(7.0)
    for name in ("lcm", "original names"):
        guided = embed_guidance(patched, folder / f"{name}.safetensors", 7.0)
        facts[f"embedded, {name}"] = relative_error(theirs_lcm(guided, 1.0), expected)
    before = embed_guidance(pair.model, folder / "lcm.safetensors", 3.0)
    guided = apply_adapter(before, pair.adapter_file, RIG)
    facts["embedded before the adapter"] = relative_error(theirs_lcm(guided, 1.0), ours_lcm(3.0))
    facts["not embedded"] = relative_error(theirs_lcm(patched, 1.0), expected)
    for name in ("no lcm", "other lcm"):
        facts[name] = refusal(lambda: embed_guidance(patched, folder / f"{name}.safetensors", 7.0))

with torch.inference_mode():
    lcm_unet = replace(SMALL, guidance=64)
    for size, parts in ((SMALL, (control, schedules, lcm, euler)), (lcm_unet, (embedded,))):
        pair = create_pair(folder, size)
        pair.bundle.unet.register_to_config(sample_size=8)
        latent_scale = pair.model.model.latent_format.scale_factor
        condition, cameras = pair.condition(2, (64, 64)), pair.cameras(RIG, 8, 8)
        noises = [torch.randn(2, RIG.num_views, 4, 8, 8) for _ in range(5)]
        for part in parts:
            part()
"""


@pytest.fixture(scope="module")
def facts(native_facts: NativeFacts) -> dict[str, Any]:
    """What RUNS measured, once."""
    return native_facts(RUNS)


def test_a_controlnets_residuals_join_the_cameras(facts: dict[str, Any]) -> None:
    assert facts["controlled"] < 1e-5
    assert facts["control matters"] > 0.02


def test_the_shifted_schedule_is_the_methods(facts: dict[str, Any]) -> None:
    assert facts["shifted sigmas"] < 1e-6
    assert facts["shifted LCM sigmas"] < 1e-6
    assert facts["unshifted"]
    assert facts["LCM keeps its timesteps"] == 759


def test_trajectories_are_the_diffusers_paths(facts: dict[str, Any]) -> None:
    assert facts["LCM, 4 steps"] < 1e-4
    assert facts["LCM without the adapter"] > 0.02
    assert facts["Euler, 4 steps"] < 1e-4


def test_conditions_may_be_evaluated_apart(facts: dict[str, Any]) -> None:
    assert facts["conditions apart"] < 1e-5
    assert facts["batches apart"] == [6]  # two sets of three views, once per condition
    assert facts["batches together"] == [12]


def test_a_consistency_unet_is_guided_as_in_the_diffusers_path(facts: dict[str, Any]) -> None:
    for name in ("embedded, lcm", "embedded, original names", "embedded before the adapter"):
        assert facts[name] < 1e-4, name
    assert facts["not embedded"] > 1e-3
    assert "no guidance input" in facts["no lcm"]
    assert "width 99" in facts["other lcm"]
