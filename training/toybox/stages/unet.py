"""Stage `unet`: the teacher. UNet, multiview attention, camera and text encoders, trained together."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from t2mv_core.cameras import DEFAULT_RIG
from t2mv_core.denoiser import CameraFeatures, call_unet, compute_camera_features
from t2mv_core.schedule import NoiseSchedule
from t2mv_core.scheduler_config import schedule_from_config
from t2mv_core.text import TextCondition, clip_tokenizer, encode_tokens
from t2mv_core.unet.attention import install_multiview_attention

from ..data.captions import caption
from ..data.dataset import load_dataset
from ..data.scenes import Scene
from ..model import IMAGE_PX, MAX_TOKENS, VOCAB_SIZE, create_camera_encoder, create_text_encoders, create_unet
from .stage import Checkpointer, StageConfig, Stateful, seed_everything, trapezoid_lr, update_rng

if TYPE_CHECKING:
    from diffusers import T2IAdapter, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

logger = logging.getLogger(__name__)

NUM_UPDATES = 3800
BATCH_VIEWS = 72
# Views of a scene in one update, in turn: fewer give more scenes and captions for the same time.
NARROW_VIEWS = (2, 3, 6)
WIDE_SHARE = 0.15  # the last updates always see all views
PEAK_LR = 1e-3
EMA_DECAY = 0.998
DROP_CAPTION = 0.12  # share of scenes trained without text, for classifier-free guidance
TEACHER_SCHEDULER: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "timestep_spacing": "trailing",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    # Clipping at 3 costs colours: beyond lie 12 to 16 % of the latents of black, green and blue objects.
    "clip_sample": False,
}


class Networks(nn.Module):
    """The trained parts of the toybox under one roof, so that they share an optimizer and an average."""

    def __init__(self, has_guidance_embedding: bool = False) -> None:
        """Create all parts, newly initialised."""
        super().__init__()
        self.unet: UNet2DConditionModel = create_unet(has_guidance_embedding)
        install_multiview_attention(self.unet)
        self.camera_encoder: T2IAdapter = create_camera_encoder(self.unet)
        encoders = create_text_encoders()
        self.text_encoder: CLIPTextModel = encoders[0]
        self.text_encoder_2: CLIPTextModelWithProjection = encoders[1]

    def encode(self, captions: Sequence[str]) -> TextCondition:
        """Text condition of the captions, with gradients; an empty caption gives the zero condition."""
        device = self.unet.device
        ids = clip_tokenizer(VOCAB_SIZE, pads_with_end=True)(captions, MAX_TOKENS).to(device)
        ids_2 = clip_tokenizer(VOCAB_SIZE)(captions, MAX_TOKENS).to(device)
        hidden, _ = encode_tokens(self.text_encoder, ids)
        hidden_2, pooled = encode_tokens(self.text_encoder_2, ids_2)
        kept = torch.tensor([bool(text) for text in captions], device=device)
        embeds = torch.cat([hidden, hidden_2], dim=-1) * kept[:, None, None]
        size = torch.tensor([IMAGE_PX, IMAGE_PX, 0, 0, IMAGE_PX, IMAGE_PX], device=device).float()
        return TextCondition(embeds, pooled * kept[:, None], size.expand(len(captions), 6))

    def cameras(self, views: Sequence[int] = range(DEFAULT_RIG.num_views)) -> CameraFeatures:
        """Camera features of some views of the default rig, with gradients."""
        return compute_camera_features(self.camera_encoder, DEFAULT_RIG.subset(views), IMAGE_PX, IMAGE_PX)


def run(config: StageConfig) -> None:
    """Train the teacher; state and running average are kept in `unet/state.pt`."""
    seed_everything(config.seed)
    latents = np.load(config.out_dir / "latents.npy", mmap_mode="r")
    scenes = load_dataset(config.data_dir).scenes
    networks = Networks().to(config.device)
    average = create_average(networks)
    optimizer = torch.optim.AdamW(networks.parameters(), lr=PEAK_LR, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = schedule_from_config(TEACHER_SCHEDULER)
    total = 4 if config.quick else NUM_UPDATES
    parts: dict[str, Stateful] = {"networks": networks, "average": average, "optimizer": optimizer}
    checkpointer = Checkpointer(config.out_dir / "unet" / "state.pt", parts)
    losses: list[float] = []
    for update in checkpointer.updates(total, "unet"):
        for group in optimizer.param_groups:
            group["lr"] = trapezoid_lr(update, total, PEAK_LR)
        rng = update_rng(config.seed, update)
        views = draw_views(update, total, latents.shape[1], rng)
        picked = rng.integers(len(scenes), size=BATCH_VIEWS // len(views))
        captions = draw_captions([scenes[i] for i in picked], rng)
        clean = torch.from_numpy(latents[picked][:, views]).float().to(config.device)
        with fast_autocast(config.device):
            loss = denoising_loss(
                networks, schedule, clean, networks.encode(captions), networks.cameras(views), rng
            )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(networks.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(networks)
        losses.append(loss.item())
        if update % 100 == 99:
            logger.info("update %d: loss %.4f", update + 1, float(np.mean(losses[-100:])))


def create_average(networks: nn.Module, decay: float = EMA_DECAY) -> torch.optim.swa_utils.AveragedModel:
    """Exponential moving average of all weights."""
    average = torch.optim.swa_utils.get_ema_multi_avg_fn(decay)
    return torch.optim.swa_utils.AveragedModel(networks, multi_avg_fn=average)


def draw_captions(scenes: Sequence[Scene], rng: np.random.Generator) -> list[str]:
    """A random true caption of each scene, now and then none."""
    return ["" if rng.random() < DROP_CAPTION else caption(scene, rng) for scene in scenes]


def draw_views(update: int, total: int, num_views: int, rng: np.random.Generator) -> list[int]:
    """Which views of its scenes an update sees: 2, 3 or all, chosen anew each time; at the end always all."""
    count = NARROW_VIEWS[update % len(NARROW_VIEWS)] if update < (1 - WIDE_SHARE) * total else num_views
    return sorted(rng.choice(num_views, size=count, replace=False).tolist())


def denoising_loss(
    networks: Networks,
    schedule: NoiseSchedule,
    clean: Tensor,
    condition: TextCondition,
    cameras: CameraFeatures,
    rng: np.random.Generator,
) -> Tensor:
    """Noise-prediction loss weighted as velocity prediction, mean (ε_θ - ε)² / ᾱ_t.

    Unweighted, the noisiest steps, which decide the colours, count for nothing: at t = 999 an error of 1 in
    x̂_0 is one of 0.024 in ε. With 1/ᾱ the loss is that of v = √ᾱ·ε - √(1-ᾱ)·x_0 (Salimans & Ho,
    arXiv:2202.00512).

    Args:
        networks: in training.
        schedule: with ᾱ.
        clean: latents x_0, [B, V, C, H, W].
        condition: text of B captions.
        cameras: of V views.
        rng: draws timesteps; noise comes from torch's generator.
    """
    timestep = torch.from_numpy(rng.integers(schedule.num_train_steps, size=len(clean)))
    alpha_bar = schedule.alpha_bar_at(timestep).float().to(clean.device)[:, None, None, None, None]
    noise = torch.randn_like(clean)
    noisy = alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise
    predicted = call_unet(networks.unet, noisy, timestep, condition, cameras)
    return ((predicted.float() - noise).square() / alpha_bar).mean()


@contextmanager
def fast_autocast(device: str) -> Iterator[None]:
    """bf16 autocast; on CPUs with the plain attention kernel, whose bf16 backward is quicker there."""
    backends = (
        [SDPBackend.MATH] if torch.device(device).type == "cpu" else list(SDPBackend.__members__.values())
    )
    with sdpa_kernel(backends), torch.autocast(torch.device(device).type, torch.bfloat16):
        yield
