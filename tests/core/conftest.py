"""Tiny random models of diffusers' and transformers' real classes: in memory, and as folders to load from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from t2mv_core.bundle import ModelBundle
from t2mv_core.cameras import CameraRig
from t2mv_core.denoiser import CameraFeatures, encode_cameras
from t2mv_core.formats.safetensors_io import read_safetensors, write_safetensors
from t2mv_core.formats.sources import ModelSources
from t2mv_core.samplers import SamplingSettings
from t2mv_core.scheduler_config import schedule_from_config
from t2mv_core.text import TextCondition, encode_text
from t2mv_core.unet.adapter import create_camera_encoder, save_adapter
from t2mv_core.unet.attention import install_multiview_attention

TEXT_WIDTH = 16
PROMPTS = ["a red mug", "a blue chair with wooden legs"]
LCM_CONFIG = {"_class_name": "LCMScheduler", "clip_sample": False}
DDIM_CONFIG = {"_class_name": "DDIMScheduler", "clip_sample": True, "clip_sample_range": 3.0}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # on tensors this small, threads only wait for each other


def _create_unet(time_cond_proj_dim: int | None) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 32, 32),
        layers_per_block=1,
        transformer_layers_per_block=1,
        attention_head_dim=2,  # diffusers' name for the number of heads
        cross_attention_dim=2 * TEXT_WIDTH,
        use_linear_projection=True,
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=TEXT_WIDTH + 6 * 8,
        time_cond_proj_dim=time_cond_proj_dim,
    )


def _create_vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=0.5,
        mid_block_add_attention=False,
    )


def _create_text_encoders() -> tuple[Any, Any]:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=600,
        hidden_size=TEXT_WIDTH,
        intermediate_size=TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=598,
        eos_token_id=599,
        pad_token_id=0,
    )
    return CLIPTextModel(config), CLIPTextModelWithProjection(config)


def _create_bundle(
    scheduler_config: dict[str, Any], time_cond_proj_dim: int | None, has_reference: bool = False
) -> ModelBundle:
    torch.manual_seed(0)
    unet, vae = _create_unet(time_cond_proj_dim), _create_vae()
    install_multiview_attention(unet, has_reference)
    bundle = ModelBundle(
        unet,
        vae,
        *_create_text_encoders(),
        create_camera_encoder(unet, 2),
        schedule_from_config(scheduler_config),
        ModelSources(model="tiny"),
        tasks=("image-to-multiview",) if has_reference else ("text-to-multiview",),
    )
    for module in bundle.modules().values():
        module.eval().requires_grad_(False)
    return bundle


@pytest.fixture(scope="session")
def make_lcm_bundle() -> Callable[[], ModelBundle]:
    """Builds the few-step model (guidance embedding, LCM); the weights are the same every time."""
    return lambda: _create_bundle(LCM_CONFIG, 16)


@pytest.fixture(scope="session")
def make_ddim_bundle() -> Callable[[], ModelBundle]:
    """Builds the many-step model (classifier-free guidance, DDIM); the weights are the same every time."""
    return lambda: _create_bundle(DDIM_CONFIG, None)


@pytest.fixture(scope="session")
def lcm_bundle(make_lcm_bundle: Callable[[], ModelBundle]) -> ModelBundle:
    """The few-step model, shared: tests that attach LoRAs make their own."""
    return make_lcm_bundle()


@pytest.fixture(scope="session")
def ddim_bundle(make_ddim_bundle: Callable[[], ModelBundle]) -> ModelBundle:
    """The many-step model, shared."""
    return make_ddim_bundle()


@pytest.fixture(scope="session", params=["lcm", "ddim"])
def bundle(request: pytest.FixtureRequest) -> ModelBundle:
    """Both models in turn."""
    return request.getfixturevalue(f"{request.param}_bundle")


@pytest.fixture(scope="session")
def make_image_bundle() -> Callable[[str], ModelBundle]:
    """Builds a model of image to multiview, "lcm" or "ddim"; the weights are the same every time."""
    arguments = {"lcm": (LCM_CONFIG, 16), "ddim": (DDIM_CONFIG, None)}
    return lambda solver: _create_bundle(*arguments[solver], has_reference=True)


@pytest.fixture(scope="session", params=["lcm", "ddim"])
def image_bundle(request: pytest.FixtureRequest, make_image_bundle: Callable[..., Any]) -> ModelBundle:
    """Both models of image to multiview in turn, shared."""
    return make_image_bundle(request.param)


@pytest.fixture(scope="session")
def pictures() -> torch.Tensor:
    """Two pictures that differ, of the tiny models' size."""
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(8))


@pytest.fixture(scope="session")
def rig() -> CameraRig:
    """Three cameras that differ."""
    return CameraRig((0.0, 90.0, 225.0), (0.0, 0.0, 20.0))


@pytest.fixture(scope="session")
def prompts() -> list[str]:
    """Two prompts that differ."""
    return PROMPTS


@pytest.fixture(scope="session")
def cameras(bundle: ModelBundle, rig: CameraRig) -> CameraFeatures:
    """Features of the rig for `bundle`."""
    return encode_cameras(bundle, rig)


@pytest.fixture(scope="session")
def condition(bundle: ModelBundle, prompts: list[str]) -> TextCondition:
    """The prompts for `bundle`."""
    return encode_text(bundle, prompts, "blurry")


@pytest.fixture
def replay() -> Callable[[list[torch.Tensor]], Callable[[torch.Size], torch.Tensor]]:
    """Makes a source of noise of recorded tensors, which gives them in order."""

    def make(tensors: list[torch.Tensor]) -> Callable[[torch.Size], torch.Tensor]:
        remaining = iter(tensors)

        def noise(shape: torch.Size) -> torch.Tensor:
            tensor = next(remaining)
            assert tensor.shape == shape
            return tensor

        return noise

    return make


@pytest.fixture
def settings() -> SamplingSettings:
    """Three steps, the first two with zigzag."""
    return SamplingSettings(num_steps=3, guidance_scale=4.0, zigzag_steps=2)


def _save_folder(bundle: ModelBundle, scheduler_config: dict[str, Any], folder: Path) -> Path:
    """Write diffusers' folder format; the UNet goes without what is the MV-Adapter's."""
    bundle.vae.save_pretrained(folder / "vae")
    bundle.text_encoder.save_pretrained(folder / "text_encoder")
    bundle.text_encoder_2.save_pretrained(folder / "text_encoder_2")
    bundle.unet.save_config(folder / "unet")
    own = {name: x for name, x in bundle.unet.state_dict().items() if ".processor." not in name}
    write_safetensors(own, folder / "unet" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler_config))
    save_adapter(bundle.unet, bundle.camera_encoder, folder / "mvadapter.safetensors")
    return folder


@pytest.fixture(scope="session")
def lcm_folder(lcm_bundle: ModelBundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`lcm_bundle` on disk; not to be changed."""
    return _save_folder(lcm_bundle, LCM_CONFIG, tmp_path_factory.mktemp("lcm"))


@pytest.fixture(scope="session")
def ddim_folder(ddim_bundle: ModelBundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`ddim_bundle` on disk; not to be changed."""
    return _save_folder(ddim_bundle, DDIM_CONFIG, tmp_path_factory.mktemp("ddim"))


@pytest.fixture
def own_folder(lcm_folder: Path, tmp_path: Path) -> Path:
    """A copy of `lcm_folder` to damage."""
    return Path(shutil.copytree(lcm_folder, tmp_path / "model"))


@pytest.fixture(scope="session")
def edit_weights() -> Callable[..., None]:
    """Rewrites a safetensors file with its tensors passed through a function."""

    def edit(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
        tensors, metadata = read_safetensors(path)
        change(tensors)
        write_safetensors(tensors, path, metadata)

    return edit
