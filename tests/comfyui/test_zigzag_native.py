"""The zigzag sampler on ComfyUI's own UNet with the MV-Adapter: the core's ZMV-Sampling, network and all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

CODE = """
from dataclasses import replace
import comfy.sample
from comfy.k_diffusion.sampling import default_noise_sampler
from safetensors.torch import save_file
from pack.nodes.native import patch
from pack.nodes.native.guidance import embed_guidance
from pack.nodes.native.schedule import T2MVShiftSNR
from pack.nodes.native.zigzag.loop import ZigzagSettings
from pack.nodes.native.zigzag.node import ZigzagSampler
from pack.t2mv_core.samplers import SamplingSettings, sample_standard, sample_zmv

B = 2
with torch.inference_mode():
    pair = create_pair(folder)
    pair.bundle.unet.register_to_config(sample_size=8)
    lcm = pair.bundle.schedule
    ddim = replace(lcm, solver="ddim", timestep_spacing="trailing", final_alpha_bar=1.0)
    condition, cameras = pair.condition(B, (64, 64)), pair.cameras(RIG, 8, 8)
    first = torch.randn(B, RIG.num_views, 4, 8, 8)

    def expected(schedule, settings, sample):
        draw, given = default_noise_sampler(first.flatten(0, 1), seed=0), [first]
        def noise(size):
            if given:
                return given.pop()
            return draw(None, None).reshape(size)
        bundle = replace(pair.bundle, schedule=schedule)
        return sample(bundle, condition, cameras, noise, settings).denoised.flatten(0, 1)

    def found(model, name, schedule, *zigzag, cfg=5.0):
        visited = schedule.alpha_bar[schedule.timesteps(4)]
        sigmas = torch.cat([((1 - visited) / visited).sqrt().float(), torch.zeros(1)])
        kind = "lcm" if name == "lcm" else "the model's own"
        return comfy.sample.sample_custom(
            T2MVShiftSNR.execute(model, kind, 8.0).args[0], first.flatten(0, 1), cfg,
            ZigzagSampler(ZigzagSettings(name, *zigzag)), sigmas, *comfy_conditions(condition, RIG.num_views),
            torch.zeros_like(first.flatten(0, 1)), seed=0, disable_pbar=True,
        ) * pair.model.model.latent_format.scale_factor

    def embedded():
        # A UNet with a guidance input: cfg stays 1, the guidance of the zag is embedded.
        projection = "time_embedding.cond_proj.weight"
        pair.bundle.unet.get_parameter(projection).mul_(10)
        path = folder / "lcm.safetensors"
        save_file({projection: pair.bundle.unet.get_parameter(projection).clone()}, path)
        model = embed_guidance(pair.patched(), path, 7.0)
        core = SamplingSettings(4, 7.0, 1.0, 2, 1, 1.5, 0.3)
        zmv, standard = (expected(lcm, core, sample) for sample in (sample_zmv, sample_standard))
        facts["embedded"] = {
            "error": relative_error(found(model, "lcm", lcm, 2, 1, 1.5, 0.3, cfg=1.0), zmv),
            "standard": relative_error(standard, zmv),
            "view scale ignored": relative_error(found(model, "lcm", lcm, 2, 1, 1.5, 1.0, cfg=1.0), zmv),
            "guidance ignored": relative_error(found(model, "lcm", lcm, 2, 1, 7.0, 0.3, cfg=1.0), zmv),
        }
        facts["refusal"] = refusal(lambda: found(model, "lcm", lcm, 1, 1, 0.0, 1.0, cfg=1.0))

    def without_cameras():
        # The model with multiview attention and no hook for cameras, against cameras that are scaled to 0:
        # forward by the node's view scale, back by the sampler's.
        hooks, patch._patch_residuals = patch._patch_residuals, lambda *_: None
        bare = pair.patched()
        patch._patch_residuals = hooks
        plain = found(bare, "lcm", lcm, 2, 1, 0.5, 1.0)
        dropped, kept = (
            found(pair.patched(view_scale=0.0), "lcm", lcm, 2, 1, 0.5, scale) for scale in (0.0, 1.0)
        )
        facts["without cameras"] = {
            "equal": torch.equal(dropped, plain), "cameras back": relative_error(kept, plain)
        }

    without_cameras()
    for name, schedule in (("lcm", lcm), ("euler_ancestral", ddim)):
        for zigzag in ((1, 1, 1.0, 0.3), (2, 2, 0.5, 0.0)):
            core = SamplingSettings(4, 5.0, 1.0, *zigzag)
            zmv, standard = (expected(schedule, core, sample) for sample in (sample_zmv, sample_standard))
            same_views = found(pair.patched(), name, schedule, *zigzag[:3], 1.0)
            facts[f"{name} {zigzag[0]}"] = {
                "error": relative_error(found(pair.patched(), name, schedule, *zigzag), zmv),
                "standard": relative_error(standard, zmv),
                "view scale ignored": relative_error(same_views, zmv),
            }
    pair = create_pair(folder, replace(SMALL, guidance=64))
    pair.bundle.unet.register_to_config(sample_size=8)
    cameras = pair.cameras(RIG, 8, 8)
    embedded()
"""


@pytest.fixture(scope="module")
def facts(native_facts: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """Relative errors against the core, run once."""
    return native_facts(CODE)


@pytest.mark.parametrize("case", ["lcm 1", "lcm 2", "euler_ancestral 1", "euler_ancestral 2"])
def test_with_the_adapter_it_is_zmv_sampling(facts: dict[str, Any], case: str) -> None:
    found = facts[case]
    assert found["error"] < 1e-3
    assert found["standard"] > 0.02
    assert found["view scale ignored"] > 10 * found["error"]


def test_a_zag_at_view_scale_0_is_that_of_a_model_without_cameras(facts: dict[str, Any]) -> None:
    found = facts["without cameras"]
    assert found["equal"]
    assert found["cameras back"] > 1e-3


def test_where_guidance_is_embedded_that_is_what_a_zag_weakens(facts: dict[str, Any]) -> None:
    found = facts["embedded"]
    assert found["error"] < 1e-3
    assert found["guidance ignored"] > 10 * found["error"]
    assert found["view scale ignored"] > 10 * found["error"]
    assert "inverse_guidance=0 is too low for a model with embedded guidance" in facts["refusal"]
