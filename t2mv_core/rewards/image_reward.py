"""ImageReward: how people would rate a picture for its prompt; the equation is in image_reward_network.py.

Prompt and picture are encoded together, so a prompt has no features of its own that could be kept.
Source: `zai-org/ImageReward`, files ImageReward.pt and med_config.json; docs/method.md, section 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..formats.checkpoint import read_checkpoint, read_json
from ..formats.shards import weights_file
from ..formats.strict import load_strictly, without_weights
from .base import RewardKind, RewardResult, check_request
from .image_reward_network import (
    TEXT_SIZES,
    UNUSED_WEIGHTS,
    BlipSize,
    ImageRewardNetwork,
    published_name,
    read_size,
)
from .inputs import Preprocessing, PromptTokens, Tokenize

if TYPE_CHECKING:
    from tokenizers import BertWordPieceTokenizer
    from typing_extensions import Self

CONTEXT_LENGTH = 35
CONFIG_NAME, VOCABULARY_NAME = "med_config.json", "vocab.txt"
WEIGHT_NAMES = ("ImageReward.pt", "ImageReward.safetensors")


class ImageReward:
    """View reward: about a standard normal number over the pictures people rated; below zero is common."""

    kind: RewardKind = "view"

    def __init__(
        self, model: ImageRewardNetwork, tokenize: Tokenize, size: BlipSize, name: str = "image_reward"
    ) -> None:
        """Wrap a network; `tokenize` gives BERT's token ids, 0 where nothing is."""
        self.model = model.eval().requires_grad_(False)
        self.name = name
        num_tokens = (size.image_px // size.patch_px) ** 2 + 1
        self.preprocessing = Preprocessing(size.image_px, num_tokens, size.vision_width)
        length = min(CONTEXT_LENGTH, int(size.text["max_position_embeddings"]))
        self.tokens = PromptTokens(tokenize, length, name)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """Move the model to a device, BLIP's encoders to a precision; the MLP stays float32."""
        if dtype is not None:  # first, so that a GPU never holds what it will not keep
            self.model.image_encoder.to(dtype=dtype)
            self.model.text_encoder.to(dtype=dtype)
        self.model.mlp.float()
        self.model.to(device)
        return self

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> RewardResult:
        """Score pictures [n, 3, H, W] in [0, 1] against n prompts."""
        check_request(images, prompts, self.kind)
        weight = next(self.model.image_encoder.parameters())
        tokens, scores = self.tokens(prompts).to(weight.device), []
        with torch.inference_mode():
            for pixels in self.preprocessing.chunks(images, weight):
                chunk, tokens = tokens.split([len(pixels), len(tokens) - len(pixels)])
                scores.append(self.model(pixels, chunk, (chunk != 0).long()))
        return RewardResult(torch.cat(scores).clone())  # a clone made outside is an ordinary tensor again


def load_image_reward(path: Path, name: str = "image_reward") -> ImageReward:
    """Load ImageReward.pt or the folder that holds it; med_config.json and BERT's vocab.txt lie beside it.

    Raises:
        FileNotFoundError: one of the three files is missing.
        ValueError: the files are not those.
    """
    path = weights_file(path, WEIGHT_NAMES) if path.is_dir() else path
    tokenize = load_bert_tokenizer(path.with_name(VOCABULARY_NAME))
    text = _read_text_sizes(path.with_name(CONFIG_NAME))
    tensors = {name: x for name, x in read_checkpoint(path).items() if name not in UNUSED_WEIGHTS}
    size = read_size(tensors, text, str(path))
    with without_weights():
        model = ImageRewardNetwork(size)
    load_strictly(model, tensors, str(path), published_name)
    return ImageReward(model, tokenize, size, name)


def _read_text_sizes(path: Path) -> dict[str, Any]:
    page = "https://huggingface.co/zai-org/ImageReward"
    sizes = read_json(path, f"it has the sizes of ImageReward's text encoder: get it from {page}.")
    if missing := [key for key in TEXT_SIZES if key not in sizes]:
        raise ValueError(f"{path} lacks {missing[0]!r}, a size of the text encoder; download it again.")
    return {key: sizes[key] for key in TEXT_SIZES}


class BertTokenizer:
    """BERT's encoding of prompts by WordPiece; see `Tokenize`."""

    def __init__(self, word_pieces: BertWordPieceTokenizer) -> None:
        self._word_pieces = word_pieces

    def __call__(self, texts: Sequence[str], max_length: int) -> Tensor:
        """Return ids [n, max_length]; a longer text is cut."""
        self._word_pieces.enable_truncation(max_length)
        ids = torch.zeros(len(texts), max_length, dtype=torch.long)
        for row, encoding in zip(ids, self._word_pieces.encode_batch(list(texts)), strict=True):
            row[: len(encoding.ids)] = torch.tensor(encoding.ids)
        return ids

    def unread_words(self, text: str, max_length: int) -> str:
        """Return the last words of a text, as they are written, that `max_length` ids do not hold."""
        self._word_pieces.no_truncation()
        encoding = self._word_pieces.encode(text)
        if len(encoding.ids) <= max_length:
            return ""
        first = encoding.token_to_word(max_length - 1)  # where the end token stands in a cut text
        return text[encoding.word_to_chars(first)[0] :].strip()


def load_bert_tokenizer(path: Path) -> BertTokenizer:
    """Load BERT's uncased WordPiece encoding from a vocabulary file, one token a line.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a vocabulary without BERT's marks.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: ImageReward reads prompts with the vocabulary of bert-base-uncased; get "
            f"{path.name} from https://huggingface.co/google-bert/bert-base-uncased and put it there."
        )
    from tokenizers import BertWordPieceTokenizer

    words = path.read_text(encoding="utf-8").split("\n")
    if words[0] != "[PAD]" or not {"[CLS]", "[SEP]", "[UNK]"} <= set(words):
        raise ValueError(
            f"{path} is not BERT's vocabulary: it must begin with [PAD] and hold [CLS], [SEP] and [UNK]."
        )
    return BertTokenizer(BertWordPieceTokenizer(str(path), lowercase=True))
