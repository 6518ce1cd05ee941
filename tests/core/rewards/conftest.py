"""Small models in the published layouts, with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

TEXT = {"vocab_size": 600, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 16, "projection_dim": 12}  # fmt: skip
VISION = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
          "image_size": 32, "patch_size": 8, "projection_dim": 12}  # fmt: skip


def randomise(module: torch.nn.Module, seed: int = 0) -> Any:
    """Random values everywhere, so that no zero or one hides a wrong place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


@pytest.fixture
def pictures() -> torch.Tensor:
    """Six pictures that differ, larger than any tiny model wants them."""
    return torch.rand(6, 3, 40, 40, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def tiny_clip() -> Any:
    """A CLIPModel of transformers."""
    from transformers import CLIPConfig, CLIPModel

    text = TEXT | {"bos_token_id": 598, "eos_token_id": 599, "pad_token_id": 0}
    return randomise(CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=12)))


@pytest.fixture
def pickscore_folder(tiny_clip: Any, tmp_path: Path) -> Path:
    """A transformers folder as PickScore is published, with the constants older versions saved."""
    from safetensors.torch import save_file

    folder = tmp_path / "PickScore_v1"
    folder.mkdir()
    config = {"model_type": "clip", "projection_dim": 12, "text_config": TEXT, "vision_config": VISION}
    (folder / "config.json").write_text(json.dumps(config))
    weights = {name: tensor.clone() for name, tensor in tiny_clip.state_dict().items()}
    weights["text_model.embeddings.position_ids"] = torch.arange(16)[None]
    weights["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.fixture
def tiny_architecture(tmp_path: Path) -> str:
    """A small architecture known to open_clip under a name of its own."""
    import open_clip

    sizes = {
        "embed_dim": 12,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 24, "head_width": 12, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 600, "width": 16, "heads": 2, "layers": 2},
    }
    folder = tmp_path / "architectures"
    folder.mkdir()
    (folder / "ViT-tiny-8.json").write_text(json.dumps(sizes))
    open_clip.add_model_config(folder / "ViT-tiny-8.json")
    return "ViT-tiny-8"


@pytest.fixture
def tiny_open_clip(tiny_architecture: str) -> Any:
    """open_clip's own model of that architecture."""
    import open_clip

    return randomise(open_clip.create_model(tiny_architecture))
