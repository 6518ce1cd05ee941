"""A training iteration as the published recipe does it: the yardstick of `benchmarks.training_iteration`.

Facts of the published recipe and its configuration (github.com/ZiyiZhang27/MVC-ZigAL), in our own words and
over our own parts:

* rollout: the prompts of a device in one batch, the standard trajectories first, the zigzag ones after; each
  of the two sampling calls encodes the texts and the cameras; VAE slicing;
* every sample keeps its own camera features and one row of text features per view;
* update: one prompt and step at a time, both trajectories one after the other, the scheduler asked view by
  view, both graphs kept until the loss is known; gradient checkpointing, as the configuration says;
* keys and values of the multiview attention are repeated for every view.

Weights, equations and noise are those of the trainer, so loss and gradient must be too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from t2mv_core.cameras import DEFAULT_RIG
from t2mv_core.denoiser import encode_cameras, guidance_embedding
from t2mv_core.images import decode_latents
from t2mv_core.lora.adapters import activate_loras
from t2mv_core.policy import denoise_step, invert_step, log_prob
from t2mv_core.samplers import SamplingSettings
from t2mv_core.text import TextCondition
from t2mv_core.unet.attention import MultiviewSelfAttention
from training.algorithm.objectives import zigal_loss
from training.algorithm.rollout import Policy, paired_noise
from training.algorithm.scoring import Rewards


@dataclass
class Sample:
    """One trajectory of one prompt as the recipes store it: all that the UNet needs, on the device.

    Attributes:
        steps: states, actions, log-probabilities and timesteps.
        text: text conditions, one row per view.
        cameras: camera features of the views.
    """

    steps: list[dict[str, Tensor]]
    text: dict[str, Tensor]
    cameras: list[Tensor]


Encode = Callable[[], TextCondition]
"""The text encoders asked about the iteration's prompts."""


def repeated_multiview(
    processor: MultiviewSelfAttention, tokens: Tensor, heads: int, num_views: int, num_rows: int
) -> Tensor:
    """Attend in the published form: every view gets its own copy of the keys and values of all views."""
    queries = rearrange(processor.to_q_mv(tokens), "n (h w) (a d) -> (n h) a w d", h=num_rows, a=heads)
    keys, values = (
        repeat(
            projection(tokens),
            "(b v) (h w) (a d) -> (b u h) a (v w) d",
            v=num_views,
            u=num_views,
            h=num_rows,
            a=heads,
        )
        for projection in (processor.to_k_mv, processor.to_v_mv)
    )
    out = F.scaled_dot_product_attention(queries, keys, values)
    return processor.to_out_mv[0](rearrange(out, "(n h) a w d -> n (h w) (a d)", h=num_rows))


@contextmanager
def as_published(policy: Policy, checkpoints: bool = True) -> Iterator[None]:
    """Let the policy's UNet compute as the published code does, not as ours."""
    unet = policy.bundle.unet
    plain = F.scaled_dot_product_attention
    with ExitStack() as stack:
        stack.enter_context(mock.patch("t2mv_core.unet.attention.attend", plain))
        stack.enter_context(mock.patch("t2mv_core.unet.text_attention.attend", plain))
        stack.enter_context(mock.patch.object(MultiviewSelfAttention, "_multiview", repeated_multiview))
        if checkpoints:
            unet.enable_gradient_checkpointing()
            stack.callback(unet.disable_gradient_checkpointing)
        yield


def predict(
    policy: Policy, x: Tensor, t: Tensor, text: dict[str, Tensor], cameras: Sequence[Tensor], w: float
) -> Tensor:
    """Return ε of all views of some prompts with classical per-view conditions."""
    unet, (num_prompts, num_views) = policy.bundle.unet, x.shape[:2]
    num_rows, dtype = num_prompts * num_views, next(unet.parameters()).dtype
    scales = torch.full((num_rows,), w, device=x.device)
    guidance = guidance_embedding(scales, unet.config["time_cond_proj_dim"]).to(dtype)
    activate_loras(policy.bundle)
    with policy.autocast():
        for module in unet.modules():
            if hasattr(module, "cast_input_dtype_enabled"):
                module.cast_input_dtype_enabled = True  # peft's default
        noise = unet(
            x.flatten(0, 1).to(dtype),
            t.to(x.device).expand(num_rows),
            encoder_hidden_states=text["prompt_embeds"].to(dtype),
            timestep_cond=guidance,
            added_cond_kwargs={
                "text_embeds": text["pooled"].to(dtype),
                "time_ids": text["time_ids"].to(dtype),
            },
            cross_attention_kwargs={"num_views": num_views, "latent_size": tuple(x.shape[-2:])},
            down_intrablock_additional_residuals=[
                residual.repeat(num_prompts, 1, 1, 1).to(dtype) for residual in cameras
            ],
            return_dict=False,
        )[0]
    return noise.unflatten(0, (num_prompts, num_views))


def rows_per_view(condition: TextCondition, num_views: int) -> dict[str, Tensor]:
    """Return text features of every view of every prompt."""
    return {
        "prompt_embeds": condition.prompt_embeds.repeat_interleave(num_views, dim=0),
        "pooled": condition.pooled_embeds.repeat_interleave(num_views, dim=0),
        "time_ids": condition.time_ids.repeat_interleave(num_views, dim=0),
    }


@torch.no_grad()
def sample(
    policy: Policy, encode: Encode, noise: Any, settings: SamplingSettings, has_zigzag: bool
) -> tuple[list[Sample], Tensor]:
    """Return one trajectory of every prompt, and their pictures."""
    bundle, schedule, num_views = policy.bundle, policy.bundle.schedule, policy.cameras.num_views
    condition = encode()
    text = rows_per_view(condition, num_views)
    cameras = list(encode_cameras(bundle, DEFAULT_RIG).residuals)
    size = (len(condition), num_views, bundle.latent_channels, bundle.latent_px, bundle.latent_px)

    def draw(shape: torch.Size) -> Tensor:
        return noise(shape).to(bundle.device)

    x, steps = draw(torch.Size(size)), []
    timesteps, next_timesteps = (
        schedule.timesteps(settings.num_steps),
        schedule.next_timesteps(settings.num_steps),
    )
    for number, (t, t_next) in enumerate(zip(timesteps, next_timesteps, strict=True)):
        found = denoise_step(
            schedule, predict(policy, x, t, text, cameras, settings.guidance_scale), x, t, t_next
        )
        if has_zigzag and number < settings.zigzag_steps:
            x_next = found.mean + found.std * draw(x.shape)
            weak = predict(policy, x_next, t, text, cameras, settings.inverse_guidance_scale)
            x = invert_step(schedule, weak, x_next, t, t_next)
            strong = predict(policy, x, t, text, cameras, settings.guidance_scale)
            found = denoise_step(schedule, strong, x, t, t_next)
        action = found.mean + found.std * draw(x.shape)
        steps.append(
            {"t": t, "t_next": t_next, "x": x, "action": action, "log_prob": log_prob(found, action)}
        )
        x = action
    samples = [
        Sample(
            [{k: v[row : row + 1] if v.ndim else v for k, v in step.items()} for step in steps],
            {k: v[row * num_views : (row + 1) * num_views].clone() for k, v in text.items()},
            [residual.clone() for residual in cameras],
        )
        for row in range(len(condition))
    ]
    return samples, decode_latents(bundle.vae, found.denoised, chunk_size=1)


def rollout(
    policy: Policy,
    rewards: Rewards,
    prompts: Sequence[str],
    encode: Encode,
    settings: SamplingSettings,
    seed: int,
) -> list[tuple[Sample, Sample]]:
    """Return both trajectories of every prompt, scored."""
    made = []
    for number in (0, 1):
        noise = paired_noise(seed, 1, range(len(prompts)), number)
        samples, images = sample(policy, encode, noise, settings, has_zigzag=number == 1)
        rewards.score(images, list(prompts))
        made.append(samples)
    return list(zip(*made, strict=True))


def score(policy: Policy, made: Sample, number: int, settings: SamplingSettings) -> Tensor:
    """Return the log ratio ρ of one step of one sample, [1, V]: one scheduler call per view."""
    step, schedule = made.steps[number], policy.bundle.schedule
    noise = predict(policy, step["x"], step["t"], made.text, made.cameras, settings.guidance_scale)
    scores = []
    for v in range(noise.shape[1]):
        x, action = step["x"][:, v : v + 1], step["action"][:, v : v + 1]
        distribution = denoise_step(schedule, noise[:, v : v + 1], x, step["t"], step["t_next"])
        scores.append(log_prob(distribution, action))
    return torch.cat(scores, dim=1) - step["log_prob"]


def update(
    policy: Policy,
    pairs: Sequence[tuple[Sample, Sample]],
    advantages: Tensor,
    orders: Sequence[Sequence[int]],
    settings: SamplingSettings,
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    clip_range: float,
) -> float:
    """Take one optimizer step from all steps of all prompts; return the mean loss."""
    num_terms, total = sum(map(len, orders)), 0.0
    advantages = advantages.to(policy.bundle.device)
    for row, (pair, order) in enumerate(zip(pairs, orders, strict=True)):
        gain = advantages[row][:, None]
        for number in order:
            log_ratios = torch.stack([score(policy, made, number, settings) for made in pair])
            loss = zigal_loss(log_ratios, gain, clip_range)
            (loss / num_terms).backward()
            total += loss.item() / num_terms
    nn.utils.clip_grad_norm_(parameters, 1e9)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total
