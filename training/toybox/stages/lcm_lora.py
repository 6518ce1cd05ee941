"""Stage `lcm_lora`: a LoRA with which the teacher samples in 4 LCM steps without guidance, like LCM-LoRA.

The target is the end of the teacher's own deterministic trajectory, all six views at once; the guidance is
not an input but baked in, so the LoRA is used at w = 1:

    L = pseudo-Huber( f_θ(x_t, t, c) , x_0 ),   x from DDIM (η = 0) with ε_∅ + w (ε_c - ε_∅),   w as its own

Nothing is rendered: trajectories start from noise and captions of scenes that training may see. It works on
the exported teacher, or on the bundled one where nothing was exported.

Source: Luo et al., arXiv:2311.05556 (a distillation LoRA).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from t2mv_core.bundle import LoraHandle, ModelBundle
from t2mv_core.cameras import DEFAULT_RIG
from t2mv_core.denoiser import CameraFeatures, encode_cameras, predict_noise
from t2mv_core.formats.safetensors_io import write_safetensors
from t2mv_core.loading import load_bundle
from t2mv_core.lora.adapters import add_lora, trainable_parameters
from t2mv_core.lora.files import FORMAT, lora_state_dict
from t2mv_core.policy import consistency_output
from t2mv_core.schedule import NoiseSchedule
from t2mv_core.text import encode_text

from ...models.policy import make_average
from ..data.captions import caption
from ..data.scenes import sample_scene
from .evaluate import LORA_FILE, TEACHER_SETTINGS, load_models
from .export import half
from .lcm import flow_step, jittered_timesteps, pseudo_huber, write_shards
from .lcm_lora_report import measure_lora
from .networks import fast_autocast
from .stage import Checkpointer, StageConfig, Stateful, cosine_lr, descend, seed_everything, update_rng

logger = logging.getLogger(__name__)

NAME = "lcm"
NUM_STEPS = 4
RANK = 6
"""Without convolutions and at this rank the file is what the shipped 30 MB leave room for."""
TARGET_MODULES = (
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "time_emb_proj",
)  # fmt: skip
"""Of the published LCM-LoRA's those that are linear; the multiview attention stays as it is, as there."""
LCM_SHARE = 0.5  # pairs at exactly the timesteps that NUM_STEPS steps visit
NUM_CHUNKS = 16
CHUNK_PROMPTS = 16
NUM_UPDATES = 600
BATCH_PAIRS = 8
PEAK_LR = 2e-3
EMA_DECAY = 0.98
SEED_OFFSET = 40  # the other stages draw with small ones


def run(config: StageConfig) -> None:
    """Solve trajectories, train the LoRA on them, write `export/lcm_lora.safetensors`, and measure it."""
    seed_everything(config.seed + SEED_OFFSET)
    num_chunks, total = (1, 4) if config.quick else (NUM_CHUNKS, NUM_UPDATES)
    teacher = load_teacher(config)
    shards = solve_trajectories(config, teacher, num_chunks)
    train_lora(config, teacher, shards, total)
    measure_lora(config, teacher, config.export_dir / LORA_FILE)


def load_teacher(config: StageConfig) -> ModelBundle:
    """The exported teacher, or the bundled one."""
    if (config.export_dir / "teacher").is_dir():
        return load_models(config.export_dir, config.device)[1]
    return load_bundle("toybox-teacher", config.device)


def lcm_schedule(schedule: NoiseSchedule) -> NoiseSchedule:
    """The teacher's noise, visited by LCM."""
    return replace(schedule, solver="lcm")


def solve_trajectories(config: StageConfig, teacher: ModelBundle, num_chunks: int) -> list[Path]:
    """Write shards of solved trajectories, see `lcm.write_shards`."""
    cameras = encode_cameras(teacher, DEFAULT_RIG)

    def solve(rng: np.random.Generator) -> dict[str, np.ndarray]:
        scenes = [sample_scene(int(seed)) for seed in rng.integers(2**62, size=CHUNK_PROMPTS)]
        return solve_chunk(teacher, cameras, [caption(scene, rng) for scene in scenes], rng)

    return write_shards(config.out_dir / "lcm_lora", num_chunks, config.seed + SEED_OFFSET, solve)


@torch.no_grad()
def solve_chunk(
    teacher: ModelBundle, cameras: CameraFeatures, captions: Sequence[str], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Follow the guided probability flow of some captions from noise down to clean latents.

    Returns:
        states [S, B, V, C, H, W] and end [B, V, C, H, W] in float16, timesteps [S], captions [B].
    """
    schedule, condition = teacher.schedule, encode_text(teacher, captions)
    timesteps = visited_timesteps(schedule, rng)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    size = (teacher.latent_channels, teacher.latent_px, teacher.latent_px)
    x = torch.randn(len(captions), cameras.num_views, *size, generator=generator).to(teacher.device)
    states = []
    for timestep, next_timestep in zip(timesteps, [*timesteps[1:], -1], strict=True):
        states.append(x.half().cpu().numpy())
        with fast_autocast(teacher.device.type):
            noise = predict_noise(teacher, x, timestep, condition, cameras, TEACHER_SETTINGS.guidance_scale)
        x = flow_step(schedule, noise.float(), x, timestep, next_timestep)
    return {
        "states": np.stack(states),
        "end": x.half().cpu().numpy(),
        "timesteps": np.asarray(timesteps),
        "captions": np.array(captions),
    }


def visited_timesteps(schedule: NoiseSchedule, rng: np.random.Generator) -> list[int]:
    """`jittered_timesteps`, the nearest ones moved to those that LCM visits, falling."""
    steps = np.asarray(jittered_timesteps(schedule, rng))
    for timestep in lcm_schedule(schedule).timesteps(NUM_STEPS).tolist():
        steps[np.abs(steps - timestep).argmin()] = timestep
    return [int(step) for step in steps]


def train_lora(config: StageConfig, teacher: ModelBundle, shards: Sequence[Path], total: int) -> None:
    """Fit f_θ of the teacher with the LoRA on (state, end) pairs drawn from all shards; write its average."""
    add_lora(teacher.unet, RANK, RANK, NAME, targets=TARGET_MODULES)
    learned = nn.ParameterList(trainable_parameters(teacher.unet, NAME)).requires_grad_(True)
    student = replace(teacher, loras=(LoraHandle(NAME),), schedule=lcm_schedule(teacher.schedule))
    cameras = encode_cameras(teacher, DEFAULT_RIG)
    optimizer = torch.optim.AdamW(learned, lr=PEAK_LR, betas=(0.9, 0.99), weight_decay=0.0)
    average = make_average(EMA_DECAY, list(learned))
    parts: dict[str, Stateful] = {"lora": learned, "optimizer": optimizer, "average": average}
    checkpointer = Checkpointer(config.out_dir / "lcm_lora" / "state.pt", parts)
    loaded = [dict(np.load(path)) for path in shards]
    visited = student.schedule.timesteps(NUM_STEPS).tolist()
    losses: list[float] = []
    for update in checkpointer.updates(total, "lcm_lora"):
        for group in optimizer.param_groups:
            group["lr"] = cosine_lr(update, total, PEAK_LR, warmup=20)
        pairs = draw_pairs(loaded, visited, update_rng(config.seed + SEED_OFFSET + 1, update))
        loss = consistency_loss(student, cameras, *pairs)
        descend(loss, learned, optimizer)
        average.to(teacher.device)  # a saved average lies on the CPU
        average.step(learned)
        losses.append(loss.item())
        if update % 50 == 49:
            logger.info("update %d: loss %.4f", update + 1, float(np.mean(losses[-50:])))
    average.copy_to(learned)
    write_lora(teacher, config.export_dir / LORA_FILE)


def draw_pairs(
    shards: Sequence[dict[str, np.ndarray]], visited: Sequence[int], rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor, list[str]]:
    """Points of random trajectories, LCM_SHARE of them at the timesteps `visited`.

    Returns:
        States and ends, [B, V, C, H, W] each, timesteps [B], captions.
    """
    states, ends, timesteps, captions = [], [], [], []
    for _ in range(BATCH_PAIRS):
        shard = shards[int(rng.integers(len(shards)))]
        row = int(rng.integers(len(shard["end"])))
        steps = shard["timesteps"]
        is_lcm = np.isin(steps, visited)
        places = np.flatnonzero(is_lcm) if rng.random() < LCM_SHARE else np.arange(len(steps))
        step = int(rng.choice(places))
        states.append(torch.from_numpy(shard["states"][step, row]).float())
        ends.append(torch.from_numpy(shard["end"][row]).float())
        timesteps.append(int(shard["timesteps"][step]))
        captions.append(str(shard["captions"][row]))
    return torch.stack(states), torch.stack(ends), torch.tensor(timesteps), captions


def consistency_loss(
    student: ModelBundle,
    cameras: CameraFeatures,
    states: Tensor,
    ends: Tensor,
    timesteps: Tensor,
    captions: Sequence[str],
) -> Tensor:
    """Pseudo-Huber loss of f_θ against the trajectory's end, averaged: every noise level weighs the same."""
    x, ends = states.to(student.device), ends.to(student.device)
    condition = encode_text(student, captions)
    with fast_autocast(student.device.type):
        noise = predict_noise(student, x, timesteps, condition, cameras, 1.0)
    predicted = consistency_output(student.schedule, noise.float(), x, timesteps)
    return pseudo_huber(predicted, ends)


def write_lora(teacher: ModelBundle, path: Path) -> None:
    """The LoRA in float16, with what is needed to use it as metadata."""
    facts = {
        "format": FORMAT,
        "rank": RANK,
        "alpha": RANK,
        "base_model": "toybox-teacher",
        "solver": "lcm",
        "num_steps": NUM_STEPS,
        "guidance_scale": 1.0,
    }
    tensors = half({name: tensor.detach() for name, tensor in lora_state_dict(teacher.unet, NAME).items()})
    write_safetensors(tensors, path, {key: str(value) for key, value in facts.items()})
