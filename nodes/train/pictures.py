"""The pictures of a training in ComfyUI: written into the run's folder, as the trainer reads them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from ...t2mv_core.formats.atomic import replaced
from ..sampling.reference import check_compared, check_pictures, check_task

if TYPE_CHECKING:
    from torch import Tensor

    from ..sockets import ModelHandle, RewardHandle

OF_PICTURES = "pictures"
"""The preset whose model draws views of pictures."""


def check_references(
    reference: Tensor | None,
    num_prompts: int,
    preset: str,
    model: ModelHandle | None = None,
    rewards: tuple[RewardHandle, ...] | None = None,
) -> None:
    """Raise ValueError unless pictures fit the prompts, and model and rewards do what there is to do.

    Args:
        reference: ComfyUI's IMAGE, [n, H, W, 3]; None is no picture.
        num_prompts: 0 when the text box is empty: the pictures have no words then.
        preset: its model and rewards count where none are connected.
        model: the connected one.
        rewards: the connected ones.
    """
    is_one_prompt_for_all = num_prompts == 1
    check_pictures(reference, 0 if is_one_prompt_for_all else num_prompts)
    if model is not None:
        check_task(model, reference)
    elif (preset == OF_PICTURES) != (reference is not None):
        raise ValueError(
            f"The preset {preset} trains on pictures, and none is connected; connect Read Reference Image "
            "(T2MV) to 'reference', or choose another preset."
            if reference is None
            else f"The model of the preset {preset} draws views of a text and cannot see a picture. Connect "
            f"a model of image to multiview, choose the preset {OF_PICTURES}, or disconnect 'reference'."
        )
    check_compared(rewards or (), reference, 0 if reference is None else len(reference))


def write_references(reference: Tensor, prompts: list[str], folder: Path) -> Path:
    """Write framed pictures [n, H, W, 3] and their list; return the list's path.

    Names are hashes of what is in them, so that other pictures never replace those of a run.
    """
    from PIL import Image

    lines = []
    pairs = max(len(reference), len(prompts))
    for number in range(pairs):
        pixels = (255 * reference[number % len(reference)].float().clamp(0, 1).cpu()).round().byte().numpy()
        prompt = {"prompt": prompts[number % len(prompts)]} if prompts else {}
        digest = hashlib.sha256(pixels.tobytes() + json.dumps(prompt).encode()).hexdigest()[:16]
        with replaced(folder / f"{digest}.png") as temporary:
            Image.fromarray(pixels).save(temporary, "PNG")
        lines.append({"picture": f"{digest}.png", **prompt, "framed": True})
    unique = {line["picture"]: json.dumps(line) for line in lines}
    text = "\n".join(unique.values()) + "\n"
    path = folder / f"pictures-{hashlib.sha256(text.encode()).hexdigest()[:16]}.jsonl"
    with replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
