"""The networks in training: SDXL's parts for single views, and the same with the MV-Adapter put in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn

from t2mv_core.cameras import DEFAULT_RIG
from t2mv_core.denoiser import CameraFeatures, call_unet, compute_camera_features, guidance_embedding
from t2mv_core.text import TextCondition, clip_tokenizer, encode_tokens
from t2mv_core.unet.attention import MultiviewSelfAttention, install_multiview_attention
from t2mv_core.unet.reference_attention import ReferenceFeatures

from ..model import IMAGE_PX, MAX_TOKENS, VOCAB_SIZE, create_camera_encoder, create_text_encoders, create_unet

if TYPE_CHECKING:
    from diffusers import T2IAdapter, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

M = TypeVar("M", bound=nn.Module)
EMA_DECAY = 0.998
CENTRE = 0.5
"""Of a camera's six numbers, which lie in [0, 1]."""
SNR_SHIFT = 0.22
"""8 (MV-Adapter's, at 96 x 96 latents) times (16 / 96)²: the clean latent then leaks into the first state as
much as it does at SDXL's size (docs/method.md, section 11)."""
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
    "t2mv_snr_shift": SNR_SHIFT,
}
STUDENT_SCHEDULER = {**TEACHER_SCHEDULER, "_class_name": "LCMScheduler", "timestep_spacing": "leading"}


class SingleViewNetworks(nn.Module):
    """What SDXL is: a UNet and two text encoders, without cameras, one picture at a time."""

    def __init__(self, has_guidance_embedding: bool = False) -> None:
        """Create all parts, newly initialised."""
        super().__init__()
        self.unet: UNet2DConditionModel = create_unet(has_guidance_embedding)
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

    def predict(
        self, x: Tensor, timestep: Tensor, condition: TextCondition, guidance: Tensor | None = None
    ) -> Tensor:
        """Predicted noise [B, C, H, W] of single pictures x [B, C, H, W] at timesteps [B]."""
        embedding = None
        if guidance is not None:
            embedding = guidance_embedding(guidance, self.unet.config["time_cond_proj_dim"])
        return self.unet(
            x,
            timestep.to(x.device),
            encoder_hidden_states=condition.prompt_embeds,
            timestep_cond=embedding,
            added_cond_kwargs={"text_embeds": condition.pooled_embeds, "time_ids": condition.time_ids},
            return_dict=False,
        )[0]


class MultiviewNetworks(SingleViewNetworks):
    """The same with multiview attention and a camera encoder: MV-Adapter."""

    def __init__(self, has_guidance_embedding: bool = False, has_reference: bool = False) -> None:
        """Create all parts, newly initialised; with reference attention for pictures to views."""
        super().__init__(has_guidance_embedding)
        install_multiview_attention(self.unet, has_reference)
        self.camera_encoder: T2IAdapter = create_camera_encoder(self.unet)

    def cameras(self, views: Sequence[int] = range(DEFAULT_RIG.num_views)) -> CameraFeatures:
        """Camera features of some views of the default rig, with gradients."""
        return compute_camera_features(self.camera_encoder, DEFAULT_RIG.subset(views), IMAGE_PX, IMAGE_PX)

    def predict_views(
        self,
        x: Tensor,
        timestep: Tensor,
        condition: TextCondition,
        cameras: CameraFeatures,
        guidance: Tensor | None = None,
        view_scale: float = 1.0,
        reference: ReferenceFeatures | None = None,
    ) -> Tensor:
        """Predicted noise [B, V, C, H, W] of sets of views; the first of them have pictures."""
        return call_unet(self.unet, x, timestep, condition, cameras, view_scale, guidance, reference)

    def predict(
        self, x: Tensor, timestep: Tensor, condition: TextCondition, guidance: Tensor | None = None
    ) -> Tensor:
        """Predicted noise [B, V, C, H, W] of sets of all the default rig's views."""
        return self.predict_views(x, timestep, condition, self.cameras(), guidance)

    def put_in(self, base: SingleViewNetworks) -> None:
        """Take the weights of networks without an adapter."""
        missing, unexpected = self.load_state_dict(base.state_dict(), strict=False)
        own = [name for name in missing if not is_of_adapter(name)]
        if own or unexpected:
            raise ValueError(f"These networks do not fit each other: {[*own, *unexpected][:3]}.")

    def start_adapter(self) -> None:
        """Begin as MV-Adapter does: projections copied from the self-attention's, outputs zero.

        The camera encoder starts centred: cameras from opposite sides give opposite residuals, and nothing
        that they have in common disturbs the base.
        """
        self._start_attention("mv")
        for name, parameter in self.camera_encoder.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
        first: Any = self.camera_encoder.adapter.conv_in
        first.bias.data.copy_(-CENTRE * first.weight.data.sum(dim=(1, 2, 3)))

    def start_reference(self) -> None:
        """Begin reference attention as MV-Adapter does, the same way."""
        self._start_attention("ref")

    def _start_attention(self, kind: str) -> None:
        for name, processor in self.unet.attn_processors.items():
            if isinstance(processor, MultiviewSelfAttention):
                attention: Any = self.unet.get_submodule(name.removesuffix(".processor"))
                for part in ("to_q", "to_k", "to_v"):
                    source, target = getattr(attention, part), getattr(processor, f"{part}_{kind}")
                    target.weight.data.copy_(source.weight.data)
                output: Any = getattr(processor, f"to_out_{kind}")[0]
                nn.init.zeros_(output.weight)
                nn.init.zeros_(output.bias)

    def adapter_parameters(self) -> list[nn.Parameter]:
        """The MV-Adapter's weights: multiview attention, reference attention if any, and camera encoder."""
        return [parameter for name, parameter in self.named_parameters() if is_of_adapter(name)]


def is_of_adapter(name: str) -> bool:
    """Whether a weight of `MultiviewNetworks` belongs to the MV-Adapter."""
    return ".processor." in name or name.startswith("camera_encoder.")


def create_average(networks: nn.Module, decay: float = EMA_DECAY) -> torch.optim.swa_utils.AveragedModel:
    """Exponential moving average of all weights."""
    average = torch.optim.swa_utils.get_ema_multi_avg_fn(decay)
    return torch.optim.swa_utils.AveragedModel(networks, multi_avg_fn=average)


def load_average(networks: M, stage_dir: Path) -> M:
    """Return a stage's running average of such networks.

    Raises:
        FileNotFoundError: the stage has not run.
    """
    path = stage_dir / "state.pt"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; run `python -m training.toybox {stage_dir.name}` first.")
    average = create_average(networks)
    average.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["parts"]["average"])
    return cast(M, average.module)


@contextmanager
def fast_autocast(device: str) -> Iterator[None]:
    """bf16 autocast where the device computes in it; full precision on a CPU without AVX512-BF16."""
    kind = torch.device(device).type
    is_fast = kind != "cpu" or torch.cpu._is_avx512_bf16_supported()
    with torch.autocast(kind, torch.bfloat16, enabled=is_fast):
        yield
