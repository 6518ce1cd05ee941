"""A latent consistency UNet in ComfyUI, with the guidance input that ComfyUI itself leaves out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import ComfyInstall

LCM_UNET = """
import json, torch
from dataclasses import replace
from pathlib import Path
sys.path.append(sys.argv[1])
folder, facts = Path(sys.argv[2]), {}
from native_pair import *
from safetensors.torch import save_file
from pack.nodes.native.guidance import embed_guidance
from pack.nodes.native.schedule import T2MVShiftSNR
from pack.t2mv_core.samplers.settings import SamplingSettings
from pack.t2mv_core.samplers.standard import sample_standard

with torch.inference_mode():
    pair = create_pair(folder, replace(SMALL, guidance=64))
    unet, schedule, num_views = pair.bundle.unet, pair.bundle.schedule, RIG.num_views
    unet.register_to_config(sample_size=8)
    key = "time_embedding.cond_proj.weight"
    unet.get_parameter(key).mul_(10)
    weight = unet.get_parameter(key).clone()
    save_file({key: weight}, folder / "lcm.safetensors")
    save_file({"time_embed.cond_proj.weight": weight}, folder / "original.safetensors")
    save_file({"other": torch.ones(1)}, folder / "no lcm.safetensors")
    save_file({key: torch.ones(99, 64)}, folder / "other lcm.safetensors")

    condition, cameras = pair.condition(1, (64, 64)), pair.cameras(RIG, 8, 8)
    noises = [torch.randn(1, num_views, 4, 8, 8) for _ in range(5)]
    def ours(guidance):
        told = iter(noises)
        record = sample_standard(
            pair.bundle, condition, cameras, lambda size: next(told), SamplingSettings(4, guidance)
        )
        return record.denoised.flatten(0, 1) / pair.model.model.latent_format.scale_factor
    alpha_bar = schedule.alpha_bar[schedule.timesteps(4)]
    sigmas = torch.cat([((1 - alpha_bar) / alpha_bar).sqrt().float(), torch.zeros(1)])
    def theirs(model):
        told = iter(noises[1:])
        shifted = T2MVShiftSNR.execute(model, "lcm", 8.0).args[0]
        return sample(
            shifted, noises[0].flatten(0, 1), sigmas, comfy_conditions(condition, num_views), 1.0, "lcm",
            lambda *_: next(told).flatten(0, 1),
        )
    patched = pair.patched()
    for name, file in (("lcm", "lcm"), ("original names", "original")):
        guided = embed_guidance(patched, folder / f"{file}.safetensors", 7.0)
        facts[name] = relative_error(theirs(guided), ours(7.0))
    before = embed_guidance(pair.model, folder / "lcm.safetensors", 3.0)
    guided = apply_adapter(before, pair.adapter_file, RIG)
    facts["before the adapter"] = relative_error(theirs(guided), ours(3.0))
    facts["without"] = relative_error(theirs(patched), ours(7.0))
    for name in ("no lcm", "other lcm"):
        try:
            embed_guidance(patched, folder / f"{name}.safetensors", 7.0)
        except ValueError as error:
            facts[name] = str(error)
print(json.dumps(facts))
"""


def test_a_consistency_unet_is_guided_as_in_the_diffusers_path(
    comfy_install: ComfyInstall, tmp_path: Path
) -> None:
    out = comfy_install.run_code(LCM_UNET, str(Path(__file__).parent), str(tmp_path))
    facts = json.loads(out.splitlines()[-1])
    for name in ("lcm", "original names", "before the adapter"):
        assert facts[name] < 1e-4, name
    assert facts["without"] > 1e-3
    assert "no guidance input" in facts["no lcm"]
    assert "width 99" in facts["other lcm"]
