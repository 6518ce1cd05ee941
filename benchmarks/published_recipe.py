"""A training iteration as published recipes write it down: the yardstick of `benchmarks.training_iteration`.

One prompt at a time, one trajectory after the other; the scheduler is asked view by view; every sample keeps
its own camera features, every sample and step its own text embeddings, one row per view; keys and values are
repeated for every view; both graphs of a pair live until the loss of their step is known. Weights, equations
and noise are those of the trainer, so loss and gradient must be too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from t2mv_core.attention import MultiviewSelfAttention
from t2mv_core.denoiser import guidance_embedding
from t2mv_core.images import decode_latents
from t2mv_core.lora import active_loras
from t2mv_core.policy import denoise_step, invert_step, log_prob
from t2mv_core.samplers import SamplingSettings
from training.objectives import zigal_pair_loss
from training.rollout import Policy, Rewards, paired_noise


@dataclass
class Sample:
    """One trajectory as the recipes store it: everything the UNet needs, per step, on the device."""

    steps: list[dict[str, Tensor]]
    cameras: list[Tensor]
    images: Tensor


def repeated_multiview(
    processor: MultiviewSelfAttention, tokens: Tensor, heads: int, num_views: int, num_rows: int
) -> Tensor:
    """The published form: every view gets its own copy of the keys and values of all views."""
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
def as_published(policy: Policy, has_repeated_keys: bool = True) -> Iterator[None]:
    """The policy's UNet with torch's, peft's and the published attention's habits instead of ours."""
    unet = policy.bundle.unet
    plain = F.scaled_dot_product_attention
    convolutions = {m: vars(m).pop("_conv_forward") for m in unet.modules() if "_conv_forward" in vars(m)}
    with ExitStack() as stack:
        stack.enter_context(mock.patch("t2mv_core.attention.attend", plain))
        stack.enter_context(mock.patch("t2mv_core.text_attention.attend", plain))
        if has_repeated_keys:
            stack.enter_context(mock.patch.object(MultiviewSelfAttention, "_multiview", repeated_multiview))
        try:
            yield
        finally:
            for module, forward in convolutions.items():
                module._conv_forward = forward


def predict(
    policy: Policy, x: Tensor, step: dict[str, Tensor], cameras: Sequence[Tensor], w: float
) -> Tensor:
    """ε of all views of one prompt with classical per-view conditions."""
    unet, num_views = policy.bundle.unet, x.shape[1]
    dtype = next(unet.parameters()).dtype
    guidance = guidance_embedding(torch.full((num_views,), w), unet.config["time_cond_proj_dim"]).to(dtype)
    with active_loras(policy.bundle), policy.autocast():
        for module in unet.modules():
            if hasattr(module, "cast_input_dtype_enabled"):
                module.cast_input_dtype_enabled = True  # peft's default
        noise = unet(
            x[0].to(dtype),
            step["timestep"].expand(num_views),
            encoder_hidden_states=step["prompt_embeds"].to(dtype),
            timestep_cond=guidance,
            added_cond_kwargs={
                "text_embeds": step["pooled"].to(dtype),
                "time_ids": step["time_ids"].to(dtype),
            },
            cross_attention_kwargs={"num_views": num_views, "latent_size": tuple(x.shape[-2:])},
            down_intrablock_additional_residuals=[residual.clone().to(dtype) for residual in cameras],
            return_dict=False,
        )[0]
    return noise[None]


def distributions(policy: Policy, noise: Tensor, x: Tensor, t: Any, t_next: Any) -> list[Any]:
    """One scheduler call per view."""
    schedule = policy.bundle.schedule
    return [
        denoise_step(schedule, noise[:, v : v + 1], x[:, v : v + 1], t, t_next) for v in range(x.shape[1])
    ]


@torch.no_grad()
def sample(
    policy: Policy, condition: Any, noise: Any, settings: SamplingSettings, has_zigzag: bool
) -> Sample:
    """One trajectory of one prompt."""
    bundle, num_views = policy.bundle, policy.cameras.num_views
    cameras = [residual.clone() for residual in policy.cameras.residuals]
    size = (1, num_views, bundle.latent_channels, bundle.latent_px, bundle.latent_px)
    x, steps, found = noise(torch.Size(size)), [], []
    timesteps = bundle.schedule.timesteps(settings.num_steps)
    next_timesteps = bundle.schedule.next_timesteps(settings.num_steps)
    for number, (t, t_next) in enumerate(zip(timesteps, next_timesteps, strict=True)):
        step = {
            "timestep": t[None],
            "next_timestep": t_next[None],
            "prompt_embeds": condition.prompt_embeds.repeat_interleave(num_views, dim=0),
            "pooled": condition.pooled_embeds.repeat_interleave(num_views, dim=0),
            "time_ids": condition.time_ids.repeat_interleave(num_views, dim=0),
        }
        found = distributions(
            policy, predict(policy, x, step, cameras, settings.guidance_scale), x, t, t_next
        )
        if has_zigzag and number < settings.zigzag_steps:
            drawn = noise(x.shape)
            x_next = torch.cat([d.mean + d.std * drawn[:, v : v + 1] for v, d in enumerate(found)], dim=1)
            weak = predict(policy, x_next, step, cameras, settings.inverse_guidance_scale)
            x = invert_step(bundle.schedule, weak, x_next, t, t_next)
            strong = predict(policy, x, step, cameras, settings.guidance_scale)
            found = distributions(policy, strong, x, t, t_next)
        drawn = noise(x.shape)
        action = torch.cat([d.mean + d.std * drawn[:, v : v + 1] for v, d in enumerate(found)], dim=1)
        scores = [log_prob(d, action[:, v : v + 1]) for v, d in enumerate(found)]
        steps.append({**step, "state": x, "action": action, "log_prob": torch.cat(scores, dim=1)})
        x = action
    images = decode_latents(bundle.vae, torch.cat([d.denoised for d in found], dim=1))
    return Sample(steps, cameras, images)


def rollout(
    policy: Policy,
    rewards: Rewards,
    prompts: Sequence[str],
    condition: Any,
    settings: SamplingSettings,
    seed: int,
) -> list[tuple[Sample, Sample]]:
    """Both trajectories of every prompt, scored one by one."""
    pairs = []
    for slot, prompt in enumerate(prompts):
        one = condition.select([slot])
        pair = []
        for number in (0, 1):
            made = sample(policy, one, paired_noise(seed, 1, [slot], number), settings, number == 1)
            rewards.score(made.images, [prompt])
            pair.append(made)
        pairs.append((pair[0], pair[1]))
    return pairs


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
    """One optimizer step from all steps of all prompts, gradients accumulated; returns the mean loss."""
    num_terms, total = sum(map(len, orders)), 0.0
    for row, (pair, order) in enumerate(zip(pairs, orders, strict=True)):
        gain = advantages[row][:, None]
        for number in order:
            log_ratios = []
            for made in pair:
                step = made.steps[number]
                x, t, t_next = step["state"], step["timestep"], step["next_timestep"]
                noise = predict(policy, x, step, made.cameras, settings.guidance_scale)
                found = distributions(policy, noise, x, t, t_next)
                scores = [log_prob(d, step["action"][:, v : v + 1]) for v, d in enumerate(found)]
                log_ratios.append(torch.cat(scores, dim=1) - step["log_prob"])
            loss = zigal_pair_loss(torch.stack(log_ratios), gain, clip_range)
            (loss / num_terms).backward()
            total += loss.item() / num_terms
    nn.utils.clip_grad_norm_(parameters, 1e9)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total
