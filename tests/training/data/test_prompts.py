"""Prompt sets, prompt files, and what is held out of them."""

import json
import logging
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2mv_core.prompts import clean_line
from t2mv_core.text import clip_tokenizer
from training.data.prompts import (
    PROMPT_SET_DIR,
    PROMPT_SETS,
    PromptSplit,
    load_held_out,
    load_prompts,
    load_split,
    split_prompts,
)

# Any line a UTF-8 file can hold, without what reading drops.
PROMPTS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40).map(clean_line).filter(bool),
    min_size=1,
    max_size=8,
    unique=True,
)


@pytest.fixture
def write(tmp_path):
    def write_file(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write_file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One for all examples of a property."""
    return tmp_path_factory.mktemp("prompts")


@pytest.mark.parametrize("name", sorted(PROMPT_SETS))
def test_every_set_holds_distinct_prompts(name):
    prompts = load_prompts(name)
    assert len(prompts) >= 45
    assert len(set(prompts)) == len(prompts)
    assert prompts == [prompt.strip() for prompt in prompts]


@pytest.mark.parametrize("measured_on", ["dev", "heldout"])
def test_training_prompts_are_disjoint_from_those_results_are_measured_on(measured_on):
    assert not set(load_prompts("toybox_all")) & set(load_prompts(measured_on))


def test_all_toybox_prompts_are_the_plain_ones_those_with_parts_and_those_with_second_objects():
    plain, parts, relations = map(load_prompts, ("toybox", "toybox_parts", "toybox_relations"))
    assert parts[: len(plain)] == relations[: len(plain)] == plain
    assert load_prompts("toybox_all") == parts + relations[len(plain) :]


def test_there_are_45_animals_in_a_template():
    prompts = load_prompts("animals")
    assert len(prompts) == 45
    assert "a photo of an ant" in prompts
    assert "a photo of a cat" in prompts


def test_there_are_160_objects_in_eight_groups_that_text_encoders_read_whole():
    prompts = load_prompts("objects")
    assert len(prompts) == 160
    groups = re.split(
        r"^# \d\. .*$", (PROMPT_SET_DIR / "objects.txt").read_text(encoding="utf-8"), flags=re.M
    )
    assert [len(group.split("\n")) - 1 for group in map(str.strip, groups[1:])] == [19] * 8  # 20 lines each
    ids = clip_tokenizer()(prompts, 90)
    assert (ids != 0).sum(dim=1).max() <= 77  # CLIP's window: 75 tokens, start and end


def test_an_object_begins_with_its_article_and_has_no_full_stop():
    assert [p for p in load_prompts("objects") if not re.fullmatch(r"an? [^.]*\w", p)] == []
    odd = [p for p in load_prompts("objects") if p.startswith("an ") != (p.split()[1][0] in "aeiou")]
    assert odd == []


def test_a_file_gives_its_lines(write):
    assert load_prompts(write("mine.txt", "# comment\na red mug\r\n\n  a blue car \n")) == [
        "a red mug",
        "a blue car",
    ]


def test_a_byte_order_mark_belongs_to_no_prompt(write):
    assert load_prompts(write("mine.txt", b"\xef\xbb\xbf# comment\na red mug\n")) == ["a red mug"]


@pytest.mark.parametrize("name", ["pasted.txt", "pasted.jsonl"])
def test_what_a_web_page_hides_in_a_line_is_in_no_prompt(write, name):
    hidden = {
        "a\u00a0red\u200b mug": "a red mug",  # a no-break and a zero-width space
        "\ufeffa blue\u2028car": "a blue car",  # where two files were joined; a line separator
        "a\x0bgreen\x0cboat\x85": "a green boat",  # vertical tab, form feed, next line
        "a wood\u00aden “old” chair’s leg": "a wooden “old” chair’s leg",  # quotes stay
        "\u3000a\tcup": "a cup",
    }
    for ending in ("\n", "\r\n", "\r"):
        as_line = json.dumps if name.endswith("l") else lambda record, **_: record["prompt"]
        for escaped in (False, True):
            lines = (as_line({"prompt": text}, ensure_ascii=escaped) for text in hidden)
            assert load_prompts(write(name, ending.join(lines))) == list(hidden.values())


def test_equal_looking_prompts_are_one_and_lie_in_one_part(write):
    path = write("twice.txt", "a red mug\na red\u00a0mug\n\u200ba red mug\na blue car\n")
    assert load_prompts(path) == ["a red mug", "a blue car"]


def test_a_jsonl_file_gives_its_prompts(write):
    lines = '{"prompt": " a red mug ", "id": 7}\n\n{"prompt": "# h\\u00e9lice", "split": null}\n'
    assert load_prompts(write("mine.JSONL", lines)) == ["a red mug", "# hélice"]


@given(prompts=PROMPTS)
def test_prompts_survive_a_text_file(prompts, folder):
    prompts = [prompt for prompt in prompts if not re.search(r"[\r\n]|^#", prompt)] or ["a mug"]
    path = folder / "any.txt"
    path.write_text("\n".join(prompts), encoding="utf-8-sig")
    assert load_prompts(str(path)) == prompts


@given(prompts=PROMPTS, ensure_ascii=st.booleans())
def test_prompts_survive_a_jsonl_file(prompts, ensure_ascii, folder):
    path = folder / "any.jsonl"
    lines = [json.dumps({"prompt": prompt}, ensure_ascii=ensure_ascii) for prompt in prompts]
    path.write_text("\n".join(lines), encoding="utf-8-sig")
    assert load_prompts(str(path)) == prompts


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"\n# nothing\n", "bad.txt holds no prompt"),
        (b"a mug\n" + b"x" * 10_000, "bad.txt, line 2: A prompt has 10000 characters"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"\xe2\x80\x8b\n\xc2\xad", "bad.txt holds no prompt"),
    ],
)
def test_an_unusable_file_gets_a_sentence(write, content, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_prompts(write("bad.txt", content))


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("a red mug", "not valid JSON; write a line such as"),
        ("[" * 100_000, "not valid JSON"),
        ('"a red mug"', 'no object with a "prompt"'),
        ('{"text": "a red mug"}', 'no object with a "prompt"'),
        ('{"prompt": ["a red mug"]}', 'no object with a "prompt"'),
        ('{"prompt": " "}', "A prompt is empty; describe"),
        ('{"prompt": "%s"}' % ("x" * 2001), "2001 characters"),
        ('{"prompt": "a \\ud83d"}', "half a character"),
        ('{"prompt": "a mug", "prompt": "a car"}', "'prompt' is there twice; write one object a line"),
        ('{"prompt": "a mug", "split": "train", "split": "heldout"}', "'split' is there twice"),
        ('{"prompt": "a mug", "split": "test"}', """"split" is 'test'; write "train" or "heldout\""""),
        ('{"prompt": "a mug", "split": ["train"]}', '"split" is'),
    ],
)
def test_a_bad_jsonl_line_is_named(write, line, sentence):
    path = write("bad.jsonl", '{"prompt": "a mug"}\n\n' + line + "\n")
    with pytest.raises(ValueError, match=re.escape(f"{path}, line 3: ") + ".*" + re.escape(sentence)):
        load_prompts(path)


def test_a_file_of_another_kind_is_refused(write):
    with pytest.raises(ValueError, match=r"mine.csv ends neither in .txt nor in .jsonl; write"):
        load_prompts(write("mine.csv", "a red mug"))


def test_an_empty_jsonl_file_is_refused(write):
    with pytest.raises(ValueError, match="holds no prompt"):
        load_prompts(write("bad.jsonl", "\n\n"))


def test_the_first_of_equal_prompts_is_kept_with_a_warning(write, caplog):
    lines = [
        {"prompt": "a mug", "split": "heldout"},
        {"prompt": "a car"},
        {"prompt": "a mug ", "split": "train"},
    ]
    path = write("twice.jsonl", "\n".join(map(json.dumps, lines)))
    with caplog.at_level(logging.WARNING, logger="training.data.prompts"):
        assert load_split(path, 0) == PromptSplit(train=("a car",), held_out=("a mug",))
    assert "repeats 1 prompts; the first of each is kept" in caplog.text


def test_held_out_lines_that_are_trained_on_in_another_spelling_are_named_and_left_out(write, caplog):
    lines = [
        {"prompt": "A red  Mug", "split": "heldout"},
        {"prompt": "a red mug", "split": "train"},
        {"prompt": "a blue car", "split": "heldout"},
    ]
    split = load_split(write("own.jsonl", "\n".join(map(json.dumps, lines))), 0)
    assert split == PromptSplit(train=("a red mug",), held_out=("a blue car",))
    assert "1 of 2 held-out prompts are trained on; left out: 'A red  Mug'." in caplog.text


def test_held_out_prompts_of_another_file_lose_what_is_trained_on(write, caplog):
    path = write("held_out.txt", "a MUG\na car\n" + "\n".join(f"boat {i}" for i in range(7)))
    trained = ["a mug", *(f"Boat  {i}" for i in range(6))]
    assert load_held_out(path, trained) == ("a car", "boat 6")
    assert f"{path}: 7 of 9 held-out prompts are trained on; left out: 'a MUG', 'boat 0'" in caplog.text
    assert "'boat 3', …." in caplog.text
    assert load_held_out(path, ["another"])[0] == "a MUG"
    with pytest.raises(ValueError, match=r"All prompts of .*held_out.txt are trained on; measure on others"):
        load_held_out(path, load_prompts(path))


def test_an_unknown_set_names_the_known_ones():
    with pytest.raises(FileNotFoundError, match="use one of animals, toybox"):
        load_prompts("heldouts")


@pytest.mark.parametrize("name", ["toybox", "objects"])
def test_without_a_share_a_set_is_all_for_training(name):
    assert load_split(name, 0) == PromptSplit(train=tuple(load_prompts(name)), held_out=())


def test_a_share_divides_a_set_nearly_by_it():
    split = load_split("objects", 0.25)
    # 160 draws at 1/4: 40 expected, standard deviation 5.5.
    assert 24 <= len(split.held_out) <= 56
    assert split == load_split("objects", 0.25)


def test_a_split_is_the_same_in_every_release():
    # Their ranks: 0.055, 0.282, 0.045. A resumed run must not train on what it held out before.
    split = split_prompts(["a red mug", "a blue car", "a small boat"], 0.25)
    assert split == PromptSplit(train=("a blue car",), held_out=("a red mug", "a small boat"))


@given(prompts=PROMPTS, more=PROMPTS, share=st.floats(0, 1, exclude_max=True), wider=st.floats(0, 0.999))
def test_a_split_is_complete_disjoint_and_stable(prompts, more, share, wider):
    split = split_prompts(prompts, share)
    assert Counter(split.train + split.held_out) == Counter(prompts)
    assert list(split.train) == [prompt for prompt in prompts if prompt in split.train]
    extended = split_prompts(more + prompts, share)
    assert set(split.train) <= set(extended.train)
    assert set(split.held_out) <= set(extended.held_out)
    assert set(split.held_out) <= set(split_prompts(prompts, max(share, wider)).held_out)


def test_spellings_that_the_text_encoders_take_for_one_stay_together():
    for prompt in load_prompts("objects"):
        split = split_prompts([prompt, prompt.upper(), prompt.replace(" ", "  ")], 0.5)
        assert not (split.train and split.held_out)


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_lines_own_split_wins_over_the_share(write, share):
    lines = [{"prompt": p, "split": "train" if i % 2 else "heldout"} for i, p in enumerate("abcdefgh")]
    split = load_split(write("own.jsonl", "\n".join(map(json.dumps, lines))), share)
    assert split == PromptSplit(train=tuple("bdfh"), held_out=tuple("aceg"))


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_outside_its_range_is_refused(share):
    with pytest.raises(ValueError, match=f"held_out_share={share} must be at least 0 and below 1"):
        load_split("animals", share)


def test_an_unknown_part_of_a_split_is_refused():
    with pytest.raises(ValueError, match="'held_out'.* is no part of a split; declare train or heldout"):
        split_prompts(["a mug"], 0, {"a mug": "held_out"})


def test_when_nothing_is_held_out_the_share_advised_suffices(write):
    path = write("few.txt", "a red mug\na blue car\na small boat\n")
    with pytest.raises(ValueError, match="has 3 prompts.*none is held out; give a larger share") as caught:
        load_split(path, 1e-6)
    advised = float(re.search(r"such as (0\.\d+)", str(caught.value))[1])
    assert load_split(path, advised).held_out


def test_when_all_lines_say_train_marking_some_is_advised(write):
    path = write("all.jsonl", '{"prompt": "a mug", "split": "train"}')
    with pytest.raises(ValueError, match='has 1 prompts.*mark some lines with "split": "heldout"'):
        load_split(path, 0.5)


def test_nothing_left_to_train_on_is_refused(write):
    path = write("all.jsonl", '{"prompt": "a mug", "split": "heldout"}')
    with pytest.raises(ValueError, match=r"all.jsonl has 1 prompts.*none is left to train on; lower"):
        load_split(path, 0)
