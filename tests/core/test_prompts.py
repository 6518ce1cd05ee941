"""Lines of prompts, what nobody sees in them, and syntax that is words here."""

import pytest

from t2mv_core.prompts import clean_line, describe_syntax, find_syntax, quote_some, split_lines


def test_lines_end_where_an_editor_ends_them():
    assert split_lines("a\nb\r\nc\rd\n\n e ") == ["a", "b", "c", "d", "", "e"]
    assert split_lines("a\u2028b\u2029c\x85d\x0be\x0cf\x1cg") == ["a b c d e f g"]


def test_what_nobody_sees_is_gone_and_the_rest_stays():
    assert clean_line("\ufeffwood\u00aden\u200b \u2060mug\x00\u202e\n") == "wooden mug"
    kept = "“it’s” naïve — 👨\u200d👩\u200d👧 می\u200cخواهم  two"
    assert clean_line(kept) == kept


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("a (red:1.5) mug", ["(red:1.5)"]),
        ("a (very (red:1.2) mug:.9)", ["(red:1.2)"]),
        ("a ((red)) mug", ["((red))"]),
        (r"a mug \(red\)", [r"\(", r"\)"]),
        ("embedding:EasyNegative, blurry", ["embedding:EasyNegative"]),
        ("(embedding:bad/hand:1.2)", ["(embedding:bad/hand:1.2)"]),
        ("a mug <lora:x:0.8>", ["<lora:x:0.8>"]),
        ("a mug BREAK a table, AND a chair", ["BREAK", "AND"]),
        ("a [red|blue] mug, [a:b:0.5]", ["[red|blue]", "[a:b:0.5]"]),
        ("a {red|blue} mug // later", ["{red|blue}", "// later"]),
        ("a __colour__ mug /* later */", ["__colour__", "/* later */"]),
    ],
)
def test_syntax_of_other_programs_is_found(prompt, pieces):
    assert find_syntax(prompt) == pieces


@pytest.mark.parametrize(
    "prompt",
    [
        "a mug (red)",
        "a mug (red, with milk: hot)",
        "A RED MUG AND A SPOON, DO NOT BREAK",
        "a mug and/or a cup, 1/2 full",
        "a mug from https://example.org",
        "a mug [red]",
        "a snake__case {mug}",
        "a mug <3",
        "a sign: 10:30",
    ],
)
def test_ordinary_punctuation_is_not(prompt):
    assert describe_syntax([prompt]) == []


def test_a_sentence_counts_prompts_and_names_the_first_pieces():
    prompts = [f"a (mug:1.{n}) BREAK" for n in range(5)] + ["a cup"]
    assert describe_syntax(prompts) == [
        "T2MV reads as plain words, unlike other programs: “(mug:1.0)”, “BREAK”, “(mug:1.1)” and 3 more "
        "(in 5 of 6 prompts)."
    ]
    assert quote_some(["x" * 100]) == "“" + "x" * 59 + "…”"
