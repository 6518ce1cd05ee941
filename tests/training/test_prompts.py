"""Prompt sets, prompt files, and the order of drawing."""

from collections import Counter

import pytest

from training.prompts import PROMPT_SETS, PromptSampler, load_prompts


@pytest.mark.parametrize("name", sorted(PROMPT_SETS))
def test_every_set_holds_distinct_prompts(name):
    prompts = load_prompts(name)
    assert len(prompts) >= 45
    assert len(set(prompts)) == len(prompts)


def test_training_prompts_are_disjoint_from_those_results_are_measured_on():
    assert not set(load_prompts("toybox")) & (set(load_prompts("heldout")) | set(load_prompts("dev")))


def test_there_are_45_animals_in_a_template():
    prompts = load_prompts("animals")
    assert len(prompts) == 45
    assert "a photo of an ant" in prompts
    assert "a photo of a cat" in prompts


def test_a_file_gives_its_lines(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("# comment\na red mug\n\n  a blue car \n", encoding="utf-8")
    assert load_prompts(str(path)) == ["a red mug", "a blue car"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"\n# nothing\n", "holds no prompt"),
        (b"x" * 10_000, "10000 characters"),
        (b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_an_unusable_file_gets_a_sentence(tmp_path, content, sentence):
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        load_prompts(str(path))


def test_an_unknown_set_names_the_known_ones():
    with pytest.raises(FileNotFoundError, match="use one of animals, toybox"):
        load_prompts("heldouts")


def test_every_pass_draws_every_prompt_once_in_another_order():
    sampler = PromptSampler([f"p{i}" for i in range(10)], seed=3)
    drawn = sampler.draw(7) + sampler.draw(13)
    assert Counter(drawn[:10]) == Counter(drawn[10:]) == Counter(sampler.prompts)
    assert drawn[:10] != drawn[10:]
    assert PromptSampler(sampler.prompts, seed=4).draw(10) != drawn[:10]


def test_a_restored_sampler_continues():
    prompts = [f"p{i}" for i in range(5)]
    first, second = PromptSampler(prompts, 0), PromptSampler(prompts, 0)
    first.draw(8)
    second.load_state_dict(first.state_dict())
    assert second.draw(9) == first.draw(9)


def test_a_state_of_other_prompts_is_refused():
    state = PromptSampler(["a", "b"], 0).state_dict()
    with pytest.raises(ValueError, match="other prompts"):
        PromptSampler(["a", "c"], 0).load_state_dict(state)


def test_no_prompts_are_refused():
    with pytest.raises(ValueError, match="no prompts"):
        PromptSampler([], 0)
