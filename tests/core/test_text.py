import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from t2mv_core.prompts import check_prompts
from t2mv_core.text import (
    ClipTokenizer,
    TextCondition,
    bundle_tokenizers,
    clip_tokenizer,
    concat_conditions,
    describe_reading,
    encode_text,
    encode_tokens,
)

TEXTS = ["a red mug", "A photo of a CAT, 4k!", "", "naïve café — ☕", "word " * 100]


def make_condition(num_prompts=3):
    values = torch.arange(float(num_prompts))[:, None]
    return TextCondition(
        values[..., None].repeat(1, 2, 4),
        values,
        values.repeat(1, 6),
        -values[..., None].repeat(1, 2, 4),
        -values,
    )


def test_full_vocabulary_is_clips_own():
    from open_clip.tokenizer import SimpleTokenizer

    theirs = SimpleTokenizer()(TEXTS, context_length=77)
    assert torch.equal(clip_tokenizer()(TEXTS, 77), theirs)


def test_known_ids():
    # CLIP's published ids: start 49406, "a" 320, "photo" 1125, "of" 539, "a" 320, "cat" 2368, end 49407.
    assert clip_tokenizer()(["a photo of a cat"], 8).tolist() == [
        [49406, 320, 1125, 539, 320, 2368, 49407, 0]
    ]


def test_first_encoder_of_sdxl_pads_with_the_end():
    assert clip_tokenizer(pads_with_end=True)(["a"], 5).tolist() == [[49406, 320, 49407, 49407, 49407]]


@pytest.mark.parametrize("vocab_size", [514, 600, 4096])
def test_cut_vocabulary_spells_what_it_does_not_know(vocab_size):
    tokenizer = clip_tokenizer(vocab_size)
    ids = tokenizer(["mug", "gum"], 12)
    assert int(ids.max()) == vocab_size - 1 == tokenizer.end_id
    assert not torch.equal(ids[0], ids[1])


def test_smallest_vocabulary_is_the_bytes():
    # No merges: m, u, and g as the end of a word. CLIP orders the bytes from "!" (33, id 0) on, so "m" is
    # 109 - 33 = 76 and "u" 84; ids + 256 are those that end a word: "g" 70 + 256.
    assert clip_tokenizer(514)(["mug"], 6).tolist() == [[512, 76, 84, 326, 513, 0]]


@given(text=st.text(max_size=60))
@settings(max_examples=60, deadline=None)
def test_any_text_has_ids_in_range(text):
    tokenizer = clip_tokenizer(600)
    row = tokenizer([text], 12)[0].tolist()
    assert row[0] == tokenizer.start_id
    assert row.count(tokenizer.end_id) == 1
    assert 0 <= min(row) <= max(row) < 600


@pytest.mark.parametrize("vocab_size", [600, 49408])
def test_names_of_the_special_tokens_are_words(vocab_size):
    tokenizer = clip_tokenizer(vocab_size)
    (row,) = tokenizer(["a <end_of_text> <start_of_text> mug"], 77).tolist()
    assert row.count(tokenizer.start_id) == row.count(tokenizer.end_id) == 1
    assert max(row) < vocab_size


def test_words_that_do_not_fit_are_named_whole():
    # Four places: start, "a", "red", end. Without merges "red" and "mug" are spelled, three ids each.
    assert clip_tokenizer().unread_words("a red mug", 4) == "mug"
    assert clip_tokenizer().unread_words("a Red  mug", 5) == ""
    assert clip_tokenizer(514).unread_words("a red mug", 5) == "red mug"
    assert clip_tokenizer(514).unread_words("é" * 40, 5) == "é" * 40


def test_a_text_is_encoded_once(monkeypatch):
    from open_clip.tokenizer import SimpleTokenizer

    seen, encode = [], SimpleTokenizer.encode
    monkeypatch.setattr(SimpleTokenizer, "encode", lambda self, text: seen.append(text) or encode(self, text))
    tokenizer = ClipTokenizer(600)
    tokenizer(["a mug"], 8)
    tokenizer.unread_words("a mug", 8)
    assert seen == ["a mug"]


def test_what_a_model_does_not_read_is_said_by_the_kind(lcm_bundle):
    # Its encoders have 12 places, 10 for words.
    assert describe_reading(lcm_bundle, ["a (b)", ""]) == []
    syntax, unread = describe_reading(lcm_bundle, ["a (r:2)", "a mug " + "cat " * 30, "a b"])
    assert syntax == "T2MV reads as plain words, unlike other programs: “(r:2)” (in 1 of 3 prompts)."
    assert unread.startswith("The text encoders read 10 tokens of a prompt; they do not read “")
    assert unread.endswith("cat” (in 1 of 3 prompts).")


def test_prompts_that_differ_in_unread_words_only_are_one_to_the_model(lcm_bundle):
    first, second = (encode_text(lcm_bundle, ["cat " * 12 + end]) for end in ("red", "blue"))
    assert torch.equal(first.prompt_embeds, second.prompt_embeds)
    assert describe_reading(lcm_bundle, ["cat " * 12 + "red"])[0].endswith("red”.")


@pytest.mark.parametrize("vocab_size", [513, 49409])
def test_impossible_vocabulary_sizes_are_refused(vocab_size):
    with pytest.raises(ValueError, match=f"vocab_size={vocab_size} must lie between 514 and 49408"):
        clip_tokenizer(vocab_size)


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ([], "No prompt was given"),
        (["a mug", ""], "A prompt is empty"),
        (["  \n\t"], "A prompt is empty"),
        (["x" * 10_000], "A prompt has 10000 characters; at most 2000"),
    ],
)
def test_useless_prompts_are_refused_in_words(prompts, words, lcm_bundle):
    with pytest.raises(ValueError, match=words):
        check_prompts(prompts)
    with pytest.raises(ValueError, match=words):
        encode_text(lcm_bundle, prompts)


def test_negative_prompt_is_checked_too(lcm_bundle):
    with pytest.raises(ValueError, match="10000 characters"):
        encode_text(lcm_bundle, ["a mug"], "x" * 10_000)


def test_prompt_of_the_longest_allowed_length_works(lcm_bundle):
    assert len(encode_text(lcm_bundle, ["x" * 2000])) == 1


def test_condition_is_what_the_encoders_say(lcm_bundle, prompts):
    condition = encode_text(lcm_bundle, prompts)
    first = lcm_bundle.text_encoder(bundle_tokenizers(lcm_bundle)[0](prompts, 12), output_hidden_states=True)
    second = lcm_bundle.text_encoder_2(
        bundle_tokenizers(lcm_bundle)[1](prompts, 12), output_hidden_states=True
    )
    # Two layers: hidden_states are the embeddings, after layer 1 (the penultimate), after layer 2.
    expected = torch.cat([first.hidden_states[1], second.hidden_states[1]], dim=-1)
    torch.testing.assert_close(condition.prompt_embeds, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(condition.pooled_embeds, second.text_embeds, atol=1e-6, rtol=0)
    # 16 px pictures: original size, no crop, target size.
    assert condition.time_ids.tolist() == [[16, 16, 0, 0, 16, 16]] * 2


def test_pooled_feature_of_an_encoder_without_projection(lcm_bundle, prompts):
    ids = bundle_tokenizers(lcm_bundle)[0](prompts, 12)
    _, pooled = encode_tokens(lcm_bundle.text_encoder, ids)
    assert torch.equal(pooled, lcm_bundle.text_encoder(ids).pooler_output)


def test_batch_of_prompts_is_the_prompts_one_by_one(lcm_bundle, prompts):
    batch = encode_text(lcm_bundle, prompts, "blurry")
    for i, prompt in enumerate(prompts):
        alone = encode_text(lcm_bundle, [prompt], "blurry")
        for name in ("prompt_embeds", "pooled_embeds", "negative_embeds", "negative_pooled", "time_ids"):
            torch.testing.assert_close(getattr(batch, name)[i], getattr(alone, name)[0], atol=1e-6, rtol=0)


def test_negative_prompt_is_encoded_like_a_prompt(lcm_bundle, prompts):
    condition = encode_text(lcm_bundle, prompts, "ugly, blurry")
    expected = encode_text(lcm_bundle, ["ugly, blurry"] * 2)
    torch.testing.assert_close(condition.negative_embeds, expected.prompt_embeds, atol=1e-6, rtol=0)
    torch.testing.assert_close(condition.negative_pooled, expected.pooled_embeds, atol=1e-6, rtol=0)


@pytest.mark.parametrize("negative", [None, "", "  ", "\n", "\r\n\t", "\u00a0\u200b\ufeff"])
def test_no_negative_prompt_is_sdxls_zero_condition(lcm_bundle, prompts, negative):
    condition = encode_text(lcm_bundle, prompts, negative)
    assert not condition.negative_embeds.any()
    assert not condition.negative_pooled.any()


def test_select_takes_prompts_in_order():
    part = make_condition().select([2, 0])
    assert len(part) == 2
    assert part.pooled_embeds.flatten().tolist() == [2.0, 0.0]
    assert part.prompt_embeds[:, 0, 0].tolist() == [2.0, 0.0]
    assert part.time_ids[:, 0].tolist() == [2.0, 0.0]
    assert part.negative_embeds[:, 0, 0].tolist() == [-2.0, 0.0]
    assert part.negative_pooled.flatten().tolist() == [-2.0, 0.0]


def test_concat_undoes_select():
    whole = make_condition()
    joined = concat_conditions([whole.select([0]), whole.select([1, 2])])
    assert all(map(torch.equal, joined._tensors(), whole._tensors()))
    plain = TextCondition(whole.prompt_embeds, whole.pooled_embeds, whole.time_ids)
    twice = concat_conditions([plain, plain])
    assert twice.pooled_embeds.flatten().tolist() == [0.0, 1.0, 2.0] * 2
    assert twice.negative_embeds is None
    assert twice.negative_pooled is None


def test_with_negative_puts_prompts_first():
    both = make_condition(2).with_negative()
    assert both.prompt_embeds[:, 0, 0].tolist() == [0.0, 1.0, 0.0, -1.0]
    assert both.pooled_embeds.flatten().tolist() == [0.0, 1.0, 0.0, -1.0]
    assert both.time_ids[:, 0].tolist() == [0.0, 1.0, 0.0, 1.0]


def test_condition_without_negative_survives_select_and_to_but_not_guidance():
    whole = make_condition()
    plain = TextCondition(whole.prompt_embeds, whole.pooled_embeds, whole.time_ids)
    moved = plain.select([1]).to("cpu", torch.float16)
    assert moved.prompt_embeds.dtype == torch.float16
    assert moved.negative_embeds is None
    with pytest.raises(ValueError, match="needs a negative condition"):
        moved.with_negative()
