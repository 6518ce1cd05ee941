"""The independent judge: which family, colours and azimuth does a picture show?

A small convolutional network: neither the architecture (transformers) nor the seeds are the rewards'. It is
never a reward; it says, after the fact, whether following the rewards led to better pictures or only to
higher scores.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..formats.safetensors_io import read_with_config, write_safetensors
from ..formats.strict import load_strictly
from . import toybox_path
from .prompt_lists import PromptSpec

ARCHITECTURE = "toybox-judge"
JUDGE_PX = 64  # of the pictures it was trained on
STEM_WIDTH = 24
DETAIL_BLOCKS = ((24, 1), (48, 2))
"""(width, stride) of the residual blocks up to a map of 16 x 16 places, which still shows small parts."""
SCENE_BLOCKS = ((96, 2), (96, 2))
"""Those after it, down to 4 x 4 places: what the object is and where it faces."""
HIDDEN_WIDTH = 88
ABSENT = "none"
"""The companion's class where the object stands alone."""
CHUNK_SIZE = 96


@dataclass(frozen=True)
class JudgeResult:
    """Verdicts on B sets of V views.

    Attributes:
        family: the set shows the prompt's family, [B] bool.
        colour: the set's main colour is the prompt's, [B] bool.
        part: the part has the prompt's colour, [B] bool. Only meaningful where the prompt gives one.
        companion: the second object has the prompt's colour, [B] bool. Only meaningful where the prompt
            names one.
        azimuth: the view shows the object from its camera's azimuth, [B, V] bool. Only meaningful for
            `asymmetric_families`.
    """

    family: Tensor
    colour: Tensor
    part: Tensor
    companion: Tensor
    azimuth: Tensor


class JudgeLogits(NamedTuple):
    """Logits of single pictures, [n, classes] each."""

    family: Tensor
    colour: Tensor
    part: Tensor
    companion: Tensor
    azimuth: Tensor


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a skip connection; the first may halve the size and change the width."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.skip = nn.Sequential(nn.AvgPool2d(stride), nn.Conv2d(inputs, outputs, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, H, W] -> [n, outputs, H / stride, W / stride]."""
        return torch.relu(self.body(x) + self.skip(x))


class PlaceHead(nn.Module):
    """Answers about a thing in the picture: it attends to the places that show it.

    Every place gives logits and a weight; they follow from the place's details, from what the object is, and
    from where in the object the place is.
    """

    def __init__(self, classes: int) -> None:
        """Create an untrained head."""
        super().__init__()
        width = SCENE_BLOCKS[-1][0]
        self.from_details = nn.Conv2d(DETAIL_BLOCKS[-1][0], HIDDEN_WIDTH, 3, 1, 1)
        self.from_scene = nn.Conv2d(width, HIDDEN_WIDTH, 1)
        self.from_features = nn.Linear(2 * width, HIDDEN_WIDTH)
        self.answer = nn.Conv2d(HIDDEN_WIDTH, classes + 1, 1)

    def forward(self, details: Tensor, scene: Tensor, features: Tensor) -> Tensor:
        """[n, c, H, W], [n, C, h, w] with h <= H and [n, 2 C] -> logits [n, classes]."""
        coarse = self.from_scene(scene) + self.from_features(features)[:, :, None, None]
        hidden = self.from_details(details) + F.interpolate(coarse, size=details.shape[-2:], mode="bilinear")
        answers = self.answer(torch.relu(hidden)).flatten(2)
        logits, weights = answers[:, 1:], answers[:, :1].softmax(dim=-1)
        return (weights * logits).sum(dim=-1)


class Judge(nn.Module):
    """Five heads on one convolutional trunk; each answers about a single 64 px picture."""

    def __init__(
        self, families: Sequence[str], colours: Sequence[str], materials: Sequence[str], num_azimuths: int
    ) -> None:
        """Create an untrained judge for these classes, in this order; a part may be of a material, too."""
        super().__init__()
        self.families, self.colours, self.materials = tuple(families), tuple(colours), tuple(materials)
        self.num_azimuths = num_azimuths
        self.part_colours = (*self.colours, *self.materials)
        self.companion_colours = (*self.colours, ABSENT)
        stem = [nn.Conv2d(3, STEM_WIDTH, 5, 2, 2, bias=False), nn.BatchNorm2d(STEM_WIDTH), nn.ReLU()]
        self.details = nn.Sequential(*stem, *_residual_blocks(STEM_WIDTH, DETAIL_BLOCKS))
        self.scene = nn.Sequential(*_residual_blocks(DETAIL_BLOCKS[-1][0], SCENE_BLOCKS))
        features = 2 * SCENE_BLOCKS[-1][0]  # mean and maximum over the places
        self.family = nn.Linear(features, len(self.families))
        self.colour = nn.Linear(features, len(self.colours))
        self.part = PlaceHead(len(self.part_colours))
        self.companion = PlaceHead(len(self.companion_colours))
        self.azimuth = nn.Linear(features, num_azimuths)

    def forward(self, images: Tensor) -> JudgeLogits:
        """Answer for pictures [n, 3, 64, 64] in [0, 1]."""
        details = self.details(2 * images - 1)
        scene = self.scene(details)
        features = torch.cat([scene.mean(dim=(2, 3)), scene.amax(dim=(2, 3))], dim=1)
        return JudgeLogits(
            self.family(features),
            self.colour(features),
            self.part(details, scene, features),
            self.companion(details, scene, features),
            self.azimuth(features),
        )

    @torch.no_grad()
    def judge_views(self, images: Tensor, specs: Sequence[PromptSpec]) -> JudgeResult:
        """Judge B sets of views against what their prompts ask for.

        Family and colours are judged for the set, from the mean of the views' log-probabilities: a view that
        does not show a part gives every colour about the same. The azimuth is judged view by view: view v
        must look like the default rig's azimuth v.

        Args:
            images: [B, V, 3, 64, 64] in [0, 1], V of the default rig.
            specs: what the B prompts ask for.

        Raises:
            ValueError: the number of views or of specs does not fit, or a spec names an unknown class.
        """
        if images.ndim != 5 or images.shape[1] != self.num_azimuths or len(specs) != len(images):
            raise ValueError(
                f"images have shape {list(images.shape)} for {len(specs)} prompts; the judge takes "
                f"[B, {self.num_azimuths}, 3, 64, 64] with one prompt per set."
            )
        device = self.family.weight.device
        self.eval()
        answers = [self(chunk.to(device)) for chunk in images.flatten(0, 1).float().split(CHUNK_SIZE)]
        logits = JudgeLogits(
            *(torch.cat(x).unflatten(0, images.shape[:2]).cpu() for x in zip(*answers, strict=True))
        )
        # The views' normalising constants are the same for all classes, so the mean of the logits serves.
        family, colour, part, companion = (x.mean(dim=1) for x in logits[:4])
        return JudgeResult(
            family=_is_wanted(family, [spec.family for spec in specs], self.families, "family"),
            colour=_is_wanted(colour, [spec.colour for spec in specs], self.colours, "colour"),
            part=_is_wanted(part, [s.part_colour for s in specs], self.part_colours, "part colour"),
            companion=_is_wanted(
                companion, [s.companion_colour for s in specs], self.colours, "companion colour"
            ),
            azimuth=logits.azimuth.argmax(dim=-1) == torch.arange(self.num_azimuths),
        )


def _residual_blocks(width: int, blocks: Sequence[tuple[int, int]]) -> Iterator[ResidualBlock]:
    for outputs, stride in blocks:
        yield ResidualBlock(width, outputs, stride)
        width = outputs


def _is_wanted(logits: Tensor, wanted: Sequence[str | None], names: tuple[str, ...], what: str) -> Tensor:
    """Whether the likeliest class of each set is the wanted one, [B]; false where nothing is wanted."""
    places = torch.tensor([-1 if name is None else _place(name, names, what) for name in wanted])
    return logits.argmax(dim=-1) == places


def _place(name: str, names: tuple[str, ...], what: str) -> int:
    if name not in names:
        raise ValueError(f"The judge knows no {what} {name!r}; it knows: {', '.join(names)}.")
    return names.index(name)


def save_judge(judge: Judge, path: Path) -> None:
    """Save as fp16 safetensors with the class names in the metadata, atomically."""
    config = {
        "families": judge.families,
        "colours": judge.colours,
        "materials": judge.materials,
        "num_azimuths": judge.num_azimuths,
    }
    tensors = {name: t.half() if t.is_floating_point() else t for name, t in judge.state_dict().items()}
    write_safetensors(tensors, path, {"architecture": ARCHITECTURE, "config": json.dumps(config)})


def load_judge(path: Path | None = None) -> Judge:
    """Load the judge; the bundled one when no path is given.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file does not hold a judge.
    """
    path = toybox_path("judge/judge.safetensors") if path is None else path
    tensors, config = read_with_config(path, ARCHITECTURE)
    judge = Judge(config["families"], config["colours"], config["materials"], int(config["num_azimuths"]))
    load_strictly(judge, tensors, str(path))
    return judge.eval()
