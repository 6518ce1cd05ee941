"""The samplers' pictures: checked before the model is loaded, one per set, their features computed once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...t2mv_core.formats.sources import IMAGE_ADAPTER_FILE

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ...t2mv_core.reference import ReferenceFeatures
    from ...t2mv_core.text import TextCondition
    from ..sockets import ModelHandle, RewardHandle

_FRAME_FIRST = "Put Read Reference Image (T2MV) before 'reference'."
_GREY_TOLERANCE = 0.1


def check_pictures(reference: Tensor | None, num_lines: int) -> None:
    """Raise ValueError unless there is one square picture, or one for each of the prompt's lines.

    Args:
        reference: ComfyUI's IMAGE, [n, H, W, 3]; None passes.
        num_lines: of the prompt; 0 if it is not known yet.
    """
    if reference is None:
        return
    count, height, width, channels = reference.shape
    if channels != 3:
        raise ValueError(f"The reference has transparency, so it is not framed yet. {_FRAME_FIRST}")
    if height != width:
        raise ValueError(f"The reference has {width}x{height} px, but must be square. {_FRAME_FIRST}")
    if num_lines and count not in (1, num_lines):
        raise ValueError(
            f"{count} reference pictures were given for {num_lines} prompt lines; give one for all lines, or "
            "one per line. All pictures of an animated file count: Image From Batch picks one."
        )


def check_task(model: ModelHandle, reference: Tensor | None) -> None:
    """Raise ValueError unless the model does the task that pictures, or none, ask for."""
    bundle = model.bundle
    is_of_picture = "image-to-multiview" in bundle.tasks
    if reference is None and is_of_picture:
        raise ValueError(
            f"{bundle.name} draws the views of a picture, and none is connected. Connect Load Image through "
            "Read Reference Image (T2MV) to 'reference'."
        )
    if reference is not None and not is_of_picture:
        raise ValueError(
            f"{bundle.name} draws views of a text and cannot see a picture. Choose the MV-Adapter of image "
            f"to multiview ({IMAGE_ADAPTER_FILE}) as Load Model's 'adapter', or disconnect 'reference'."
        )


def check_compared(rewards: tuple[RewardHandle, ...], reference: Tensor | None, num_sets: int) -> None:
    """Raise ValueError unless rewards that compare with pictures have one of each set, or one of all.

    Args:
        rewards: the loaded ones.
        reference: ComfyUI's IMAGE, [n, H, W, 3]; None is no picture.
        num_sets: one per prompt line.
    """
    asking = [handle.reward.name for handle in rewards if getattr(handle.reward, "takes_pictures", False)]
    if asking and reference is None:
        raise ValueError(
            f"{', '.join(asking)} compares views with the picture that they were drawn from, and none is "
            "connected; connect it to 'reference', or use another reward."
        )
    if reference is not None and len(reference) not in (1, num_sets):
        raise ValueError(
            f"{len(reference)} reference pictures were given for {num_sets} prompt lines; give one for all "
            "lines, or one per line."
        )


def framing_notes(reference: Tensor | None) -> list[str]:
    """Say that pictures do not stand on the grey of the training, which Read Reference Image puts them on."""
    from ...t2mv_core.toybox.silhouettes import BACKGROUND

    if reference is None:
        return []
    border = (reference[:, [0, -1]].float() - BACKGROUND).abs().mean(dim=(1, 2, 3))
    if bool((border <= _GREY_TOLERANCE).all()):
        return []
    return [f"The reference's border is not grey, as the model saw it in training. {_FRAME_FIRST}"]


@dataclass
class SetReferences:
    """The pictures of a run, encoded, and the features of the set that is sampled.

    Attributes:
        latents: of the pictures, [1 or n, C, h, w]; n is the number of prompt lines.
    """

    latents: Tensor
    _key: tuple[str, int] | None = None
    _features: ReferenceFeatures | None = None

    @classmethod
    def encode(cls, model: ModelHandle, reference: Tensor) -> SetReferences:
        """Encode ComfyUI's pictures [n, H, W, 3], resized to the size of the model's views."""
        import torch
        from torch.nn.functional import interpolate

        from ...t2mv_core.images import from_comfy
        from ...t2mv_core.reference import encode_pictures
        from ..common.memory import encoding_bytes

        size = (model.bundle.image_px,) * 2
        pictures = interpolate(from_comfy(reference).float(), size, mode="bicubic", antialias=True)

        def encode(device: torch.device) -> Tensor:
            singles = pictures.clamp(0, 1).to(device).split(1)  # in the memory of one
            return torch.cat([encode_pictures(model.bundle.vae, each) for each in singles])

        work_bytes = encoding_bytes(pictures, model.bundle.vae.dtype)
        return cls(model.residency.run(encode, "vae", work_bytes=work_bytes))

    def features(
        self, model: ModelHandle, condition: TextCondition, prompt: str, line: int
    ) -> ReferenceFeatures:
        """Return the features of a line's picture under its prompt; the next seeds of the line share them.

        The UNet must be on the compute device.
        """
        from ...t2mv_core.reference import reference_of_latents

        picture = line if len(self.latents) > 1 else 0
        if self._key != (prompt, picture) or self._features is None:
            self._features = None  # two sets of states never lie in the card's memory together
            latents = self.latents[picture : picture + 1]
            self._features = reference_of_latents(model.bundle, latents, condition)
            self._key = (prompt, picture)
        return self._features
