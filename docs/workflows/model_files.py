"""The model files that the example workflows name: where they are published and where they belong."""

from __future__ import annotations

from typing import Any

_HUB = "https://huggingface.co"
FILES = {  # folder under models/ and file -> address
    "checkpoints/sd_xl_base_1.0.safetensors": f"{_HUB}/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/"
    "sd_xl_base_1.0.safetensors",
    "diffusion_models/lcm-sdxl.safetensors": f"{_HUB}/latent-consistency/lcm-sdxl/resolve/main/"
    "diffusion_pytorch_model.fp16.safetensors",
    "vae/sdxl-vae-fp16-fix.safetensors": f"{_HUB}/madebyollin/sdxl-vae-fp16-fix/resolve/main/"
    "sdxl.vae.safetensors",
    "mvadapter/mvadapter_t2mv_sdxl.safetensors": f"{_HUB}/huanngzh/mv-adapter/resolve/main/"
    "mvadapter_t2mv_sdxl.safetensors",
    "mvadapter/mvadapter_i2mv_sdxl.safetensors": f"{_HUB}/huanngzh/mv-adapter/resolve/main/"
    "mvadapter_i2mv_sdxl.safetensors",
    "loras/lcm-lora-sdxl.safetensors": f"{_HUB}/latent-consistency/lcm-lora-sdxl/resolve/main/"
    "pytorch_lora_weights.safetensors",
    # The LoRA that the paper's authors trained; ComfyUI's page links to it, and downloads from the Hub only.
    "loras/mvc_zigal_lcm_sdxl.safetensors": "https://drive.google.com/file/d/1KTNNFPBrOAvwbz_5w0ufFMoooigmt3vL",
    "controlnet/controlnet-canny-sdxl-1.0-small.safetensors": f"{_HUB}/diffusers/"
    "controlnet-canny-sdxl-1.0-small/resolve/main/diffusion_pytorch_model.fp16.safetensors",
    "checkpoints/hunyuan3d-dit-v2-mv_fp16.safetensors": f"{_HUB}/Comfy-Org/hunyuan3D_2.0_repackaged/resolve/"
    "main/split_files/hunyuan3d-dit-v2-mv_fp16.safetensors",
    **{
        path: f"{_HUB}/Comfy-Org/Pixal3D/resolve/main/{path}"
        for path in (
            "clip_vision/dino_v3_L_naf_fp32.safetensors",
            "diffusion_models/pixal3d_multiview_int8_convrot.safetensors",
            "vae/trellis_2_shape_vae_bf16.safetensors",
        )
    },
    "background_removal/birefnet.safetensors": f"{_HUB}/Comfy-Org/BiRefNet/resolve/main/background_removal/"
    "birefnet.safetensors",
}
PATHS = set(FILES)
MODELS = {
    name: {"name": name, "url": url, "directory": folder}
    for path, url in FILES.items()
    for folder, name in [path.split("/")]
}


def named_in(api: dict[str, Any]) -> dict[str, list[dict[str, str]]]:
    """Return the files that each node of a workflow in API format names, as `properties.models` has them."""
    return {
        node: files
        for node, entry in api.items()
        if (files := [MODELS[value] for value in entry["inputs"].values() if value in list(MODELS)])
    }
