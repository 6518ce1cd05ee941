"""Text encoders with added tokens: start and end of a text stay where the files say they are."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from benchmarks.sdxl_files import TINY, create_modules, original_checkpoint
from t2mv_core.formats.components import load_parts
from t2mv_core.formats.sources import ModelFiles
from t2mv_core.formats.tokens import settle_tokens, vocabulary_of
from t2mv_core.loading import load_bundle
from t2mv_core.text import bundle_tokenizers, clip_tokenizer, encode_text, encode_tokens

CLIP = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407}
LEGACY = {"vocab_size": 49408, "bos_token_id": 0, "eos_token_id": 2}


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (CLIP, 49408),
        (LEGACY, 49408),
        ({**CLIP, "vocab_size": 49410}, 49408),
        ({**LEGACY, "vocab_size": 49410}, 49408),
        ({"vocab_size": 49500}, 49408),
        ({"vocab_size": 600}, 600),
        ({"vocab_size": 602, "bos_token_id": 598, "eos_token_id": 599}, 600),
        ({"vocab_size": 4096, "bos_token_id": 0, "eos_token_id": 2}, 4096),
        ({}, 49408),
    ],
)
def test_the_configuration_says_where_clips_vocabulary_ends(config, size):
    assert vocabulary_of(config) == size


@pytest.mark.parametrize("ids", [{"bos_token_id": 5}, {"eos_token_id": 49410}, {"eos_token_id": 700}])
def test_ids_that_cannot_be_clips_are_refused(ids):
    with pytest.raises(ValueError, match="are not the last two tokens of CLIP's vocabulary"):
        vocabulary_of({**CLIP, **ids})


def add_tokens(tensors):
    for key in [key for key in tensors if key.endswith("token_embedding.weight")]:
        tensors[key] = torch.cat([tensors[key], torch.full((2, tensors[key].shape[1]), 7.0)])


@pytest.fixture
def grown(own_folder, edit_weights):
    """The tiny model after somebody added two tokens to both text encoders."""
    for part in ("text_encoder", "text_encoder_2"):
        edit_weights(own_folder / part / "model.safetensors", add_tokens)
        path = own_folder / part / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "vocab_size": 602}))
    return own_folder


def test_added_tokens_change_no_embedding_and_are_named(grown, lcm_bundle, prompts):
    tokenizer = grown / "tokenizer"
    tokenizer.mkdir()
    added = {
        "600": {"content": "<cat-toy>"},
        "601": {"content": "<style>"},
        "599": {"content": "<|endoftext|>"},
    }
    facts = {"tokenizer_class": "CLIPTokenizer", "pad_token": "<|endoftext|>", "added_tokens_decoder": added}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(facts))
    (grown / "tokenizer_2").mkdir()
    (grown / "tokenizer_2" / "added_tokens.json").write_text('{"<cat-toy>": 600, "<style>": 601}')
    bundle = load_bundle(str(grown))
    expected, got = encode_text(lcm_bundle, prompts, "blurry"), encode_text(bundle, prompts, "blurry")
    for name, tensor in vars(expected).items():
        assert torch.equal(getattr(got, name), tensor), name
    assert [part.end_id for part in bundle_tokenizers(bundle)] == [599, 599]
    for part, notice in zip(("text_encoder", "text_encoder_2"), bundle.notices, strict=True):
        words = "prompts cannot use the 2 tokens added to CLIP's vocabulary ('<cat-toy>', '<style>')."
        assert notice == f"{grown / part}: {words}"


def test_without_a_tokenizers_folder_added_tokens_are_counted(grown):
    notices = load_bundle(str(grown)).notices
    assert [notice.partition(": ")[2] for notice in notices] == [
        "prompts cannot use the 2 tokens added to CLIP's vocabulary."
    ] * 2


@pytest.mark.parametrize("ids", [(0, 2), (49406, 49407)])
def test_embeddings_are_transformers_own(ids):
    """CLIP's whole vocabulary with two tokens added, configured as older and newer transformers do it."""
    settings = {"hidden_size": 16, "intermediate_size": 16, "projection_dim": 8, "num_hidden_layers": 2,
                "num_attention_heads": 2, "max_position_embeddings": 16, "vocab_size": 49410}  # fmt: skip
    torch.manual_seed(0)
    theirs = CLIPTextModelWithProjection(
        CLIPTextConfig(**settings, bos_token_id=49406, eos_token_id=49407)
    ).eval()
    config = {**settings, "bos_token_id": ids[0], "eos_token_id": ids[1]}
    notices = []
    ours = CLIPTextModelWithProjection(
        CLIPTextConfig(**settle_tokens(config, "text_encoder_2", Path("nowhere"), notices))
    ).eval()
    ours.load_state_dict(theirs.state_dict())
    assert len(notices) == 1
    tokens = clip_tokenizer(vocabulary_of(ours.config.to_dict()))(["a red mug"], 16)
    # CLIP's own ids, as open_clip and transformers' tokenizer give them.
    assert tokens[0, :5].tolist() == [49406, 320, 736, 9722, 49407]
    with torch.no_grad():
        hidden, pooled = encode_tokens(ours, tokens)
        out = theirs(tokens, output_hidden_states=True)
    assert torch.equal(hidden, out.hidden_states[-2])
    assert torch.equal(pooled, out.text_embeds)


def test_a_single_file_with_added_tokens_has_clips_ids(tmp_path):
    size = replace(TINY, text=((64, 1, 64, 49410), (128, 1, 64, 49408)))
    states = {part: dict(module.state_dict()) for part, module in create_modules(size).items()}
    tensors = {key: x.contiguous() for key, x in original_checkpoint(states, size).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    files = ModelFiles(None, *[tmp_path / "model.safetensors"] * 5, None)
    notices = []
    parts = load_parts(files, torch.float32, notices)
    for part in ("text_encoder", "text_encoder_2"):
        assert (parts[part].config.bos_token_id, parts[part].config.eos_token_id) == (49406, 49407)
    assert [notice.rpartition(": ")[2] for notice in notices] == [
        "prompts cannot use the 2 tokens added to CLIP's vocabulary."
    ]
