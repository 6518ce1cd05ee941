"""HPSv2: the cosine of an open_clip ViT-H/14 that was fine-tuned on rankings of pictures by people.

Source: arXiv:2306.09341; `xswu/HPSv2`, files HPS_v2_compressed.pt (v2.0) and HPS_v2.1_compressed.pt (v2.1),
each a `state_dict` in open_clip's names. Pictures that are not square get black bars, as published. Scores of
the two versions cannot be compared.
"""

from __future__ import annotations

from pathlib import Path

import torch

from .clip_score import ClipScore
from .open_clip_score import load_open_clip_score

ARCHITECTURE = "ViT-H-14"


def load_hpsv2(
    path: Path,
    name: str = "hpsv2",
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    architecture: str = ARCHITECTURE,
) -> ClipScore:
    """Load a checkpoint of HPSv2 or HPSv2.1.

    Args:
        path: the published file, or its state dict as safetensors.
        name: the name under which the reward is reported.
        device: where to.
        dtype: precision of the network; None: as in the file.
        architecture: open_clip's name of the published architecture.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file; the first wrong key or shape is named.
    """
    return load_open_clip_score(architecture, path, name, device, dtype, fit="pad")
