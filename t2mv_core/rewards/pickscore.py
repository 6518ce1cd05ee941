"""PickScore: the cosine of a CLIP ViT-H/14 that was fine-tuned on people's choices between pictures.

Source: arXiv:2305.01569; `yuvalkirstain/PickScore_v1`, a model folder of transformers. The cosine is taken
without the logit scale (docs/method.md, section 8).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..formats.checkpoint import read_checkpoint, read_json
from ..formats.shards import weights_file
from ..formats.strict import load_strictly, without_weights
from ..formats.tokens import vocabulary_of
from .clip_score import ClipScore
from .inputs import Preprocessing

if TYPE_CHECKING:
    from transformers import CLIPModel

_WEIGHTS_NAMES = ("model.safetensors", "pytorch_model.bin")
_CONSTANTS = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")
"""Numbers 0, 1, 2, … that older transformers saved with the weights."""


class TransformersClip(nn.Module):
    """A CLIPModel of transformers with open_clip's interface.

    It does not use `get_image_features`, which returns a tensor or an output object depending on the version
    of transformers, nor the text model's own pooling, which depends on the end token its configuration names.
    """

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip = clip
        self.context_length = int(clip.config.text_config.max_position_embeddings)

    @property
    def logit_scale(self) -> Tensor:
        """The trained scale of the logits; the score does without it."""
        return self.clip.logit_scale

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Encode normalised pictures [n, 3, px, px] as [n, d]."""
        return self.clip.visual_projection(self.clip.vision_model(pixel_values=pixels).pooler_output)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Encode token ids [n, L], of which the end token is the largest, as [n, d]."""
        hidden = self.clip.text_model(input_ids=tokens).last_hidden_state
        rows = torch.arange(len(tokens), device=tokens.device)
        return self.clip.text_projection(hidden[rows, tokens.argmax(dim=1)])


def load_pickscore(folder: Path, name: str = "pickscore") -> ClipScore:
    """Load PickScore, or any other CLIPModel, from a folder of transformers.

    Args:
        folder: holds config.json and model.safetensors (or pytorch_model.bin).
        name: the name under which the reward is reported.

    Raises:
        FileNotFoundError: the folder is incomplete.
        ValueError: the files do not hold such a model.
    """
    from transformers import CLIPConfig, CLIPModel

    from ..text import clip_tokenizer

    values, weights_path = _read_config(folder), weights_file(folder, _WEIGHTS_NAMES)
    config = CLIPConfig.from_dict(values)
    tensors = {key: tensor for key, tensor in read_checkpoint(weights_path).items() if key not in _CONSTANTS}
    with without_weights():
        model = CLIPModel(config)
    load_strictly(model, tensors, str(weights_path))
    vision = config.vision_config
    preprocessing = Preprocessing(
        vision.image_size, (vision.image_size // vision.patch_size) ** 2 + 1, vision.hidden_size
    )
    tokenize = clip_tokenizer(vocabulary_of(values.get("text_config") or {}))
    return ClipScore(TransformersClip(model), tokenize, preprocessing, name)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    values = read_json(path, f"PickScore is a folder with config.json and {_WEIGHTS_NAMES[0]}.")
    if values.get("model_type") != "clip":
        kind = values.get("model_type")
        raise ValueError(f"{path} describes a {kind!r} model, not a 'clip' model; PickScore is a CLIPModel.")
    return values
