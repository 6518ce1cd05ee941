"""What the joint-view scorer learns from: sets of views with graded, known damage.

Every damage has a strength that is measured on the pictures or counted in the caption, so its targets are
known, not guessed:

    alignment = (1 − min(1, 0.6·[wrong family] + 0.4·[wrong colour] + 0.25·[wrong part colour]
                            + 0.25·[wrong companion colour]))
                · (1 − 0.6·visible share of views that show another object)
    geometry  = 1 − sqrt(mean over views of the visible change against the true view)
    texture   = 1 − strength of the blur, the noise or the colour drift
    overall   = 0.4·alignment + 0.4·geometry + 0.2·texture

A set of pure noise has alignment, geometry and texture 0.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from t2mv_core.toybox.silhouettes import BACKGROUND

from ..data.augmentation import blur
from ..data.dataset import Dataset
from ..data.renderer import render_views
from ..data.scenes import FAMILIES, Scene
from .lies import describe, falsify, wrongness

OVERALL_WEIGHTS = (0.4, 0.4, 0.2)
FOREIGN_WEIGHT = 0.6
# A mean change of this much over the object's pixels (of 1) counts as wholly different.
VISIBLE_CHANGE = 0.2
MAX_NOISE = 0.2
MAX_DRIFT = 0.4
ATTACKS = ("attack_unrelated", "attack_repeat", "attack_noise", "attack_mirror")
VIEW_DAMAGES = ("swap", "rotate", "repeat", "ghost", "alike", "proportion", "mirror", "foreign", *ATTACKS)
# The subtle ones most often: the others are learned from few examples.
VIEW_CHANCES = (0.08, 0.06, 0.08, 0.06, 0.22, 0.22, 0.08, 0.05, 0.03, 0.05, 0.01, 0.06)
TEXTURE_DAMAGES = ("blur", "noise", "drift")
TWINS = 0.6
WIDTHS, COLOURS = 8, 4  # heights at which views are compared
MEAN_WIDTH = 0.3
NUM_FACTS = WIDTHS + 3 * COLOURS
CONTRASTS = (
    (1.0, 0.0, 0.0, -1.0, 0.0, 0.0),  # front against back
    (0.0, 0.0, 1.0, 0.0, -1.0, 0.0),  # right against left
    (0.0, 1.0, 0.0, 0.0, 0.0, -1.0),  # front right against front left
)
"""Sums over the six views of the default rig that vanish where opposite ones show the same."""
SIGNED_FACTS = len(CONTRASTS) * NUM_FACTS

Kinds = tuple[str | None, str | None, str | None]


def view_facts(views: NDArray[np.float32], shapes: NDArray[np.bool_]) -> NDArray[np.float32]:
    """What opposite views of one object have in common, [n, NUM_FACTS] around 0.

    How wide it is at eight heights, which is equal in front and at the back, and its colours at four heights.

    Args:
        views: [n, H, W, 3] in [0, 1].
        shapes: where the object is, [n, H, W].
    """
    widths = shapes.reshape(len(shapes), WIDTHS, -1).mean(axis=-1)
    colours = (views - np.float32(BACKGROUND)).reshape(len(views), COLOURS, -1, 3).mean(axis=2)
    facts = np.concatenate([2 * (widths - MEAN_WIDTH), 4 * colours.reshape(len(views), -1)], axis=1)
    return facts.astype(np.float32)


def signed_facts(facts: Tensor, views: Tensor) -> Tensor:
    """Facts [..., NUM_FACTS] of views (indices [...]) with the signs of CONTRASTS, [..., SIGNED_FACTS].

    Their sum over a set vanishes where all of its views show the same object.
    """
    signs = torch.tensor(CONTRASTS, device=facts.device).T[views]
    return (signs[..., :, None] * facts[..., None, :]).flatten(-2)


def other_proportions(scene: Scene, rng: np.random.Generator) -> Scene:
    """The same scene, every proportion drawn from the half of its range in which it is not."""
    proportions = {}
    for name, (low, high) in FAMILIES[scene.family].ranges.items():
        middle = (low + high) / 2
        half = (low, middle) if scene.proportions[name] > middle else (middle, high)
        proportions[name] = float(rng.uniform(*half))
    return replace(scene, proportions=proportions)


@dataclass(frozen=True)
class DamagedSet:
    """A set of views [V, 3, H, W] in [0, 1], a caption, what was done to them, four targets in [0, 1].

    `view_changes` [V] in [0, 1]: how far each view visibly is from the true one, apart from texture damage.
    `facts` [V, NUM_FACTS]: of what each view shows, apart from texture damage.
    """

    views: Tensor
    prompt: str
    damage: tuple[str, ...]
    targets: tuple[float, float, float, float]
    view_changes: Tensor
    facts: Tensor


class _Shown:
    """The views of one scene and their silhouettes, to be overwritten by what damages them."""

    def __init__(self, dataset: Dataset, index: int) -> None:
        self._dataset = dataset
        self.views = dataset.images[index].astype(np.float32) / 255
        self.shapes = dataset.silhouettes[index].copy()

    def put(self, places: NDArray[np.int64], objects: NDArray[np.int64], azimuths: NDArray[np.int64]) -> None:
        """Show other pictures of the dataset in some places."""
        self.views[places] = self._dataset.images[objects, azimuths].astype(np.float32) / 255
        self.shapes[places] = self._dataset.silhouettes[objects, azimuths]


class SetMaker:
    """Makes damaged sets of a dataset's scenes."""

    def __init__(self, dataset: Dataset, is_rendered: bool = True) -> None:
        """Prepare.

        Args:
            dataset: the scenes.
            is_rendered: whether its pictures are plain renders, so that a new render does not stand out;
                otherwise "proportion" becomes "alike".
        """
        self.dataset = dataset
        self._is_rendered = is_rendered
        self._alike: dict[tuple[str, str], list[int]] = defaultdict(list)
        for index, scene in enumerate(dataset.scenes):
            self._alike[scene.family, scene.colour].append(index)

    def make_pair(self, index: int, rng: np.random.Generator) -> tuple[DamagedSet, DamagedSet]:
        """Two differently damaged sets of a scene; often twins, of which only one has damaged views."""
        if rng.random() >= TWINS:
            return self.make(index, rng), self.make(index, rng)
        caption, view, texture = _draw_kinds(rng, 0.3, 1.0, 0.3)
        seed = int(rng.integers(2**62))
        twins = [
            self.make(index, np.random.default_rng(seed), (caption, kind, texture)) for kind in (None, view)
        ]
        return twins[0], twins[1]

    def make(self, index: int, rng: np.random.Generator, kinds: Kinds | None = None) -> DamagedSet:
        """Damage the set of scene `index`.

        Args:
            index: which scene.
            rng: draws kinds and strengths; equal ones give equal captions and textures whatever the views.
            kinds: caption, view and texture damage to apply, each None for none; drawn when not given.
        """
        caption_kind, view_kind, texture_kind = kinds if kinds is not None else _draw_kinds(rng)
        caption_rng, view_rng, texture_rng = rng.spawn(3)
        scene = self.dataset.scenes[index]
        spec = describe(scene, caption_rng)
        if caption_kind is not None:
            spec = falsify(spec, caption_kind, caption_rng)
        true, shown = (_Shown(self.dataset, index) for _ in range(2))
        if view_kind is not None:
            self._damage_views(shown, index, view_kind, view_rng)
        visible = visible_change(true.views, shown.views, true.shapes | shown.shapes)
        pixels, texture = damage_texture(
            torch.from_numpy(shown.views).permute(0, 3, 1, 2), texture_kind, texture_rng
        )
        is_foreign = view_kind in ("foreign", "attack_unrelated")
        alignment = (1 - wrongness(spec, scene)) * (1 - FOREIGN_WEIGHT * float(visible.mean()) * is_foreign)
        if view_kind == "attack_noise":
            alignment = texture = 0.0
        geometry = 1 - float(np.sqrt(visible.mean()))
        overall = float(np.dot(OVERALL_WEIGHTS, (alignment, geometry, texture)))
        return DamagedSet(
            pixels,
            spec.prompt,
            tuple(kind for kind in (caption_kind, view_kind, texture_kind) if kind is not None),
            (alignment, geometry, texture, overall),
            torch.from_numpy(visible),
            torch.from_numpy(view_facts(shown.views, shown.shapes)),
        )

    def _damage_views(self, shown: _Shown, index: int, kind: str, rng: np.random.Generator) -> None:
        """Overwrite some or all views of scene `index`."""
        count = len(shown.views)
        places = rng.permutation(count)[: rng.integers(1, count // 2 + 1)]
        all_places = np.arange(count)
        if kind == "proportion" and self._is_rendered:
            scene = other_proportions(self.dataset.scenes[index], rng)
            azimuths = [self.dataset.azimuths_deg[place] for place in places]
            images, shown.shapes[places] = render_views(scene, azimuths, shown.views.shape[1])
            shown.views[places] = images.astype(np.float32) / 255
        elif kind in ("alike", "proportion"):
            shown.put(places, np.array([self.alike(index, rng)]), places)
        elif kind == "foreign":
            shown.put(places, np.array([self._other_family(index, rng)]), places)
        elif kind == "attack_unrelated":
            objects = np.array([self._other_family(index, rng) for _ in all_places])
            shown.put(all_places, objects, all_places)
        elif kind in ("mirror", "attack_mirror"):
            places = places if kind == "mirror" else all_places
            shown.views[places] = shown.views[places, :, ::-1]
            shown.shapes[places] = shown.shapes[places, :, ::-1]
        elif kind == "attack_noise":
            shown.views[:] = rng.random(shown.views.shape, dtype=np.float32)
        else:
            self._turn(shown, index, kind, places, rng)

    def _turn(
        self, shown: _Shown, index: int, kind: str, places: NDArray[np.int64], rng: np.random.Generator
    ) -> None:
        """Show views of the same object in wrong places."""
        count = len(shown.views)
        true, azimuths = shown.views.copy(), np.arange(count)
        if kind == "swap":
            places = rng.permutation(count)[: rng.integers(2, count + 1)]
            azimuths[places] = np.roll(azimuths[places], 1)
        elif kind == "rotate":
            azimuths = np.roll(azimuths, rng.integers(1, count))
        elif kind == "attack_repeat":
            azimuths[:] = rng.integers(count)
        else:
            azimuths[places] = (azimuths[places] + rng.integers(1, count, len(places))) % count
        shown.put(np.arange(count), np.array([index]), azimuths)
        if kind == "ghost":
            opacity = np.float32(rng.uniform(0.2, 0.6))
            shown.views = opacity * shown.views + (1 - opacity) * true

    def alike(self, index: int, rng: np.random.Generator) -> int:
        """Another scene of the same family and colour; the same one where there is no other."""
        scene = self.dataset.scenes[index]
        candidates = [i for i in self._alike[scene.family, scene.colour] if i != index]
        return candidates[int(rng.integers(len(candidates)))] if candidates else index

    def _other_family(self, index: int, rng: np.random.Generator) -> int:
        """A scene of another family, where there is one."""
        while True:
            other = int(rng.integers(len(self.dataset.scenes)))
            is_other = self.dataset.scenes[other].family != self.dataset.scenes[index].family
            if is_other or len(self._alike) == 1:
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


def _draw_kinds(
    rng: np.random.Generator, caption: float = 0.5, view: float = 0.5, texture: float = 0.5
) -> Kinds:
    """Each of the three damages with its probability, independently."""
    is_damaged = rng.random(3) < (caption, view, texture)
    view_kind = VIEW_DAMAGES[int(rng.choice(len(VIEW_DAMAGES), p=VIEW_CHANCES))]
    texture_kind = TEXTURE_DAMAGES[int(rng.integers(len(TEXTURE_DAMAGES)))]
    return (
        "any" if is_damaged[0] else None,
        view_kind if is_damaged[1] else None,
        texture_kind if is_damaged[2] else None,
    )


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
