"""A small random SDXL twice: files for a running ComfyUI, and our diffusers path over the same weights.

The small UNet, its MV-Adapter, LoRAs, a ControlNet, a T2I-Adapter and pictures for them lie where ComfyUI's
own loaders look; `small_sdxl_node.py` tells it of the size. `Reference` samples them in diffusers' classes.
"""

from __future__ import annotations

import copy
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.sdxl_files import Size, create_modules, original_unet, unet_settings
from t2mv_core.bundle import ModelBundle
from t2mv_core.cameras import CameraRig
from t2mv_core.denoiser import CameraFeatures, compute_camera_features, predict_noise
from t2mv_core.lora.adapters import add_lora, remove_lora, trainable_parameters
from t2mv_core.lora.files import load_lora, save_lora
from t2mv_core.scheduler_config import schedule_from_config
from t2mv_core.text import TextCondition
from t2mv_core.unet.adapter import create_camera_encoder, save_adapter
from t2mv_core.unet.attention import install_multiview_attention
from tests.comfyui.workflows import node

if TYPE_CHECKING:
    from conftest import ComfyServer, Run

EXAMPLE = Path(__file__).parents[2] / "example_workflows" / "input" / "duck.png"
PACK_DIR, CARD = Path(__file__).parents[2], Path(__file__).with_name("imitated_card")
SIZE = Size(
    widths=(64, 128, 256), depths=(0, 1, 2), text=((64, 2, 96, 600), (128, 3, 160, 600)), pooled=64,
    vae_widths=(32, 64), vae_layers=1, tokens=12,
)  # fmt: skip
RIG = CameraRig((0.0, 90.0, 180.0, 270.0), (0.0,) * 4)
PX, STEPS, CFG, SEED = 128, 4, 4.0, 5
LATENT_SCALE = 0.13025


@dataclass
class Reference:
    """Our diffusers path over the same weights.

    Attributes:
        bundle: UNet with multiview attention, and camera encoder.
        controlnet: diffusers' ControlNet of the ControlNet file.
        t2i: diffusers' T2I-Adapter of the T2I-Adapter file.
        condition: the text features that ComfyUI gets, too.
        hints: one picture per view, [V, 3, H, W] in [0, 1].
    """

    bundle: ModelBundle
    controlnet: Any
    t2i: Any
    condition: TextCondition
    hints: Tensor

    def cameras(self) -> CameraFeatures:
        """Of the rig."""
        return compute_camera_features(self.bundle.camera_encoder, RIG, PX, PX)

    def euler(
        self,
        loras: dict[Path, float] | None = None,
        control_strength: float = 0.0,
        t2i_strength: float = 0.0,
        denoise: Any = None,
        cfg: float = CFG,
        steps: int = STEPS,
        zigzag: tuple[int, float, float] = (0, 1.0, 1.0),
    ) -> Tensor:
        """ComfyUI's latents after Euler's steps with the multiview schedule, [V, 4, H/8, W/8].

        Args:
            loras: file -> strength.
            control_strength: of the ControlNet, 0 without.
            t2i_strength: of the T2I-Adapter, 0 without.
            denoise: in place of the model: (x_vp, t, guidance) -> noise.
            cfg: guidance.
            steps: of ComfyUI's scheduler "simple".
            zigzag: how many first steps zigzag, guidance and view scale on the way back.
        """
        with torch.no_grad():
            predict = denoise or self.predictor(loras, control_strength, t2i_strength)
            timesteps = [999 - int(step * 1000 / steps) for step in range(steps)]
            sigmas = [self.sigma(t) for t in timesteps] + [0.0]
            x = self.noise() * (1 + sigmas[0] ** 2) ** 0.5
            for step, timestep in enumerate(timesteps):
                sigma, sigma_next = sigmas[step : step + 2]
                noise = predict(x / (1 + sigma**2) ** 0.5, timestep, cfg)
                if step < zigzag[0]:
                    x = x + (sigma_next - sigma) * noise
                    # Back: the later latent is shown, the earlier time told (docs/method.md, section 4).
                    noise = predict(x / (1 + sigma_next**2) ** 0.5, timestep, *zigzag[1:])
                    x = x + (sigma - sigma_next) * noise
                    noise = predict(x / (1 + sigma**2) ** 0.5, timestep, cfg)
                x = x + (sigma_next - sigma) * noise
        return x[0] / LATENT_SCALE

    def predictor(
        self, loras: dict[Path, float] | None = None, control_strength: float = 0.0, t2i_strength: float = 0.0
    ) -> Any:
        """ε of x_vp [1, V, ...] at t under a guidance, and a view scale if another than 1."""
        bundle, cameras = self.bundle, self.cameras()
        for path, strength in (loras or {}).items():
            bundle = load_lora(bundle, path, strength)
        if t2i_strength:
            added = self.t2i(self.hints)
            joined = (a + t2i_strength * b for a, b in zip(cameras.residuals, added, strict=True))
            cameras = CameraFeatures(tuple(joined))
        if control_strength:
            # A copy that shares the weights; only its `forward` is another.
            unet = copy.copy(bundle.unet)
            unet.forward = self._controlled(bundle.unet, control_strength)
            bundle = replace(bundle, unet=unet)
        return lambda x, timestep, guidance, view_scale=1.0: predict_noise(
            bundle, x, timestep, self.condition, cameras, guidance, view_scale
        )

    def rounded(self, dtype: torch.dtype) -> Reference:
        """The same with the weights that ComfyUI stores in a small type rounded to it; the adapter's stay."""
        found = copy.deepcopy(self)
        with torch.no_grad():
            for module in (found.bundle.unet, found.controlnet):
                for name, parameter in module.named_parameters():
                    if ".processor." not in name:
                        parameter.copy_(parameter.to(dtype))
        return found

    def sigma(self, timestep: int) -> float:
        """The shifted schedule's σ."""
        alpha_bar = float(self.bundle.schedule.alpha_bar[timestep])
        return ((1 - alpha_bar) / alpha_bar) ** 0.5

    def noise(self, seed: int = SEED) -> Tensor:
        """As ComfyUI draws it."""
        size = (RIG.num_views, 4, PX // 8, PX // 8)
        return torch.randn(size, generator=torch.Generator().manual_seed(seed))[None]

    def _controlled(self, unet: Any, strength: float) -> Any:
        def forward(sample: Tensor, timestep: Tensor, **inputs: Any) -> Any:
            words = inputs["encoder_hidden_states"].repeat_interleave(RIG.num_views, 0)
            hints = self.hints.repeat(len(sample) // RIG.num_views, 1, 1, 1)
            down, middle = self.controlnet(
                sample, timestep, words, hints, strength, return_dict=False,
                added_cond_kwargs=inputs["added_cond_kwargs"],
            )  # fmt: skip
            return type(unet).forward(
                unet, sample, timestep, **inputs,
                down_block_additional_residuals=down, mid_block_additional_residual=middle,
            )  # fmt: skip

        return forward


def write_base(base: Path) -> Reference:
    """Fill an empty folder for `start_server`: pack, test node, models and input; and the other side."""
    for name in ("custom_nodes", "user/default", "input"):
        (base / name).mkdir(parents=True)
    for name in ("diffusion_models", "mvadapter", "loras", "controlnet"):
        (base / "models" / name).mkdir(parents=True)
    (base / "custom_nodes" / "ComfyUI-T2MV").symlink_to(PACK_DIR, target_is_directory=True)
    shutil.copy(Path(__file__).with_name("small_sdxl_node.py"), base / "custom_nodes")
    torch.manual_seed(0)
    bundle = _write_model(base / "models")
    _write_loras(bundle, base / "models" / "loras")
    controlnet, t2i = _write_controls(base / "models" / "controlnet")
    shutil.copy(EXAMPLE, base / "input" / "object.png")
    hints = torch.stack([_write_hint(base / "input", view) for view in range(RIG.num_views)])
    for module in (bundle.unet, bundle.camera_encoder, controlnet, t2i):
        module.eval().requires_grad_(False)
    return Reference(bundle, controlnet, t2i, _write_conditions(base / "input"), hints)


def _write_model(models: Path) -> ModelBundle:
    unet = create_modules(SIZE)["unet"]
    weights = original_unet(unet.state_dict(), SIZE)
    save_file(weights, models / "diffusion_models" / "small.safetensors")
    weights |= {"time_embed.cond_proj.weight": 0.05 * torch.randn(SIZE.widths[0], 256)}
    save_file(weights, models / "diffusion_models" / "small-lcm.safetensors")
    plain = copy.deepcopy(unet)
    install_multiview_attention(unet)
    encoder = create_camera_encoder(unet, 8)
    save_adapter(unet, encoder, models / "mvadapter" / "small.safetensors")
    of_pictures = copy.deepcopy(plain)
    install_multiview_attention(of_pictures, has_reference=True)
    save_adapter(of_pictures, encoder, models / "mvadapter" / "small-i2mv.safetensors")
    nothing: Any = None
    schedule = schedule_from_config({"_class_name": "LCMScheduler"})
    return ModelBundle(unet, nothing, nothing, nothing, encoder, schedule)


def _write_loras(bundle: ModelBundle, folder: Path) -> None:
    """One with multiview parts, one in kohya's layout."""
    add_lora(bundle.unet, rank=2, alpha=2, name="views")
    with torch.no_grad():
        for parameter in trainable_parameters(bundle.unet, "views"):
            parameter.normal_(std=0.2)
    save_lora(bundle.unet, folder / "views.safetensors", {}, name="views")
    remove_lora(bundle.unet, "views")
    style: dict[str, Tensor] = {}
    for layer, width in (("input_blocks_4_1", 128), ("middle_block_1", 256), ("output_blocks_3_1", 128)):
        for part in ("attn1_to_q", "attn2_to_q"):
            name = f"lora_unet_{layer}_transformer_blocks_0_{part}"
            style |= {
                f"{name}.lora_down.weight": 0.3 * torch.randn(2, width),
                f"{name}.lora_up.weight": 0.3 * torch.randn(width, 2),
                f"{name}.alpha": torch.tensor(1.0),
            }
    save_file(style, folder / "style.safetensors")


def _write_controls(folder: Path) -> tuple[Any, Any]:
    """A ControlNet in the original layout and a T2I-Adapter in diffusers', neither starting from zero."""
    from diffusers import ControlNetModel, T2IAdapter

    unused = ("sample_size", "up_block_types", "time_cond_proj_dim")
    settings = {name: value for name, value in unet_settings(SIZE).items() if name not in unused}
    controlnet = ControlNetModel(**settings)
    with torch.no_grad():
        for name, parameter in controlnet.named_parameters():
            if name.startswith(("controlnet_down", "controlnet_mid", "controlnet_cond_embedding.conv_out")):
                parameter.normal_(std=0.1)
    save_file(original_controlnet(controlnet.state_dict()), folder / "control.safetensors")
    t2i = T2IAdapter(
        in_channels=3, channels=[*SIZE.widths, SIZE.widths[-1]], num_res_blocks=2, downscale_factor=16,
        adapter_type="full_adapter_xl",
    )  # fmt: skip
    save_file(t2i.state_dict(), folder / "t2i.safetensors")
    return controlnet, t2i


def original_controlnet(state: dict[str, Tensor], size: Size = SIZE) -> dict[str, Tensor]:
    """A ControlNet's weights under their original names."""
    own = {name: tensor for name, tensor in state.items() if not name.startswith("controlnet_")}
    out = original_unet(own, size)
    for name, tensor in state.items():
        part, *rest = name.split(".")
        if part == "controlnet_down_blocks":
            out[f"zero_convs.{rest[0]}.0.{rest[1]}"] = tensor
        elif part == "controlnet_mid_block":
            out[f"middle_block_out.0.{rest[0]}"] = tensor
        elif part == "controlnet_cond_embedding":
            number = {"conv_in": 0, "conv_out": 14}.get(rest[0])
            number = 2 * (int(rest[1]) + 1) if number is None else number
            out[f"input_hint_block.{number}.{rest[-1]}"] = tensor
    return out


def _write_hint(folder: Path, view: int) -> Tensor:
    pixels = torch.randint(0, 256, (PX, PX, 3), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(folder / f"hint{view}.png")
    return pixels.permute(2, 0, 1).float() / 255


def _write_conditions(folder: Path) -> TextCondition:
    found = {
        f"{side}_{part}": torch.randn(1, *shape)
        for side in ("prompt", "negative")
        for part, shape in (("embeds", (SIZE.tokens, 192)), ("pooled", (SIZE.pooled,)))
    }
    save_file(found, folder / "conditions.safetensors")
    ids = torch.tensor([[PX, PX, 0, 0, PX, PX]]).float()
    return TextCondition(
        found["prompt_embeds"], found["prompt_pooled"], ids, found["negative_embeds"],
        found["negative_pooled"],
    )  # fmt: skip


def sampled(name: str, model: list[Any], text: str = "text", **settings: Any) -> dict[str, Any]:
    """A KSampler and a SaveLatent behind a model; settings are the KSampler's."""
    settings = {
        "latent_image": ["latent", 0], "sampler_name": "euler", "scheduler": "simple", "cfg": CFG,
        "seed": SEED, "steps": STEPS, "denoise": 1.0, **settings,
    }  # fmt: skip
    return {
        name: node("KSampler", model=model, positive=[text, 0], negative=[text, 1], **settings),
        f"save {name}": node("SaveLatent", samples=[name, 0], filename_prefix=name.replace(" ", "-")),
    }


def zigzag(**settings: Any) -> dict[str, Any]:
    """A zigzag sampler of Euler's steps, with the view scale halved on the way back."""
    settings = {
        "sampler_name": "euler", "zigzag_steps": 1, "zigzag_repeats": 1, "inverse_guidance": 1.0,
        "inverse_view_scale": 0.5, **settings,
    }  # fmt: skip
    return node("T2MVCreateZigzagSampler", **settings)


def custom_sampled(
    name: str, model: list[Any], sampler: dict[str, Any], text: str = "text", cfg: float = CFG,
    steps: int = STEPS,
) -> dict[str, Any]:  # fmt: skip
    """SamplerCustomAdvanced with a CFGGuider and a SaveLatent behind a model."""
    return {
        f"guider {name}": node("CFGGuider", model=model, positive=[text, 0], negative=[text, 1], cfg=cfg),
        f"sampler {name}": sampler,
        f"sigmas {name}": node("BasicScheduler", model=model, scheduler="simple", steps=steps, denoise=1.0),
        f"noise {name}": node("RandomNoise", noise_seed=SEED),
        name: node(
            "SamplerCustomAdvanced", noise=[f"noise {name}", 0], guider=[f"guider {name}", 0],
            sampler=[f"sampler {name}", 0], sigmas=[f"sigmas {name}", 0], latent_image=["latent", 0],
        ),
        f"save {name}": node("SaveLatent", samples=[name, 0], filename_prefix=name.replace(" ", "-")),
    }  # fmt: skip


def graph(*branches: dict[str, Any]) -> dict[str, Any]:
    """The small model, four views, the adapter applied, the schedule shifted; and more nodes."""
    common = {
        "small": node("UNETLoader", unet_name="small.safetensors", weight_dtype="default"),
        "text": node("TestConditions"),
        "rig": node(
            "T2MVCreateCameraRig", azimuths="0", elevations="0", preset="four around", views=""
        ),
        "latent": node("T2MVEmptyLatent", rig=["rig", 0], width=PX, height=PX, sets=1),
        "adapter": node(
            "T2MVApplyAdapter", model=["small", 0], adapter="small.safetensors", rig=["rig", 0],
            view_scale=1.0, mv_scale=1.0,
        ),
        "shift": node("T2MVShiftSNR", model=["adapter", 0], sampling="the model's own", scale=8.0),
    }  # fmt: skip
    return {**common, **{name: item for branch in branches for name, item in branch.items()}}


SHIFT = ["shift", 0]
"""The model of `graph` that draws views."""
CACHE = {"reuse_threshold": 3.0, "start_percent": 0.0, "end_percent": 1.0, "verbose": False}
"""Settings with which EasyCache and LazyCache skip evaluations of the small model."""
PICTURES = [f"hints{RIG.num_views - 1}", 0]
"""The output of `pictures`: one per view."""


def pictures() -> dict[str, Any]:
    """The pictures of `write_base` as one batch."""
    views = range(RIG.num_views)
    nodes = {f"hint{view}": node("LoadImage", image=f"hint{view}.png") for view in views}
    return nodes | {
        f"hints{view}": node(
            "ImageBatch", image1=[f"hints{view - 1}" if view > 1 else "hint0", 0], image2=[f"hint{view}", 0]
        )
        for view in views[1:]
    }


def controlled(name: str, file: str, strength: float, text: str = "text") -> dict[str, Any]:
    """Load ControlNet Model and Apply ControlNet over one picture per view; gives a text of this name."""
    return {
        **pictures(),
        f"net {name}": node("ControlNetLoader", control_net_name=file),
        name: node(
            "ControlNetApplyAdvanced", positive=[text, 0], negative=[text, 1], control_net=[f"net {name}", 0],
            image=PICTURES, strength=strength, start_percent=0.0, end_percent=1.0,
        ),
    }  # fmt: skip


def latents(server: ComfyServer, run: Run, name: str) -> Tensor:
    """What a branch of `sampled` saved."""
    assert run.status == "success", run.error
    saved = run.outputs[f"save {name}"]["latents"][0]
    return load_file(server.base_dir / "output" / saved["subfolder"] / saved["filename"])["latent_tensor"]


def relative_error(value: Tensor, expected: Tensor) -> float:
    """Largest deviation over the largest value."""
    return float((value - expected).abs().max() / expected.abs().max())
