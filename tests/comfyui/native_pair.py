"""One random model twice, for processes like ComfyUI's: as ComfyUI's MODEL, and as our diffusers path.

Imported by code that runs in ComfyUI's Python (`ComfyInstall.run_code`), never by pytest itself.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.samplers
import comfy.supported_models
import torch
from comfy.model_patcher import ModelPatcher

PACK_DIR = Path(__file__).parents[2]


def load_pack() -> None:
    """The pack under the name `pack`, loaded by path as ComfyUI does."""
    spec = importlib.util.spec_from_file_location("pack", PACK_DIR / "__init__.py")
    sys.modules["pack"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["pack"])
    sys.path.append(str(PACK_DIR))  # for the benchmarks' files of random weights


load_pack()

from pack.nodes.native.patch import adapter_of, apply_adapter  # noqa: E402
from pack.t2mv_core.bundle import ModelBundle  # noqa: E402
from pack.t2mv_core.cameras import CameraRig  # noqa: E402
from pack.t2mv_core.denoiser import compute_camera_features, predict_noise  # noqa: E402
from pack.t2mv_core.lora.adapters import add_lora, remove_lora, trainable_parameters  # noqa: E402
from pack.t2mv_core.lora.files import save_lora  # noqa: E402
from pack.t2mv_core.scheduler_config import schedule_from_config  # noqa: E402
from pack.t2mv_core.text import TextCondition  # noqa: E402
from pack.t2mv_core.unet.adapter import create_camera_encoder, save_adapter  # noqa: E402
from pack.t2mv_core.unet.attention import install_multiview_attention  # noqa: E402

from benchmarks.sdxl_files import Size, create_modules, original_unet  # noqa: E402

SMALL = Size(
    widths=(64, 128, 128), depths=(0, 1, 2), text=((64, 2, 96, 600), (128, 3, 160, 600)), pooled=64,
    vae_widths=(32, 64), vae_layers=1, tokens=12,
)  # fmt: skip
RIG = CameraRig((0.0, 45.0, 180.0), (0.0, 10.0, 0.0))


@dataclass
class Pair:
    """The same weights on both sides.

    Attributes:
        bundle: our path; without VAE and text encoders.
        model: ComfyUI's, without the adapter.
        adapter_file: the MV-Adapter.
        size: of both.
    """

    bundle: ModelBundle
    model: ModelPatcher
    adapter_file: Path
    size: Size

    def patched(self, rig: CameraRig = RIG, **settings: Any) -> ModelPatcher:
        """ComfyUI's model with the adapter."""
        return apply_adapter(self.model, self.adapter_file, rig, **settings)

    def condition(self, num_prompts: int, image_px: tuple[int, int]) -> TextCondition:
        """Random text features, with negatives."""
        width = sum(encoder[0] for encoder in self.size.text)
        ids = torch.tensor([[image_px[0], image_px[1], 0, 0, image_px[0], image_px[1]]]).float()
        sizes = ((self.size.tokens, width), (self.size.pooled,))
        positive, negative = ([torch.randn(num_prompts, *shape) for shape in sizes] for _ in range(2))
        return TextCondition(*positive, ids.repeat(num_prompts, 1), *negative)

    def cameras(self, rig: CameraRig, height: int, width: int) -> Any:
        """Camera features for latents of a size."""
        return compute_camera_features(self.bundle.camera_encoder, rig, 8 * height, 8 * width)


def create_pair(
    folder: Path, size: Size = SMALL, dtype: torch.dtype = torch.float32, seed: int = 0,
    has_reference: bool = False,
) -> Pair:  # fmt: skip
    """Random weights for both; the adapter's are as strong as the UNet's own."""
    torch.manual_seed(seed)
    unet = create_modules(size)["unet"].to(dtype)
    model = comfy_model(original_unet(unet.state_dict(), size), dtype)
    install_multiview_attention(unet, has_reference)
    unet.to(dtype)
    encoder = create_camera_encoder(unet, vae_scale_factor=8).to(dtype)
    for module in (unet, encoder):
        module.eval().requires_grad_(False)
    adapter_file = folder / "mvadapter.safetensors"
    save_adapter(unet, encoder, adapter_file)
    schedule = schedule_from_config({"_class_name": "LCMScheduler"})
    tasks = ("image-to-multiview",) if has_reference else ("text-to-multiview",)
    bundle = ModelBundle(unet, None, None, None, encoder, schedule, tasks=tasks)
    return Pair(bundle, model, adapter_file, size)


def comfy_model(
    weights: dict[str, torch.Tensor], dtype: torch.dtype, computes_in: torch.dtype | None = None
) -> ModelPatcher:
    """ComfyUI's SDXL for weights in the original layout, of any widths, stored in one type."""
    config = comfy.supported_models.SDXL(comfy.model_detection.detect_unet_config(weights, ""))
    config.set_inference_dtype(dtype, computes_in)
    model = config.get_model(weights, "", device="cpu")
    model.load_model_weights(dict(weights), "")
    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", ModelPatcher)  # as its loaders choose
    return patcher(model.eval(), comfy.model_management.get_torch_device(), torch.device("cpu"))


def comfy_conditions(condition: TextCondition, num_views: int) -> tuple[list[Any], list[Any]]:
    """The same text features as ComfyUI's positive and negative CONDITIONING, one row per view."""
    height, width = (int(x) for x in condition.time_ids[0, :2])
    sides = (
        (condition.prompt_embeds, condition.pooled_embeds),
        (condition.negative_embeds, condition.negative_pooled),
    )
    return tuple(
        [[embeds.repeat_interleave(num_views, 0), {
            "pooled_output": pooled.repeat_interleave(num_views, 0), "width": width, "height": height,
        }]]
        for embeds, pooled in sides
    )  # fmt: skip


def evaluate(
    model: ModelPatcher, x: torch.Tensor, timestep: int, condition: TextCondition, control: Any = None,
    loads: bool = True,
) -> torch.Tensor:  # fmt: skip
    """The noise that ComfyUI's model predicts for latents [B, V, C, H, W] at one of SDXL's timesteps."""
    if loads:
        comfy.model_management.load_models_gpu([model, *model.get_nested_additional_models()])
    sampling, flat = model.model.model_sampling, x.flatten(0, 1)
    sigma = sampling.sigma(torch.tensor(float(timestep)))
    (embeds, facts), _ = (side[0] for side in comfy_conditions(condition, x.shape[1]))
    denoised = model.model.apply_model(
        flat * (1 + sigma**2) ** 0.5, sigma.expand(len(flat)), c_crossattn=embeds,
        y=model.model.encode_adm(**facts, device="cpu"), control=control,
        # ComfyUI's samplers add the wrappers, too.
        transformer_options={**model.model_options["transformer_options"], "wrappers": model.wrappers},
    )  # fmt: skip
    return ((flat * (1 + sigma**2) ** 0.5 - denoised) / sigma).reshape(x.shape)


def sample(
    model: ModelPatcher, noise: torch.Tensor, sigmas: torch.Tensor, conditions: tuple[Any, Any], cfg: float,
    sampler: str = "euler", noise_sampler: Any = None,
) -> torch.Tensor:  # fmt: skip
    """ComfyUI's whole way from noise to latents (its guider, batching, memory management)."""
    options = {} if noise_sampler is None else {"noise_sampler": noise_sampler}
    return comfy.sample.sample_custom(
        model, noise, cfg, comfy.samplers.ksampler(sampler, options), sigmas, *conditions,
        torch.zeros_like(noise), seed=0, disable_pbar=True,
    )  # fmt: skip


def relative_error(value: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest deviation over the largest value."""
    return float((value.float() - expected.float()).abs().max() / expected.float().abs().max())


def write_lora(pair: Pair, path: Path) -> None:
    """A random LoRA over all of a pair's layers, multiview ones included."""
    add_lora(pair.bundle.unet, rank=2, alpha=3, name="lora")
    for parameter in trainable_parameters(pair.bundle.unet, "lora"):
        parameter.normal_(std=0.15)
    save_lora(pair.bundle.unet, path, {}, name="lora")
    remove_lora(pair.bundle.unet, "lora")


def refusal(call: Callable[[], object]) -> str:
    """The sentence with which a call is refused."""
    try:
        call()
    except ValueError as error:
        return str(error)
    return "accepted"


__all__ = [
    "RIG", "SMALL", "CameraRig", "Pair", "Size", "adapter_of", "apply_adapter", "comfy_conditions",
    "comfy_model", "create_pair", "evaluate", "predict_noise", "refusal", "relative_error",
    "sample", "write_lora",
]  # fmt: skip
