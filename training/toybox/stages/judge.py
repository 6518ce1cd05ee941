"""Stage `judge`: train the independent judge on sets of views, export it, measure it on held-out scenes."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from t2mv_core.toybox.judge import ABSENT, Judge, JudgeLogits, load_judge, save_judge
from t2mv_core.toybox.prompt_lists import PromptSpec

from ..data.augmentation import augment
from ..data.dataset import Dataset, load_dataset
from ..data.scenes import COLOURS, FAMILIES, FIXED_MATERIALS, Scene, material_colours
from .networks import fast_autocast
from .reconstructions import load_reconstructions
from .stage import Checkpointer, StageConfig, Stateful, cosine_lr, descend, update_rng

logger = logging.getLogger(__name__)

NUM_UPDATES = 1500
BATCH_SCENES = 27
MATERIALS = ("wooden", "metal")
"""What a part may be of besides the ten colours."""
UNKNOWN = -100
"""Label of a part whose material is no class, such as a tyre's rubber; cross-entropy leaves it out."""
PEAK_LR = 3e-3
RECONSTRUCTED = 0.3
# The judge shares no seed with the rewards, which use the run's own.
SEED_OFFSET = 70_001


def run(config: StageConfig) -> None:
    """Train (resumes after a kill), write fp16 weights to `export/judge` with the figures beside them."""
    dataset = load_dataset(config.data_dir, limit=40 if config.quick else None)
    reconstructed = load_reconstructions(config, dataset)
    judge = train(config, [dataset] if reconstructed is None else [dataset, reconstructed])
    path = config.export_dir / "judge" / "judge.safetensors"
    save_judge(judge, path)
    test = load_dataset(config.test_data_dir, limit=3 if config.quick else None)
    figures = measure(load_judge(path).to(config.device), test)
    logger.info("held-out figures: %s", figures)
    (path.parent / "metrics.json").write_text(json.dumps(figures, indent=1))


class Labels(NamedTuple):
    """Class numbers of N scenes, [N] each."""

    family: Tensor
    colour: Tensor
    part: Tensor
    companion: Tensor


def train(config: StageConfig, datasets: Sequence[Dataset]) -> Judge:
    """Train the five heads on augmented renders and, where there are any, reconstructions."""
    torch.manual_seed(config.seed + SEED_OFFSET)
    num_azimuths = datasets[0].images.shape[1]
    judge = Judge(list(FAMILIES), list(COLOURS), MATERIALS, num_azimuths)
    judge = judge.to(memory_format=torch.channels_last).to(config.device)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=PEAK_LR, weight_decay=0.05)
    parts: dict[str, Stateful] = {"model": judge, "optimizer": optimizer}
    total = 6 if config.quick else NUM_UPDATES
    labels = [scene_labels(dataset) for dataset in datasets]
    for update in Checkpointer(config.out_dir / "judge" / "state.pt", parts).updates(total, "judge"):
        rng = update_rng(config.seed + SEED_OFFSET, update)
        for group in optimizer.param_groups:
            group["lr"] = cosine_lr(update, total, PEAK_LR)
        which = len(datasets) - 1 if rng.random() < RECONSTRUCTED else 0
        pixels, answers = _draw(datasets[which], labels[which], 3 if config.quick else BATCH_SCENES, rng)
        judge.train()
        with fast_autocast(config.device):
            logits = judge(pixels.to(config.device, memory_format=torch.channels_last))
        loss = judge_loss(
            JudgeLogits(*(x.float().unflatten(0, (-1, num_azimuths)) for x in logits)),
            Labels(*(x.to(config.device) for x in answers)),
        )
        descend(loss, judge.parameters(), optimizer, max_norm=2.0)
    return judge.eval()


def judge_loss(logits: JudgeLogits, labels: Labels) -> Tensor:
    """Sum of the heads' cross-entropies, view by view, and of part and companion for the whole set, too.

    A part or a companion may be hidden from some sides. The verdict is about the sum of the views'
    log-probabilities, so this is trained as well: a view that does not show a part learns to be unsure of it.

    Args:
        logits: of B sets of V views, [B, V, classes].
        labels: of the B scenes.
    """
    count, views = logits.azimuth.shape[:2]
    azimuths = torch.arange(views, device=logits.azimuth.device).expand(count, -1)
    by_view = [(x, y[:, None].expand(-1, views)) for x, y in zip(logits[:4], labels, strict=True)]
    by_set = [(logits.part, labels.part), (logits.companion, labels.companion)]
    terms = [_known_cross_entropy(x.flatten(0, 1), y.flatten()) for x, y in by_view]
    terms += [_known_cross_entropy(x.log_softmax(dim=-1).sum(dim=1), y) for x, y in by_set]
    terms.append(F.cross_entropy(logits.azimuth.flatten(0, 1), azimuths.flatten()))
    return torch.stack(terms).sum()


def _known_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the known labels; 0 where there are none."""
    total = F.cross_entropy(logits, labels, ignore_index=UNKNOWN, reduction="sum")
    return total / (labels != UNKNOWN).sum().clamp(min=1)


def scene_labels(dataset: Dataset) -> Labels:
    """Return the class numbers of every scene."""
    families, colours, companions = list(FAMILIES), list(COLOURS), [*COLOURS, ABSENT]
    scenes = dataset.scenes
    return Labels(
        torch.tensor([families.index(scene.family) for scene in scenes]),
        torch.tensor([colours.index(scene.colour) for scene in scenes]),
        torch.tensor([part_label(scene) for scene in scenes]),
        torch.tensor([companions.index(scene.companion_colour or ABSENT) for scene in scenes]),
    )


def part_label(scene: Scene) -> int:
    """Return the class that a scene's part looks like; UNKNOWN where it looks like none.

    A default material counts by its looks: the handle of a red mug is red, the trunk of a tree wooden.
    """
    classes = [*COLOURS.values(), *(FIXED_MATERIALS[name] for name in MATERIALS)]
    looks = material_colours(scene)["part"]
    return classes.index(looks) if looks in classes else UNKNOWN


def _draw(dataset: Dataset, labels: Labels, count: int, rng: np.random.Generator) -> tuple[Tensor, Labels]:
    """All views of some scenes, augmented one by one [count * V, 3, H, W], and the scenes' labels."""
    scenes = rng.integers(len(dataset.scenes), size=count)
    pixels = torch.from_numpy(dataset.images[scenes]).flatten(0, 1).permute(0, 3, 1, 2).float() / 255
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    return augment(pixels, generator), Labels(*(x[torch.from_numpy(scenes)] for x in labels))


def measure(judge: Judge, dataset: Dataset, chunk_scenes: int = 16) -> dict[str, object]:
    """Return the accuracy of every verdict on a dataset, over the scenes that have what it is about.

    Family and colours are judged for the set, the azimuth view by view.
    """
    verdicts = []
    for start in range(0, len(dataset.scenes), chunk_scenes):
        scenes = dataset.scenes[start : start + chunk_scenes]
        images = torch.from_numpy(dataset.images[start : start + chunk_scenes])
        specs = [PromptSpec(s.caption, s.family, s.colour, s.part_colour, s.companion_colour) for s in scenes]
        verdicts.append(judge.judge_views(images.permute(0, 1, 4, 2, 3).float() / 255, specs))
    right = {
        name: torch.cat([getattr(verdict, name) for verdict in verdicts]).float()
        for name in ("family", "colour", "part", "companion", "azimuth")
    }
    right["azimuth"] = right["azimuth"].mean(dim=1)
    right["part"][[scene.part_colour is None for scene in dataset.scenes]] = torch.nan
    right["companion"][[scene.companion_colour is None for scene in dataset.scenes]] = torch.nan
    names = np.array([scene.family for scene in dataset.scenes])
    asymmetric = np.array([FAMILIES[name].is_asymmetric for name in names])
    per_family = {
        name: {what: _share(values[names == name]) for what, values in right.items()}
        | {"is_asymmetric": FAMILIES[name].is_asymmetric}
        for name in sorted(set(names))
    }
    return {
        "num_scenes": len(names),
        **{what: _share(right[what]) for what in ("family", "colour", "part", "companion")},
        "azimuth_asymmetric": _share(right["azimuth"][asymmetric]),
        "family_asymmetric": _share(right["family"][asymmetric]),
        "colour_asymmetric": _share(right["colour"][asymmetric]),
        "per_family": per_family,
    }


def _share(values: Tensor) -> float | None:
    """Mean of the numbers among some values; None where there are none."""
    return float(values.nanmean()) if bool(values.isfinite().any()) else None
