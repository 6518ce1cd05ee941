"""The order of drawing prompts."""

from collections import Counter

import pytest

from t2mv_core.trajectory import derive_seed
from training.data import prompt_sampler
from training.data.prompt_sampler import PromptSampler


def test_every_pass_draws_every_prompt_once_in_another_order():
    sampler = PromptSampler([f"p{i}" for i in range(10)], seed=3)
    drawn = sampler.draw(7) + sampler.draw(13)
    assert Counter(drawn[:10]) == Counter(drawn[10:]) == Counter(sampler.prompts)
    assert drawn[:10] != drawn[10:]
    assert PromptSampler(sampler.prompts, seed=4).draw(10) != drawn[:10]


@pytest.mark.parametrize("size", [1, 7, 45])
def test_draws_are_those_of_a_sort_by_hash_for_each_one(size):
    prompts = [f"p{i}" for i in range(size)]

    def naive(position):
        number, offset = divmod(position, size)
        return prompts[sorted(range(size), key=lambda i: derive_seed(11, "prompts", number, i))[offset]]

    sampler = PromptSampler(prompts, seed=11)
    drawn = [prompt for count in (1, 0, 3, size, 2 * size + 1) for prompt in sampler.draw(count)]
    assert drawn == [naive(position) for position in range(3 * size + 5)]


def test_draws_are_the_same_in_every_release():
    assert "".join(PromptSampler("abcdefgh", seed=1).draw(20)) == "eabfhdgcgfahcdebefba"


def test_a_pass_is_shuffled_once(monkeypatch):
    num_hashes = 0

    def count(*purpose):
        nonlocal num_hashes
        num_hashes += 1
        return derive_seed(*purpose)

    monkeypatch.setattr(prompt_sampler, "derive_seed", count)
    sampler = PromptSampler([f"p{i}" for i in range(100)], seed=0)
    for _ in range(3):
        sampler.draw(16)
    assert num_hashes == 100


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
    pictures = PromptSampler(["a", "b"], 0, ["red", "blue"])
    with pytest.raises(ValueError, match="other prompts or pictures"):
        pictures.load_state_dict(PromptSampler(["a", "b"], 0, ["red", "green"]).state_dict())


def test_no_prompts_are_refused():
    with pytest.raises(ValueError, match="no prompts"):
        PromptSampler([], 0)
