"""What the sets of a run are drawn of, by name: prompts, or pictures with the prompts beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from t2mv_core.bundle import ModelBundle
from t2mv_core.reference_picture import frame_picture, read_framed, read_picture

from ..algorithm.rollout import Batch
from ..config import SamplingConfig
from ..data.prompts import load_split
from ..data.references import Reference, read_references, split_references
from ..data.text_cache import ConditionCache


class Subjects:
    """Prompts, or pictures with prompts, and what a policy needs of them.

    Args:
        bundle: the model.
        config: says which.

    Raises:
        FileNotFoundError: a source or a picture is not there.
        ValueError: the model does the other task; or a bad source, prompt or picture.
    """

    def __init__(self, bundle: ModelBundle, config: SamplingConfig) -> None:
        self._image_px = bundle.image_px
        self.conditions = ConditionCache(bundle, config.negative_prompt)
        self._references: dict[str, Reference] | None = None
        check_task(bundle, config)
        if config.references is None:
            self.source, self.split = config.prompts, load_split(config.prompts, config.held_out_share)
            return
        self.source = config.references
        self._references = read_references(Path(config.references))
        for reference in self._references.values():
            self._frame(reference)  # refuses it before hours of training
        self.split = split_references(self._references, config.held_out_share)

    def prompts(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the sentences of some subjects."""
        return tuple(names if self._references is None else (self._references[name].prompt for name in names))

    def batch(self, names: Sequence[str]) -> Batch:
        """Return what a policy draws some subjects of."""
        prompts = self.prompts(names)
        return Batch(prompts, self.conditions.lookup(prompts), self.pictures(names))

    def identities(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return what tells subjects apart: prompts, or what pictures show and their prompts."""
        if self._references is None:
            return tuple(names)
        found = (self._references[name] for name in names)
        return tuple(repr((one.content, one.prompt, one.is_framed)) for one in found)

    def pictures(self, names: Sequence[str]) -> Tensor | None:
        """Return the framed pictures of some subjects, [B, 3, H, W] in [0, 1]; None for prompts."""
        if self._references is None:
            return None
        return torch.stack([self._frame(self._references[name]) for name in names])

    def _frame(self, reference: Reference) -> Tensor:
        if reference.is_framed:
            return read_framed(reference.path, self._image_px)
        picture = read_picture(reference.path)
        try:
            return frame_picture(picture, self._image_px)
        except ValueError as error:
            raise ValueError(f"{reference.path}: {error}") from error


def check_task(bundle: ModelBundle, config: SamplingConfig) -> None:
    """Raise ValueError unless the model draws views of what the configuration gives: prompts or pictures."""
    is_of_picture = "image-to-multiview" in bundle.tasks
    if is_of_picture and config.references is None:
        raise ValueError(
            f"The model {bundle.name} draws views of pictures; set sampling.references to a folder or a "
            ".jsonl file of them."
        )
    if config.references is not None and not is_of_picture:
        raise ValueError(
            f"sampling.references is set, but the model {bundle.name} draws views of prompts; take an "
            "adapter of image to multiview (toybox-image, for example), or set it to null."
        )
