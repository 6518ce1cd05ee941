"""How the joint-view scorer starts: from the single-view scorer, with a target network that is alive.

Two things keep a small HyperScore from learning. Its scores go through (patches ⊙ end-of-text feature), and
our CLIP's text features are as often negative as positive: what a patch says of blur would count for one
prompt and against the next. And every weight of the target networks is a sum over hundreds of hypernetwork
weights, so that ordinary steps throw it far off and all its rectifiers die. Hence a common offset of the text
features, and one pass over real data that scales and centres each generated layer.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from t2mv_core.rewards.hyperscore_network import HyperScore, run_target

# Tried by hand. The offset is well above the spread of the text features, 1.2.
TEXT_OFFSET = 2.0
START_SCORE = 0.75
START_ACTIVATION = 1.0
START_SPREAD = 0.1
SIMILARITY_EVERY = 4


@torch.no_grad()
def start_from_clip(model: HyperScore, clip_weights: Mapping[str, Tensor], view_embedding: Tensor) -> None:
    """Take the single-view scorer's weights and directions' embeddings [V, width]; shift the text features.

    The shift, by TEXT_OFFSET, is a change of the last normalisation's bias, so the state dict keeps its form.
    """
    clip = model.clip_model
    clip.load_state_dict(dict(clip_weights))
    projection = clip.text_projection.double()
    wanted = torch.full((projection.shape[1], 1), TEXT_OFFSET, dtype=torch.float64, device=projection.device)
    # Patches get no part along the offset, which would drown the rest of Σ (patch ⊙ end): that stays CLIP's
    # similarity, but for what all features have in common.
    clip.visual.proj -= clip.visual.proj.mean(dim=1, keepdim=True)
    clip.ln_final.bias += torch.linalg.lstsq(projection.T, wanted).solution[:, 0].to(clip.ln_final.bias)
    model.prompt_learner.read_embedding(clip)
    # A part of the quality features starts as that similarity; the others stay random.
    model.fc_quality.weight[::SIMILARITY_EVERY] = model.fc_quality.weight.abs().mean()
    if model.view_embedding is not None:
        model.view_embedding.copy_(view_embedding)


@torch.no_grad()
def calibrate(model: HyperScore, pixels: Tensor, tokens: Tensor) -> None:
    """Scale and centre the generated layers on sets [B, V, 3, px, px] and their prompts' tokens [B, L].

    The hidden layers start with unit spread around START_ACTIVATION, the scores with START_SPREAD around
    START_SCORE.
    """
    end, text = model.encode_prompts(tokens)
    quality = model.fuse(model.encode_views(pixels), end, text, model.encode_conditions()[0])
    _scale(model.fc_quality, 1 / model.fc_quality(quality).std())
    net = model.hypernet
    makers: list[tuple[nn.Conv2d | nn.Linear, nn.Linear]] = [
        (net.fc1w_conv, net.fc1b_fc), (net.fc2w_conv, net.fc2b_fc),
        (net.fc3w_conv, net.fc3b_fc), (net.fc4w_fc, net.fc4b_fc),
    ]  # fmt: skip
    for index, (weight_maker, bias_maker) in enumerate(makers):
        layers = model.encode_conditions()[1][: index + 1]
        hidden = run_target(model.fc_quality(quality), layers)
        factor = (START_SPREAD if index == 3 else 1.0) / hidden.std(dim=0).mean()
        _scale(weight_maker, factor)
        _scale(bias_maker, factor)
        centre = START_SCORE if index == 3 else START_ACTIVATION
        bias_maker.bias.add_(centre - factor * hidden.mean(dim=(0, 1)))


def _scale(module: nn.Conv2d | nn.Linear, factor: Tensor) -> None:
    module.weight.mul_(factor)
    if module.bias is not None:
        module.bias.mul_(factor)
