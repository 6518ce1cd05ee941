"""ComfyUI's own UNet with the MV-Adapter against our diffusers path: same weights, same numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import ComfyInstall

PRELUDE = """
import json, torch
from pathlib import Path
sys.path.append(sys.argv[1])
folder, facts = Path(sys.argv[2]), {}
"""

EVALUATE = (
    """
if sys.argv[3]:
    setattr(args, sys.argv[3], True)
"""
    + PRELUDE
    + """
from native_pair import *
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
        told = pair.patched(mv_scale=mv_scale, view_scale=9.0)
        told.model_options["transformer_options"]["t2mv_view_scale"] = view_scale  # as a sampler may
        facts[name + ", told"] = relative_error(evaluate(told, x, 620, condition), ours)
print(json.dumps(facts))
"""
)


def run(comfy_install: ComfyInstall, code: str, folder: Path, *more: str) -> dict[str, Any]:
    here = str(Path(__file__).parent)
    return json.loads(comfy_install.run_code(code, here, str(folder), *more).splitlines()[-1])


@pytest.mark.parametrize(
    ("option", "function"),
    [
        ("", "attention_sub_quad"),
        ("use_pytorch_cross_attention", "attention_pytorch"),
        ("use_split_cross_attention", "attention_split"),
    ],
)
def test_one_evaluation_is_the_diffusers_paths(
    comfy_install: ComfyInstall, tmp_path: Path, option: str, function: str
) -> None:
    facts = run(comfy_install, EVALUATE, tmp_path, option)
    assert facts.pop("attention") == function
    assert len(facts) == 18
    for name, error in facts.items():
        if name.startswith("plain: "):
            assert error > 0.02, name  # without the adapter it is another model
        else:
            assert error < 1e-5, name


CONTROL = (
    PRELUDE
    + """
import functools
from native_pair import *

with torch.inference_mode():
    pair = create_pair(folder)
    x, condition, cameras = torch.randn(1, 3, 4, 8, 8), pair.condition(1, (64, 64)), pair.cameras(RIG, 8, 8)
    sizes = [(64, 8)] * 3 + [(64, 4)] + [(128, 4)] * 2 + [(128, 2)] * 3
    skips = [0.3 * torch.randn(3, channels, px, px) for channels, px in sizes]
    middle = 0.3 * torch.randn(3, 128, 2, 2)
    unet = pair.bundle.unet
    alone = predict_noise(pair.bundle, x, 620, condition, cameras, 1.0)
    unet.forward = functools.partial(
        unet.forward, down_block_additional_residuals=skips, mid_block_additional_residual=middle
    )
    ours = predict_noise(pair.bundle, x, 620, condition, cameras, 1.0)
    control = {"input": [], "middle": [middle], "output": list(skips)}  # as ComfyUI's ControlNet gives them
    facts["controlled"] = relative_error(evaluate(pair.patched(), x, 620, condition, control), ours)
    facts["control matters"] = relative_error(alone, ours)
print(json.dumps(facts))
"""
)


def test_a_controlnets_residuals_join_the_cameras(comfy_install: ComfyInstall, tmp_path: Path) -> None:
    facts = run(comfy_install, CONTROL, tmp_path)
    assert facts["controlled"] < 1e-5
    assert facts["control matters"] > 0.02


TRAJECTORIES = (
    PRELUDE
    + """
from native_pair import *
from dataclasses import replace
from pack.nodes.native.schedule import T2MVShiftSNR
from pack.t2mv_core.samplers.settings import SamplingSettings
from pack.t2mv_core.samplers.standard import sample_standard

def shift(model, sampling="the model's own", scale=8.0):
    return T2MVShiftSNR.execute(model, sampling, scale).args[0]

with torch.inference_mode():
    pair = create_pair(folder)
    pair.bundle.unet.register_to_config(sample_size=8)
    schedule, num_views = pair.bundle.schedule, RIG.num_views
    alpha_bar = schedule.alpha_bar
    sigma_of = lambda t: ((1 - alpha_bar[t]) / alpha_bar[t]).sqrt().float()
    plain, lcm = shift(pair.model), shift(pair.model, "lcm")
    facts["shifted sigmas"] = relative_error(
        plain.get_model_object("model_sampling").sigmas, sigma_of(torch.arange(1000))
    )
    facts["shifted LCM sigmas"] = relative_error(
        lcm.get_model_object("model_sampling").sigmas, sigma_of(torch.arange(19, 1000, 20))
    )
    unshifted = shift(pair.model, scale=1.0).get_model_object("model_sampling").sigmas
    facts["unshifted"] = torch.equal(unshifted, pair.model.model.model_sampling.sigmas)
    found = lcm.get_model_object("model_sampling").timestep(sigma_of(759)[None])
    facts["LCM keeps its timesteps"] = int(found[0])

    condition, cameras = pair.condition(2, (64, 64)), pair.cameras(RIG, 8, 8)
    conditions = comfy_conditions(condition, num_views)
    noises = [torch.randn(2, num_views, 4, 8, 8) for _ in range(5)]
    told = iter(noises)
    record = sample_standard(
        pair.bundle, condition, cameras, lambda size: next(told).reshape(size), SamplingSettings(4, 5.0)
    )
    latent_scale = pair.model.model.latent_format.scale_factor
    expected = record.denoised.flatten(0, 1) / latent_scale
    sigmas = torch.cat([sigma_of(schedule.timesteps(4)), torch.zeros(1)])
    def lcm_run(model):
        told = iter(noises[1:])
        return sample(
            shift(model, "lcm"), noises[0].flatten(0, 1), sigmas, conditions, 5.0, "lcm",
            lambda *_: next(told).flatten(0, 1),
        )
    facts["LCM, 4 steps"] = relative_error(lcm_run(pair.patched()), expected)
    facts["LCM without the adapter"] = relative_error(lcm_run(pair.model), expected)

    # Euler, written out: x' = x + (sigma' - sigma)·eps, in ComfyUI's variance-exploding coordinates.
    timesteps = [999, 749, 499, 249]
    sigmas = torch.cat([sigma_of(torch.tensor(timesteps)), torch.zeros(1)])
    x = noises[0] * (1 + sigmas[0] ** 2) ** 0.5
    for step, t in enumerate(timesteps):
        scaled = x / (1 + sigmas[step] ** 2) ** 0.5
        noise_pred = predict_noise(pair.bundle, scaled, t, condition, cameras, 5.0)
        x = x + (sigmas[step + 1] - sigmas[step]) * noise_pred
    expected = x.flatten(0, 1) / latent_scale
    euler_run = lambda model: sample(shift(model), noises[0].flatten(0, 1), sigmas, conditions, 5.0)
    together = euler_run(pair.patched())
    facts["Euler, 4 steps"] = relative_error(together, expected)

    apart = pair.patched()
    need = type(apart.model).memory_required
    calls, before = [], apart.model.diffusion_model._forward
    apart.model.diffusion_model._forward = lambda x, *a, **k: calls.append(len(x)) or before(x, *a, **k)
    type(apart.model).memory_required = lambda self, shape, **_: 0 if shape[0] <= 6 else 1e18
    facts["conditions apart"] = relative_error(euler_run(apart), together)
    facts["batches apart"] = sorted(set(calls))
    type(apart.model).memory_required = need
    calls.clear()
    euler_run(apart)
    facts["batches together"] = sorted(set(calls))
    del apart.model.diffusion_model._forward
print(json.dumps(facts))
"""
)


def test_trajectories_are_the_diffusers_paths(comfy_install: ComfyInstall, tmp_path: Path) -> None:
    facts = run(comfy_install, TRAJECTORIES, tmp_path)
    assert facts["shifted sigmas"] < 1e-6
    assert facts["shifted LCM sigmas"] < 1e-6
    assert facts["unshifted"]
    assert facts["LCM keeps its timesteps"] == 759
    assert facts["LCM, 4 steps"] < 1e-4
    assert facts["LCM without the adapter"] > 0.02
    assert facts["Euler, 4 steps"] < 1e-4
    assert facts["conditions apart"] < 1e-5
    assert facts["batches apart"] == [6]  # two sets of three views, once per condition
    assert facts["batches together"] == [12]
