"""The pictures of a training in ComfyUI: written into the run's folder, as the trainer reads them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from ...t2mv_core.formats.atomic import replaced
from ..sampling.reference import check_pictures

if TYPE_CHECKING:
    from torch import Tensor

LIST_NAME = "pictures.jsonl"


def check_references(reference: Tensor | None, num_prompts: int) -> None:
    """Raise ValueError unless the pictures are framed, and one belongs to each prompt or to all.

    Args:
        reference: ComfyUI's IMAGE, [n, H, W, 3]; None passes.
        num_prompts: 0 when the text box is empty: the pictures have no words then.
    """
    is_one_prompt_for_all = num_prompts == 1
    check_pictures(reference, 0 if is_one_prompt_for_all else num_prompts)


def write_references(reference: Tensor, prompts: list[str], folder: Path) -> Path:
    """Write framed pictures [n, H, W, 3] and their list; return the list's path.

    A picture's name is a hash of what it shows and of its prompt, so that a run goes on with the same
    pictures only.
    """
    from PIL import Image

    lines = []
    pairs = max(len(reference), len(prompts))
    for number in range(pairs):
        pixels = (255 * reference[number % len(reference)].float().cpu()).round().byte().numpy()
        prompt = {"prompt": prompts[number % len(prompts)]} if prompts else {}
        digest = hashlib.sha256(pixels.tobytes() + json.dumps(prompt).encode()).hexdigest()[:16]
        with replaced(folder / f"{digest}.png") as temporary:
            Image.fromarray(pixels).save(temporary, "PNG")
        lines.append({"picture": f"{digest}.png", **prompt, "framed": True})
    unique = {line["picture"]: json.dumps(line) for line in lines}
    path = folder / LIST_NAME
    with replaced(path) as temporary:
        temporary.write_text("\n".join(unique.values()) + "\n", encoding="utf-8")
    return path
