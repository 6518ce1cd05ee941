"""Decoding: ComfyUI's own VAE makes the same pictures of the latent; cancelling."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import ComfyInstall

# ComfyUI builds SDXL's kind of VAE only (four levels, 32 groups): here a thin one with random weights.
DECODE_WITH_COMFYUIS_VAE = """
import comfy.model_management as model_management
import comfy.sd
from types import SimpleNamespace
from diffusers import AutoencoderKL

from pack.nodes.common.memory import Residency
from pack.nodes.sampling.sample import comfy_latent, decode_set
from pack.nodes.sockets import ModelHandle

torch.manual_seed(0)
ours = AutoencoderKL(
    block_out_channels=(32, 32, 32, 64), down_block_types=("DownEncoderBlock2D",) * 4, latent_channels=4,
    up_block_types=("UpDecoderBlock2D",) * 4, norm_num_groups=32, layers_per_block=2,
    scaling_factor=0.13025,
).eval()
with torch.no_grad():
    ours.decoder.conv_out.weight.mul_(5)
sizes = {"ch": 32, "ch_mult": [1, 1, 1, 2], "num_res_blocks": 2, "z_channels": 4, "in_channels": 3,
         "out_ch": 3, "resolution": 64, "attn_resolutions": [], "dropout": 0.0, "double_z": True}
theirs = comfy.sd.VAE(
    sd={name: weight.clone() for name, weight in ours.state_dict().items()},
    config={"params": {"ddconfig": sizes, "embed_dim": 4}}, dtype=torch.float32,
)
model = ModelHandle(SimpleNamespace(vae=ours), Residency(None, {"vae": ours}))
sets = [torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)]
with torch.inference_mode():
    images = torch.cat([decode_set(model, views) for views in sets])
    latent = comfy_latent(model, sets)
    decoded = theirs.decode(latent["samples"])

    # Cancelled while the second view is decoded.
    decode_whole = ours.decode
    num_decoded = 0

    def cancel(latents, **options):
        global num_decoded
        num_decoded += 1
        if num_decoded == 2:
            model_management.interrupt_current_processing(True)
        return decode_whole(latents, **options)

    ours.decode = cancel
    try:
        decode_set(model, sets[0])
    except model_management.InterruptProcessingException:
        pass
print(json.dumps({
    "keys": list(latent),
    "samples": list(latent["samples"].shape),
    "shapes": [list(images.shape), list(decoded.shape)],
    "difference": float((decoded - images).abs().max()),
    "contrast": float(images.std()),
    "views decoded before the cancel": num_decoded,
}))
"""


def test_pictures_are_what_comfyuis_vae_makes_of_the_latent_and_can_be_cancelled(
    comfy_install: ComfyInstall,
) -> None:
    facts = comfy_install.run_with_pack(DECODE_WITH_COMFYUIS_VAE)
    assert facts["keys"] == ["samples"]
    assert facts["samples"] == [6, 4, 8, 8]
    assert facts["shapes"] == [[6, 64, 64, 3]] * 2
    assert facts["difference"] < 1e-4 < 0.1 < facts["contrast"]
    assert facts["views decoded before the cancel"] == 2
