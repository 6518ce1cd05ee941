"""Pictures of Train LoRA: the trainer reads what was connected, and other pictures are another run."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from t2mv_pack.nodes.train import pictures, settings

from training.data.references import read_references


@pytest.fixture
def reference():
    return torch.rand(2, 8, 8, 3, generator=torch.Generator().manual_seed(0))


def listed(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_is_written_is_what_was_connected(reference, tmp_path):
    path = pictures.write_references(reference, ["a mug", "a car"], tmp_path)
    found = read_references(path)
    assert [one.prompt for one in found.values()] == ["a mug", "a car"]
    assert all(one.is_framed for one in found.values())
    read = torch.stack([torch.from_numpy(np.array(Image.open(one.path))) for one in found.values()])
    assert torch.equal(read, (255 * reference).round().byte())


def test_a_picture_beyond_0_and_1_does_not_wrap_around(tmp_path):
    """Bicubic resizing leaves such pictures."""
    reference = torch.tensor([-0.01, 1.01]).repeat(8, 4)[None, ..., None].expand(1, 8, 8, 3)
    (one,) = read_references(pictures.write_references(reference, [], tmp_path)).values()
    with Image.open(one.path) as written:
        assert np.unique(np.asarray(written)[:, ::2]) == 0
        assert np.unique(np.asarray(written)[:, 1::2]) == 255


@pytest.mark.parametrize(
    ("prompts", "written"),
    [([], [None, None]), (["a mug"], ["a mug", "a mug"]), (["a mug", "a car"], ["a mug", "a car"])],
    ids=["none", "one", "each"],
)
def test_each_of_two_pictures_gets_its_prompt(reference, tmp_path, prompts, written):
    lines = listed(pictures.write_references(reference, prompts, tmp_path))
    assert [line.get("prompt") for line in lines] == written


def test_equal_lines_each_belong_to_their_picture(tmp_path):
    prompts = settings.read_training_prompts("a mug\na mug\na chair", has_pictures=True)
    assert prompts == ["a mug", "a mug", "a chair"]
    three = torch.rand(3, 8, 8, 3, generator=torch.Generator().manual_seed(0))
    lines = listed(pictures.write_references(three, prompts, tmp_path))
    assert [line["prompt"] for line in lines] == prompts


def test_another_list_leaves_that_of_a_run_alone(reference, tmp_path):
    first = pictures.write_references(reference, ["a mug", "a car"], tmp_path)
    before = first.read_text()
    assert pictures.write_references(reference, ["a cup", "a car"], tmp_path) != first
    assert first.read_text() == before


def test_names_tell_pictures_and_prompts_apart(reference, tmp_path):
    def names(pictures_of, prompts):
        return [line["picture"] for line in listed(pictures.write_references(pictures_of, prompts, tmp_path))]

    first = names(reference, ["a mug", "a car"])
    assert names(reference, ["a mug", "a car"]) == first
    assert not set(names(reference, ["a cup", "a bus"])) & set(first)
    assert not set(names(reference.flip(0), ["a mug", "a car"])) & set(first)
    assert len(names(reference[:1].expand(3, -1, -1, -1), [])) == 1  # the same picture three times


def test_counts_that_do_not_fit_get_a_sentence(reference):
    for num_prompts in (0, 1, 2):
        pictures.check_references(reference, num_prompts, "pictures")
    pictures.check_references(None, 5, "demo")
    with pytest.raises(ValueError, match="2 reference pictures were given for 3 prompt lines"):
        pictures.check_references(reference, 3, "pictures")
    with pytest.raises(ValueError, match="8x6 px, but must be square"):
        pictures.check_references(reference[:, :6], 2, "pictures")


def handle(**values):
    return SimpleNamespace(**values)


def test_model_and_rewards_must_do_what_there_is_to_do(reference):
    with pytest.raises(ValueError, match="preset pictures trains on pictures, and none is connected"):
        pictures.check_references(None, 2, "pictures")
    with pytest.raises(ValueError, match="preset demo draws views of a text and cannot see a picture"):
        pictures.check_references(reference, 2, "demo")
    text = handle(bundle=handle(name="toybox", tasks=("text-to-multiview",)))
    with pytest.raises(ValueError, match="toybox draws views of a text and cannot see a picture"):
        pictures.check_references(reference, 2, "pictures", text)
    of_picture = handle(bundle=handle(name="toybox-image", tasks=("image-to-multiview",)))
    pictures.check_references(reference, 2, "demo", of_picture)
    likeness = handle(reward=handle(name="toybox_picture", takes_pictures=True))
    with pytest.raises(ValueError, match="toybox_picture compares views with the picture"):
        pictures.check_references(None, 2, "demo", text, (likeness,))
