"""Stage `image_adapter`: the MV-Adapter that draws the views of a picture, as published for SDXL.

It starts from the adapter of text to multiview; reference attention is new, and its outputs start at zero.
The base stays frozen. The pictures show the scenes from any side under other light, while the views keep
their own cameras and light. Source: MV-Adapter, arXiv:2412.03632.
"""

from __future__ import annotations

import os

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from t2mv_core.reference import NO_PICTURE, ReferenceFeatures, compute_reference_features
from t2mv_core.reference_picture import GENERIC_PROMPT
from t2mv_core.scheduler_config import schedule_from_config
from t2mv_core.text import TextCondition

from ..data.captions import caption, phrase_family
from ..data.dataset import load_dataset
from ..data.references import PER_SCENE, render_references
from ..data.scenes import Scene
from .adapter import HIGH_NOISE, PURE_NOISE, draw_views, load_teacher, shuffle_views
from .base import add_noise, denoising_loss
from .card import write_card
from .export import save_adapter_half
from .fitting import fit
from .networks import TEACHER_SCHEDULER, MultiviewNetworks, fast_autocast
from .stage import StageConfig, seed_everything
from .vae import encode_dataset

FILE_NAME = "image_mvadapter.safetensors"
SEED_OFFSET = 70
NUM_UPDATES = 3200
BATCH_VIEWS = 48
PEAK_LR = 2e-3
DROP_PICTURE = 0.1
DROP_CAMERAS = 0.1
WORDS = {"nothing": 0.25, "generic": 0.3, "family": 0.2, "caption": 0.25}
"""What a set's prompt says, and how often. MV-Adapter drops a tenth of its captions; those say less than ours
do. Captions for half of the sets, in 2400 updates, gave a student that keeps as many colours."""


def run(config: StageConfig) -> None:
    """Train the adapter, write it to `export/`, and report on it."""
    from .image_report import measure_image_model  # it reads what this stage writes

    networks = train(config)
    save_adapter_half(networks, config.export_dir / FILE_NAME)
    measure_image_model(config)
    write_card(config)


def train(config: StageConfig) -> MultiviewNetworks:
    """Train the adapter, its state kept in `image_adapter/state.pt`; return its running average."""
    seed_everything(config.seed + SEED_OFFSET)
    scenes = load_dataset(config.data_dir).scenes
    latents = np.load(config.out_dir / "latents.npy", mmap_mode="r")
    pictures = picture_latents(config, scenes)
    networks = create_networks(config)
    learned = nn.ParameterList(networks.adapter_parameters()).requires_grad_(True)
    schedule = schedule_from_config(TEACHER_SCHEDULER)

    def loss_of_update(update: int, total: int, rng: np.random.Generator) -> Tensor:
        views = draw_views(update, total, latents.shape[1], rng)
        picked = rng.integers(len(scenes), size=BATCH_VIEWS // len(views))
        captions = [draw_words(scenes[i], rng) for i in picked]
        clean = torch.from_numpy(latents[picked][:, views]).float().to(config.device)
        shown = shuffle_views(latents[picked], clean, views, rng)
        noisy, noise, timestep, alpha_bar = add_noise(schedule, clean, rng, HIGH_NOISE, PURE_NOISE, shown)
        with fast_autocast(config.device):
            with torch.no_grad():
                condition = networks.encode(captions)
                reference = draw_pictures(networks, pictures, picked, condition, rng)
            view_scale = 0.0 if rng.random() < DROP_CAMERAS else 1.0
            cameras = networks.cameras(views)
            predicted = networks.predict_views(
                noisy, timestep, condition, cameras, None, view_scale, reference
            )
        return denoising_loss(predicted, noise, alpha_bar)

    seed = config.seed + SEED_OFFSET
    average = fit(config, "image_adapter", learned, seed, NUM_UPDATES, PEAK_LR, loss_of_update)
    for parameter, value in zip(learned, average.parameters(), strict=True):
        parameter.data.copy_(value.data)
    return networks.eval().requires_grad_(False)


def create_networks(config: StageConfig) -> MultiviewNetworks:
    """The teacher with reference attention that does nothing yet, frozen."""
    networks = MultiviewNetworks(has_reference=True).to(config.device)
    networks.put_in(load_teacher(config))
    networks.start_reference()
    return networks.requires_grad_(False)


def picture_latents(config: StageConfig, scenes: list[Scene]) -> NDArray[np.float16]:
    """Latents of the training scenes' pictures, [N, PER_SCENE, C, h, w]; made when missing."""
    from diffusers import AutoencoderKL

    pictures, path = config.data_dir / "references.npy", config.out_dir / "reference_latents.npy"
    if not path.is_file():
        render_references(scenes, pictures, config.seed + SEED_OFFSET, workers=min(8, os.cpu_count() or 1))
        vae = AutoencoderKL.from_pretrained(config.out_dir / "vae").to(config.device).eval()
        encode_dataset(vae, np.load(pictures, mmap_mode="r"), path)
    return np.load(path, mmap_mode="r")


def draw_words(scene: Scene, rng: np.random.Generator) -> str:
    """A prompt that says as much of the scene as `WORDS` has it."""
    kind = str(rng.choice(list(WORDS), p=list(WORDS.values())))
    if kind == "caption":
        return caption(scene, rng)
    return {"nothing": "", "generic": GENERIC_PROMPT, "family": phrase_family(scene.family)}[kind]


def draw_pictures(
    networks: MultiviewNetworks,
    pictures: NDArray[np.float16],
    picked: NDArray[np.int64],
    condition: TextCondition,
    rng: np.random.Generator,
) -> ReferenceFeatures:
    """Features of one picture of each scene; the last sets, a binomial number of them, go without."""
    num_shown = int((rng.random(len(picked)) >= DROP_PICTURE).sum())
    if not num_shown:
        return NO_PICTURE
    numbers = rng.integers(PER_SCENE, size=num_shown)
    latents = torch.from_numpy(pictures[picked[:num_shown], numbers]).float().to(networks.unet.device)
    return compute_reference_features(networks.unet, latents, condition.select(range(num_shown)))
