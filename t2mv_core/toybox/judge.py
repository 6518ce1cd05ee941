"""The independent judge: which family, colour and azimuth does a picture show?

A small convolutional network: neither the architecture (transformers) nor the seeds are the rewards'. It is
never a reward; it says, after the fact, whether following the rewards led to better pictures or only to
higher scores.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..formats.safetensors_io import read_with_config, write_safetensors
from ..formats.strict import load_strictly
from . import toybox_path
from .prompt_lists import PromptSpec

ARCHITECTURE = "toybox-judge"
WIDTHS = (24, 48, 96, 96)
CHUNK_SIZE = 96


@dataclass(frozen=True)
class JudgeResult:
    """Verdicts on B sets of V views.

    Attributes:
        family: the set shows the prompt's family, [B] bool.
        colour: the set's main colour is the prompt's, [B] bool.
        azimuth: the view shows the object from its camera's azimuth, [B, V] bool. Only meaningful for
            `asymmetric_families`.
        family_probability: of each family for the set, [B, families]; likewise the colour's.
        azimuth_probability: of each default azimuth for the view, [B, V, 6].
    """

    family: Tensor
    colour: Tensor
    azimuth: Tensor
    family_probability: Tensor
    colour_probability: Tensor
    azimuth_probability: Tensor


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


class Judge(nn.Module):
    """Three heads on one convolutional trunk: family, colour, azimuth of a single 64 px picture."""

    def __init__(self, families: Sequence[str], colours: Sequence[str], num_azimuths: int) -> None:
        """Create an untrained judge for these classes, in this order."""
        super().__init__()
        self.families, self.colours, self.num_azimuths = tuple(families), tuple(colours), num_azimuths
        first, *rest = WIDTHS
        layers: list[nn.Module] = [nn.Conv2d(3, first, 5, 2, 2, bias=False), nn.BatchNorm2d(first), nn.ReLU()]
        for inputs, outputs in zip((first, *rest), rest, strict=False):
            layers.append(ResidualBlock(inputs, outputs, 2))
        self.trunk = nn.Sequential(*layers)
        features = 2 * WIDTHS[-1]  # mean and maximum over the places
        self.family = nn.Linear(features, len(self.families))
        self.colour = nn.Linear(features, len(self.colours))
        self.azimuth = nn.Linear(features, num_azimuths)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures [n, 3, 64, 64] in [0, 1] -> logits of family, colour, azimuth, [n, classes] each."""
        places = self.trunk(2 * images - 1).flatten(2)
        features = torch.cat([places.mean(dim=2), places.amax(dim=2)], dim=1)
        return self.family(features), self.colour(features), self.azimuth(features)

    @torch.no_grad()
    def judge_views(self, images: Tensor, specs: Sequence[PromptSpec]) -> JudgeResult:
        """Judge B sets of views against what their prompts ask for.

        Family and colour are judged for the set, from the mean of the views' log-probabilities; the azimuth
        view by view: view v must look like the default rig's azimuth v.

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
        wanted_family = torch.tensor([_place(spec.family, self.families, "family") for spec in specs])
        wanted_colour = torch.tensor([_place(spec.colour, self.colours, "colour") for spec in specs])
        device = self.family.weight.device
        self.eval()
        parts = [self(chunk.to(device)) for chunk in images.flatten(0, 1).float().split(CHUNK_SIZE)]
        family, colour, azimuth = (
            torch.cat(logits).log_softmax(dim=-1).unflatten(0, images.shape[:2]).cpu()
            for logits in zip(*parts, strict=True)
        )
        family, colour = (x.mean(dim=1).softmax(dim=-1) for x in (family, colour))
        return JudgeResult(
            family=family.argmax(dim=-1) == wanted_family,
            colour=colour.argmax(dim=-1) == wanted_colour,
            azimuth=azimuth.argmax(dim=-1) == torch.arange(self.num_azimuths),
            family_probability=family,
            colour_probability=colour,
            azimuth_probability=azimuth.exp(),
        )


def _place(name: str, names: tuple[str, ...], what: str) -> int:
    if name not in names:
        raise ValueError(f"The judge knows no {what} {name!r}; it knows: {', '.join(names)}.")
    return names.index(name)


def save_judge(judge: Judge, path: Path) -> None:
    """Save as fp16 safetensors with the class names in the metadata, atomically."""
    config = {"families": judge.families, "colours": judge.colours, "num_azimuths": judge.num_azimuths}
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
    judge = Judge(config["families"], config["colours"], int(config["num_azimuths"]))
    load_strictly(judge, tensors, str(path))
    return judge.eval()
