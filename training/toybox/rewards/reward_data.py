"""What the toybox rewards learn from: true and false descriptions, sets of views with graded, known damage.

Every damage has a strength that is measured on the pictures or counted in the caption, so the targets of the
joint-view scorer are known, not guessed:

    alignment = (1 − min(1, 0.6·[wrong family] + 0.4·[wrong colour] + 0.25·[wrong part colour]))
                · (1 − 0.6·visible share of views that show another object)
    geometry  = 1 − sqrt(mean over views of the visible change against the true view)
    texture   = 1 − strength of the blur, the noise or the colour drift
    overall   = 0.4·alignment + 0.4·geometry + 0.2·texture
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from t2mv_core.toybox.prompt_lists import PromptSpec

from ..data.augmentation import blur
from ..data.captions import phrase
from ..data.dataset import Dataset
from ..data.scenes import COLOURS, FAMILIES, Scene, is_held_out

PART_MENTIONED = 0.8
CAPTION_WEIGHTS = {"family": 0.6, "colour": 0.4, "part": 0.25}
OVERALL_WEIGHTS = (0.4, 0.4, 0.2)
FOREIGN_WEIGHT = 0.6
# A mean change of this much over the object's pixels (of 1) counts as wholly different.
VISIBLE_CHANGE = 0.2
MAX_NOISE = 0.2
MAX_DRIFT = 0.4
VIEW_DAMAGES = ("swap", "rotate", "repeat", "ghost", "proportion", "foreign")
TEXTURE_DAMAGES = ("blur", "noise", "drift")


def describe(scene: Scene, rng: np.random.Generator) -> PromptSpec:
    """A true description in a random wording; the part's own colour is usually said."""
    says_part = scene.part_colour is not None and rng.random() < PART_MENTIONED
    return _spec(scene.family, scene.colour, scene.part_colour if says_part else None, rng)


def falsify(spec: PromptSpec, kind: str, rng: np.random.Generator) -> PromptSpec:
    """Change one thing a description says, not into a combination that is held out of training.

    Args:
        spec: a true description.
        kind: "family", "colour", "part" or "swap" (body and part colours exchanged). The last two need a part
            colour (for "swap" one that a body can have); without it the body's colour is changed.
        rng: draws the new words.
    """
    part = spec.part_colour
    if (kind == "part" and part is None) or (kind == "swap" and part not in COLOURS):
        kind = "colour"
    # A swap has one outcome; and where a test scene is held out itself, there is nothing to keep back.
    is_exempt = kind == "swap" or is_held_out(spec.family, spec.colour, part)
    while True:
        family, colour, new_part = spec.family, spec.colour, part
        if kind == "family":
            family = _other(tuple(FAMILIES), (family,), rng)
        elif kind == "colour":
            colour = _other(tuple(COLOURS), (colour,), rng)
        elif kind == "part":
            new_part = _other(tuple(COLOURS), (colour, str(part)), rng)
        else:
            colour, new_part = str(part), colour
        if is_exempt or not is_held_out(family, colour, new_part):
            return _spec(family, colour, new_part, rng)


def wrongness(spec: PromptSpec, scene: Scene) -> float:
    """How much of a description is false for a scene, in [0, 1]; see the module docstring."""
    wrong = CAPTION_WEIGHTS["family"] * (spec.family != scene.family)
    wrong += CAPTION_WEIGHTS["colour"] * (spec.colour != scene.colour)
    wrong += CAPTION_WEIGHTS["part"] * (
        spec.part_colour is not None and spec.part_colour != scene.part_colour
    )
    return min(1.0, wrong)


def truth_table(specs: Sequence[PromptSpec], scenes: Sequence[Scene]) -> Tensor:
    """Which description is true of which scene, [scenes, specs] bool."""
    return torch.tensor([[wrongness(spec, scene) == 0 for spec in specs] for scene in scenes])


@dataclass(frozen=True)
class DamagedSet:
    """A set of views [V, 3, H, W] in [0, 1], a caption, what was done to them, four targets in [0, 1].

    `view_changes` [V] in [0, 1]: how far each view visibly is from the true one, apart from texture damage.
    """

    views: Tensor
    prompt: str
    damage: tuple[str, ...]
    targets: tuple[float, float, float, float]
    view_changes: Tensor


class SetMaker:
    """Makes damaged sets of a dataset's scenes."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self._alike: dict[tuple[str, str], list[int]] = defaultdict(list)
        for index, scene in enumerate(dataset.scenes):
            self._alike[scene.family, scene.colour].append(index)

    def make(
        self,
        index: int,
        rng: np.random.Generator,
        kinds: tuple[str | None, str | None, str | None] | None = None,
    ) -> DamagedSet:
        """Damage the set of scene `index`.

        Args:
            index: which scene.
            rng: draws kinds and strengths.
            kinds: caption, view and texture damage to apply, each None for none; drawn when not given.
        """
        caption_kind, view_kind, texture_kind = kinds if kinds is not None else _draw_kinds(rng)
        scene = self.dataset.scenes[index]
        spec = describe(scene, rng)
        if caption_kind is not None:
            spec = falsify(spec, caption_kind, rng)
        views, visible, foreign = self._damage_views(index, view_kind, rng)
        pixels = torch.from_numpy(views).permute(0, 3, 1, 2)
        pixels, texture = damage_texture(pixels, texture_kind, rng)
        alignment = (1 - wrongness(spec, scene)) * (1 - FOREIGN_WEIGHT * foreign)
        geometry = 1 - float(np.sqrt(visible.mean()))
        overall = float(np.dot(OVERALL_WEIGHTS, (alignment, geometry, texture)))
        damage = tuple(kind for kind in (caption_kind, view_kind, texture_kind) if kind is not None)
        targets = (alignment, geometry, texture, overall)
        return DamagedSet(pixels, spec.prompt, damage, targets, torch.from_numpy(visible))

    def _damage_views(
        self, index: int, kind: str | None, rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
        """Views [V, H, W, 3], visible change per view in [0, 1], visible share of another object's views."""
        images, shapes = self.dataset.images, self.dataset.silhouettes
        true = images[index].astype(np.float32) / 255
        count = len(true)
        unchanged = np.zeros(count, np.float32)
        if kind is None:
            return true, unchanged, 0.0
        objects, azimuths = np.full(count, index), np.arange(count)
        chosen = rng.permutation(count)[: rng.integers(1, count // 2 + 1)]
        opacity = 1.0
        if kind == "swap":
            chosen = rng.permutation(count)[: rng.integers(2, count + 1)]
            azimuths[chosen] = np.roll(azimuths[chosen], 1)
        elif kind == "rotate":
            azimuths = np.roll(azimuths, rng.integers(1, count))
        elif kind in ("repeat", "ghost"):
            azimuths[chosen] = (azimuths[chosen] + rng.integers(1, count, len(chosen))) % count
            opacity = float(rng.uniform(0.2, 0.6)) if kind == "ghost" else 1.0
        else:
            objects[chosen] = self._other_object(index, kind == "proportion", rng)
        shown = images[objects, azimuths].astype(np.float32) / 255
        shown = opacity * shown + (1 - opacity) * true
        visible = visible_change(true, shown, shapes[index] | shapes[objects, azimuths])
        foreign = float(visible.mean()) if kind == "foreign" else 0.0
        return shown, visible, foreign

    def _other_object(self, index: int, is_alike: bool, rng: np.random.Generator) -> int:
        """Another scene: of the same family and colour where there is one, or of another family."""
        scene = self.dataset.scenes[index]
        if is_alike:
            candidates = [i for i in self._alike[scene.family, scene.colour] if i != index]
            return candidates[int(rng.integers(len(candidates)))] if candidates else index
        while True:
            other = int(rng.integers(len(self.dataset.scenes)))
            if self.dataset.scenes[other].family != scene.family or len(self._alike) == 1:
                return other


def damage_texture(views: Tensor, kind: str | None, rng: np.random.Generator) -> tuple[Tensor, float]:
    """Blur, noise or per-view colour drift of random strength s on [V, 3, H, W]; also 1 − s, the target."""
    strength = float(rng.uniform(0.05, 1.0)) if kind is not None else 0.0
    if kind == "blur":
        views = blur(views, torch.full((len(views), 1, 1, 1), strength))
    elif kind == "noise":
        noise = rng.standard_normal(views.shape, dtype=np.float32)
        views = views + MAX_NOISE * strength * torch.from_numpy(noise)
    elif kind == "drift":
        # One sign per channel and view, so that a drift of a given strength always shows.
        signs = torch.from_numpy(rng.choice([-1.0, 1.0], (len(views), 3, 1, 1)).astype(np.float32))
        views = views * (1 + MAX_DRIFT * strength * signs)
    return views.clamp(0, 1), 1 - strength


def subset(dataset: Dataset, images: NDArray[np.uint8]) -> Dataset:
    """The dataset's first scenes with other pictures of them (VAE reconstructions, for example)."""
    count = len(images)
    return replace(
        dataset, images=images, silhouettes=dataset.silhouettes[:count], scenes=dataset.scenes[:count]
    )


def _draw_kinds(rng: np.random.Generator) -> tuple[str | None, str | None, str | None]:
    """Each of the three damages with probability one half, independently."""
    drawn: list[str | None] = []
    for kinds in (("family", "colour", "part", "swap"), VIEW_DAMAGES, TEXTURE_DAMAGES):
        drawn.append(kinds[int(rng.integers(len(kinds)))] if rng.random() < 0.5 else None)
    return drawn[0], drawn[1], drawn[2]


def visible_change(
    true: NDArray[np.float32], shown: NDArray[np.float32], mask: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Mean absolute change over the object's pixels, [n] in [0, 1]; 1 from VISIBLE_CHANGE on.

    Args:
        true: [n, H, W, 3] in [0, 1].
        shown: what is shown instead, same shape.
        mask: where an object is in either, [n, H, W].
    """
    change = np.abs(true - shown).mean(axis=-1) * mask
    area = np.maximum(mask.sum(axis=(1, 2)), 1)
    return np.minimum(1, change.sum(axis=(1, 2)) / area / VISIBLE_CHANGE).astype(np.float32)


def _spec(family: str, colour: str, part: str | None, rng: np.random.Generator) -> PromptSpec:
    return PromptSpec(phrase(family, colour, part, int(rng.integers(4))), family, colour, part)


def _other(names: tuple[str, ...], excluded: tuple[str, ...], rng: np.random.Generator) -> str:
    left = [name for name in names if name not in excluded]
    return left[int(rng.integers(len(left)))]
