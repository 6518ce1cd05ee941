"""BERT's uncased WordPiece encoding from a vocabulary file; ImageReward reads prompts with it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from .prompts import Tokenize


def load_bert_tokenizer(path: Path) -> Tokenize:
    """BERT's uncased WordPiece encoding from a vocabulary file, one token a line.

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
    tokenizer = BertWordPieceTokenizer(str(path), lowercase=True)

    def tokenize(prompts: list[str], max_length: int) -> Tensor:
        tokenizer.enable_truncation(max_length)
        ids = torch.zeros(len(prompts), max_length, dtype=torch.long)
        for row, encoding in zip(ids, tokenizer.encode_batch(prompts), strict=True):
            row[: len(encoding.ids)] = torch.tensor(encoding.ids)
        return ids

    return tokenize
