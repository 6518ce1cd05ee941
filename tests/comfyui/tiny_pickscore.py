"""A PickScore that loads at once. ComfyUI's processes import it, and know no package `tests.comfyui`."""

from __future__ import annotations

from pathlib import Path


def write_tiny_pickscore(folder: Path) -> None:
    """A PickScore of small size as transformers saves it."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**sizes, "image_size": 32, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=sizes, vision_config=vision, projection_dim=8)).save_pretrained(folder)
