"""Stage `lcm`: the few-step student, by latent consistency distillation of the base on single pictures.

A consistency function maps every point of the base's deterministic (probability-flow) trajectory to the
trajectory's end, f_θ(x_t, t, w) = x_0(w). We know the trajectories themselves - the base is small - so f_θ is
regressed on their ends directly, instead of on its own estimate at the next point: the target is exact at the
noisiest timestep from the first update on, and depends on w there, which a student that bootstraps learns
last.

    L = pseudo-Huber( f_θ(x_t, t, w, c) , x_0 ),   x from DDIM (η = 0) with ε_∅ + w (ε_c - ε_∅),   w ~ U[1, 6]

As LCM-SDXL, the student never sees a camera or another view; it meets the MV-Adapter at inference only.

Source: Luo et al., arXiv:2310.04378 (guidance-augmented trajectories, w as an input); Luhman & Luhman,
arXiv:2101.02388 (trajectory ends as targets).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from t2mv_core.formats.atomic import replaced
from t2mv_core.policy import consistency_output, predict_clean
from t2mv_core.schedule import NoiseSchedule
from t2mv_core.scheduler_config import schedule_from_config

from ..data.captions import caption, view_caption
from ..data.dataset import load_dataset
from ..data.scenes import Scene
from .adapter import load_adapter_into
from .base import NAME_SIDE, load_base
from .networks import (
    TEACHER_SCHEDULER,
    MultiviewNetworks,
    SingleViewNetworks,
    create_average,
    fast_autocast,
    load_average,
)
from .stage import Checkpointer, StageConfig, Stateful, cosine_lr, descend, seed_everything, update_rng

logger = logging.getLogger(__name__)

SOLVER_STEPS = 16
PEAK_LR = 4e-4
MAX_GUIDANCE = 6.0
UNGUIDED_SHARE = 0.15  # trajectories at exactly w = 1: what the zag asks for
FROM_DATA_SHARE = 0.5  # trajectories that start from a noised render instead of from pure noise
HUBER_SCALE = 0.03
EMA_DECAY = 0.99
GUIDANCE_LR_FACTOR = 5.0  # the guidance embedding starts from nothing, everything else from the base
# Under guidance of up to MAX_GUIDANCE a solver without noise runs away unless x̂_0 is bounded, latent units.
CLIPPED = {"clip_sample": True, "clip_sample_range": 3.0}
SOLVER_SCHEDULER = {**TEACHER_SCHEDULER, **CLIPPED}


@dataclass(frozen=True)
class Amounts:
    """How much is solved and learned: shards, trajectories in a shard, updates, pairs in an update."""

    num_chunks: int
    chunk_size: int
    num_updates: int
    batch_pairs: int


AMOUNTS = Amounts(num_chunks=28, chunk_size=64, num_updates=600, batch_pairs=64)
QUICK = Amounts(num_chunks=1, chunk_size=8, num_updates=4, batch_pairs=8)


def run(config: StageConfig) -> None:
    """Solve the base's trajectories into shards, then train the student on them."""
    amounts = QUICK if config.quick else AMOUNTS
    seed_everything(config.seed + 1)
    base = load_base(config)
    shards = solve_trajectories(config, base, amounts)
    train_student(config, base, shards, amounts, config.out_dir / "lcm")


def solve_trajectories(config: StageConfig, base: SingleViewNetworks, amounts: Amounts) -> list[Path]:
    """Write shards of solved trajectories of single pictures."""
    latents = np.load(config.out_dir / "latents.npy", mmap_mode="r")
    scenes = load_dataset(config.data_dir).scenes

    def solve(rng: np.random.Generator) -> dict[str, np.ndarray]:
        torch.manual_seed(int(rng.integers(2**62)))
        picked = np.sort(rng.integers(len(scenes), size=amounts.chunk_size))
        views = rng.integers(latents.shape[1], size=amounts.chunk_size)
        captions = _captions([scenes[i] for i in picked], views.tolist(), rng)
        return solve_chunk(base, captions, torch.from_numpy(latents[picked, views]).float(), rng)

    return write_shards(config.out_dir / "lcm", amounts.num_chunks, config.seed + 1, solve)


def write_shards(
    folder: Path,
    num_chunks: int,
    seed: int,
    solve: Callable[[np.random.Generator], dict[str, np.ndarray]],
) -> list[Path]:
    """Write what `solve` returns, a file per chunk; existing ones are kept, chunk i depends on (seed, i)."""
    from tqdm import tqdm

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"chunk_{index:04d}.npz" for index in range(num_chunks)]
    for index, path in enumerate(tqdm(paths, desc="trajectories", mininterval=5.0)):
        if path.exists():
            continue
        solved = solve(update_rng(seed, index))
        with replaced(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **solved)  # type: ignore[arg-type]
    return paths


def _captions(scenes: Sequence[Scene], views: Sequence[int], rng: np.random.Generator) -> list[str]:
    texts = [caption(scene, rng) for scene in scenes]
    return [
        view_caption(text, view) if rng.random() < NAME_SIDE else text
        for text, view in zip(texts, views, strict=True)
    ]


@torch.no_grad()
def solve_chunk(
    base: SingleViewNetworks, captions: Sequence[str], clean: Tensor, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Follow the guided probability flow of some captions down to clean latents.

    Args:
        base: the teacher of single pictures.
        captions: B sentences.
        clean: latents of pictures that they are true of, [B, ..., C, H, W]; some trajectories start there.
        rng: draws guidance and timesteps.

    Returns:
        states [S, B, ..., C, H, W] and end [B, ..., C, H, W] in float16, timesteps [S], guidance [B],
        captions [B].
    """
    device = base.unet.device
    schedule = schedule_from_config(SOLVER_SCHEDULER)
    timesteps = jittered_timesteps(schedule, rng)
    if rng.random() < FROM_DATA_SHARE:
        timesteps = timesteps[int(rng.integers(1, len(timesteps))) :]
        alpha_bar = float(schedule.alpha_bar[timesteps[0]])
        x = alpha_bar**0.5 * clean + (1 - alpha_bar) ** 0.5 * torch.randn_like(clean)
    else:
        x = torch.randn_like(clean)
    x = x.to(device)
    unguided = rng.random(len(captions)) < UNGUIDED_SHARE
    guidance = np.where(unguided, 1.0, rng.uniform(1.0, MAX_GUIDANCE, len(captions))).astype(np.float32)
    states = []
    for timestep, next_timestep in zip(timesteps, [*timesteps[1:], -1], strict=True):
        states.append(x.half().cpu().numpy())
        noise = guided_noise(base, x, int(timestep), captions, torch.from_numpy(guidance).to(device))
        x = flow_step(schedule, noise, x, int(timestep), int(next_timestep))
    return {
        "states": np.stack(states),
        "end": x.half().cpu().numpy(),
        "timesteps": np.asarray(timesteps),
        "guidance": guidance,
        "captions": np.array(captions),
    }


def jittered_timesteps(schedule: NoiseSchedule, rng: np.random.Generator) -> list[int]:
    """The noisiest timestep, then one random timestep in each of SOLVER_STEPS - 1 equal parts, falling."""
    edges = np.linspace(schedule.num_train_steps - 1, 0, SOLVER_STEPS + 1)
    inner = [int(rng.uniform(low, high)) for high, low in zip(edges[1:-1], edges[2:], strict=True)]
    return [schedule.num_train_steps - 1, *inner]


def guided_noise(
    base: SingleViewNetworks, x: Tensor, timestep: int, captions: Sequence[str], guidance: Tensor
) -> Tensor:
    """ε_∅ + w (ε_c - ε_∅), both from one batch; x [B, ..., C, H, W], w [B]."""
    condition = base.encode([*captions, *[""] * len(captions)])
    with fast_autocast(x.device.type):
        both = base.predict(torch.cat([x, x]), torch.full((2 * len(x),), timestep), condition)
    prompt_noise, empty_noise = both.float().chunk(2)
    return empty_noise + guidance.reshape(-1, *[1] * (x.ndim - 1)) * (prompt_noise - empty_noise)


def flow_step(schedule: NoiseSchedule, noise: Tensor, x: Tensor, timestep: int, next_timestep: int) -> Tensor:
    """Deterministic DDIM step (η = 0) with the clamped x̂_0 and the noise that belongs to it."""
    alpha_bar = float(schedule.alpha_bar_at(timestep))
    next_alpha_bar = float(schedule.alpha_bar_at(next_timestep)) if next_timestep >= 0 else 1.0
    clean = predict_clean(schedule, noise, x, timestep)
    implied = (x - alpha_bar**0.5 * clean) / (1 - alpha_bar) ** 0.5
    return next_alpha_bar**0.5 * clean + (1 - next_alpha_bar) ** 0.5 * implied


def train_student(
    config: StageConfig, base: SingleViewNetworks, shards: list[Path], amounts: Amounts, folder: Path
) -> None:
    """Fit f_θ on (state, end) pairs drawn from all shards; the state is kept in the folder."""
    student = create_student(base)
    own = {name: parameter for name, parameter in student.unet.named_parameters() if is_learned(name)}
    learned = list(own.values())
    for parameter in learned:
        parameter.requires_grad_(True)
    guidance = [parameter for name, parameter in own.items() if "cond_proj" in name]
    others = [parameter for name, parameter in own.items() if "cond_proj" not in name]
    groups = [{"params": others, "factor": 1.0}, {"params": guidance, "factor": GUIDANCE_LR_FACTOR}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.99), weight_decay=0.0)
    average = create_average(student, EMA_DECAY)
    schedule = schedule_from_config(TEACHER_SCHEDULER)
    parts: dict[str, Stateful] = {"student": student, "average": average, "optimizer": optimizer}
    checkpointer = Checkpointer(folder / "state.pt", parts)
    loaded = [dict(np.load(path)) for path in shards]
    losses: list[float] = []
    for update in checkpointer.updates(amounts.num_updates, folder.name):
        for group in optimizer.param_groups:
            group["lr"] = group["factor"] * cosine_lr(update, amounts.num_updates, PEAK_LR, warmup=30)
        with fast_autocast(config.device):
            pairs = draw_pairs(loaded, amounts.batch_pairs, update_rng(config.seed + 2, update))
            loss = consistency_loss(student, schedule, pairs)
        descend(loss, learned, optimizer)
        average.update_parameters(student)
        losses.append(loss.item())
        if update % 50 == 49:
            logger.info("update %d: loss %.4f", update + 1, float(np.mean(losses[-50:])))


def load_student(config: StageConfig) -> MultiviewNetworks:
    """The student's running average with the MV-Adapter put in, frozen.

    Raises:
        FileNotFoundError: the `lcm` or the `adapter` stage has not run.
    """
    student = MultiviewNetworks(has_guidance_embedding=True)
    student.put_in(load_average(SingleViewNetworks(has_guidance_embedding=True), config.out_dir / "lcm"))
    load_adapter_into(student, config)
    return student.to(config.device).eval().requires_grad_(False)


def is_learned(name: str) -> bool:
    """Whether the student's UNet weight of that name is its own; it shares all others with the teacher.

    Shared are the big 3x3 convolutions below the highest resolution: otherwise both UNets would not fit into
    the shipped 36 MB. The teacher's file holds only what differs.
    """
    is_deep = name.startswith(("down_blocks.1", "down_blocks.2", "mid_block", "up_blocks.0", "up_blocks.1"))
    is_convolution = name.endswith((".conv1.weight", ".conv2.weight", ".conv.weight"))
    return ".processor." not in name and not (is_deep and is_convolution)


def create_student(base: SingleViewNetworks) -> SingleViewNetworks:
    """A copy of the base with a guidance embedding, which starts without effect; all frozen."""
    student = type(base)(has_guidance_embedding=True)
    missing, unexpected = student.load_state_dict(base.state_dict(), strict=False)
    if unexpected or any("cond_proj" not in name for name in missing):
        raise ValueError(f"The base does not fit the student: {[*missing, *unexpected][:3]}.")
    nn.init.zeros_(student.unet.time_embedding.cond_proj.weight)
    return student.to(base.unet.device).requires_grad_(False)


def draw_pairs(
    shards: list[dict[str, np.ndarray]], count: int, rng: np.random.Generator
) -> dict[str, Tensor | list[str]]:
    """A batch of random points of random trajectories with their ends."""
    columns: dict[str, list] = {"state": [], "end": [], "timestep": [], "guidance": [], "caption": []}
    for _ in range(count):
        shard = shards[int(rng.integers(len(shards)))]
        step = int(rng.integers(len(shard["timesteps"])))
        row = int(rng.integers(len(shard["end"])))
        columns["state"].append(torch.from_numpy(shard["states"][step, row]).float())
        columns["end"].append(torch.from_numpy(shard["end"][row]).float())
        columns["timestep"].append(int(shard["timesteps"][step]))
        columns["guidance"].append(float(shard["guidance"][row]))
        columns["caption"].append(str(shard["captions"][row]))
    return {
        "state": torch.stack(columns["state"]),
        "end": torch.stack(columns["end"]),
        "timestep": torch.tensor(columns["timestep"]),
        "guidance": torch.tensor(columns["guidance"]),
        "caption": columns["caption"],
    }


def consistency_loss(student: SingleViewNetworks, schedule: NoiseSchedule, pairs: dict) -> Tensor:
    """Pseudo-Huber loss of f_θ against the trajectory's end, averaged: every noise level weighs the same."""
    device = student.unet.device
    x, end = pairs["state"].to(device), pairs["end"].to(device)
    condition, guidance = student.encode(pairs["caption"]), pairs["guidance"].to(device)
    noise = student.predict(x, pairs["timestep"], condition, guidance)
    predicted = consistency_output(schedule, noise.float(), x, pairs["timestep"])
    return pseudo_huber(predicted, end)


def pseudo_huber(predicted: Tensor, end: Tensor) -> Tensor:
    """√(mean |f_θ - x_0|² + c²) - c of each entry of the batch, averaged."""
    error = (predicted - end).square().flatten(1).mean(dim=1)
    return ((error + HUBER_SCALE**2).sqrt() - HUBER_SCALE).mean()
