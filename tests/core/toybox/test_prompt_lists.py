"""The fixed prompt lists; tests/training/toybox/data/test_captions.py compares them with the recipe's."""

import json

import pytest

from t2mv_core.toybox import prompt_lists
from t2mv_core.toybox.prompt_lists import PromptSpec, find_specs, load_prompt_list


@pytest.fixture
def own_lists(tmp_path, monkeypatch):
    """Read another file for a while."""
    content = {
        "asymmetric_families": ["mug"],
        "lists": {
            "dev": [{"prompt": "a red mug", "family": "mug", "colour": "red", "part_colour": None}],
            "train": [{"prompt": "a car", "family": "car", "colour": "red", "part_colour": "blue"}],
            "held_out": [
                {
                    "prompt": "a mug on a plate",
                    "family": "mug",
                    "colour": "red",
                    "companion_colour": "green",
                    "kind": "unseen relation",
                }
            ],
        },
    }
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps(content))
    monkeypatch.setattr(prompt_lists, "toybox_path", lambda _: path)
    prompt_lists._read.cache_clear()
    prompt_lists._specs_by_prompt.cache_clear()
    yield
    prompt_lists._read.cache_clear()
    prompt_lists._specs_by_prompt.cache_clear()


@pytest.mark.usefixtures("own_lists")
def test_specs_are_found_in_all_lists_and_all_or_none():
    assert load_prompt_list("dev") == (PromptSpec("a red mug", "mug", "red"),)
    mug, car, both = find_specs(["a red mug", "a car", "a mug on a plate"])
    assert (mug.family, mug.part_colour, car.part_colour) == ("mug", None, "blue")
    assert (mug.companion_colour, mug.kind) == (None, "")
    assert (both.companion_colour, both.kind) == ("green", "unseen relation")
    assert find_specs(["a red mug", "a mug made of jam"]) is None


@pytest.mark.parametrize(("name", "count"), [("dev", 100), ("held_out", 300)])
def test_the_lists_that_results_are_measured_on_have_distinct_prompts(name, count):
    specs = load_prompt_list(name)
    assert len({spec.prompt for spec in specs}) == len(specs) == count
    assert find_specs([spec.prompt for spec in specs]) == specs
