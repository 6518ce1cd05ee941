"""Prompts and pictures by name: what is read, divided and refused before training begins."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from t2mv_core.reference_picture import GENERIC_PROMPT
from training.config import config_from_dict
from training.data.references import read_references, split_references
from training.models.subjects import Subjects


def draw(path, colour=(200, 30, 30)):
    """An object of 8 x 6 px in a transparent picture of 20 x 20."""
    picture = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    picture.paste((*colour, 255), (5, 7, 13, 13))
    picture.save(path)


@pytest.fixture
def folder(tmp_path):
    draw(tmp_path / "mug.png")
    draw(tmp_path / "car.png", (20, 20, 220))
    (tmp_path / "mug.txt").write_text("a red mug\n")
    (tmp_path / "notes.md").write_text("not a picture")
    return tmp_path


@pytest.fixture
def listed(folder):
    def write(*records):
        path = folder / "list.jsonl"
        path.write_text("\n".join(map(json.dumps, records)) + "\n")
        return path

    return write


def sampling(**values):
    return config_from_dict({"sampling": values}).sampling


def test_a_folders_pictures_have_the_words_beside_them(folder):
    found = read_references(folder)
    assert {name: reference.prompt for name, reference in found.items()} == {
        "car.png": GENERIC_PROMPT,
        "mug.png": "a red mug",
    }


def test_a_list_names_pictures_prompts_and_parts(listed):
    found = read_references(
        listed({"picture": "mug.png", "prompt": "a mug", "split": "heldout"}, {"picture": "car.png"})
    )
    assert [(r.path.name, r.prompt, r.split) for r in found.values()] == [
        ("mug.png", "a mug", "heldout"),
        ("car.png", GENERIC_PROMPT, None),
    ]
    split = split_references(found, 0.0)
    assert (split.train, split.held_out) == (("car.png",), ("mug.png",))


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ({"prompt": "a mug"}, 'no object with a "picture"'),
        ({"picture": "../secret.png"}, "outside the list's folder"),
        ({"picture": "/etc/passwd"}, "outside the list's folder"),
        ({"picture": "mug.png", "prompt": 3}, '"prompt" is 3'),
        ({"picture": "mug.png", "prompt": "  "}, "A prompt is empty"),
        ({"picture": "mug.png", "split": "test"}, "\"split\" is 'test'"),
    ],
)
def test_bad_lines_get_a_sentence_with_their_number(listed, record, sentence):
    with pytest.raises(ValueError, match=r"list.jsonl, line 2: .*" + sentence):
        read_references(listed({"picture": "car.png"}, record))


def test_a_picture_twice_or_missing_is_refused(listed):
    with pytest.raises(ValueError, match=r"line 2: 'mug.png' is there twice"):
        read_references(listed({"picture": "mug.png"}, {"picture": "mug.png"}))
    with pytest.raises(FileNotFoundError, match=r"no picture at .*none.png"):
        read_references(listed({"picture": "none.png"}))


def test_an_empty_folder_and_no_folder_are_refused(tmp_path):
    with pytest.raises(ValueError, match="names no picture"):
        read_references(tmp_path)
    with pytest.raises(FileNotFoundError, match="neither a folder nor"):
        read_references(tmp_path / "nothing")


def test_pictures_are_framed_for_the_model(image_bundle, folder):
    subjects = Subjects(image_bundle, sampling(references=str(folder)))
    batch = subjects.batch(["mug.png", "car.png", "mug.png"])
    assert batch.prompts == ("a red mug", GENERIC_PROMPT, "a red mug")
    assert batch.pictures.shape == (3, 3, image_bundle.image_px, image_bundle.image_px)
    assert torch.equal(batch.pictures[0], batch.pictures[2])
    red, blue = batch.pictures[0][:, 8, 8], batch.pictures[1][:, 8, 8]
    assert red[0] > red[2]
    assert blue[2] > blue[0]


def test_a_framed_picture_is_taken_as_it_is(image_bundle, folder, listed):
    side = image_bundle.image_px
    pixels = torch.randint(
        0, 256, (side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    Image.fromarray(pixels.numpy()).save(folder / "framed.png")
    Image.new("RGB", (2 * side, 2 * side), (255, 0, 0)).save(folder / "large.png")
    Image.new("RGB", (20, 10)).save(folder / "wide.png")
    path = listed({"picture": "framed.png", "framed": True}, {"picture": "large.png", "framed": True})
    batch = Subjects(image_bundle, sampling(references=str(path))).batch(["framed.png", "large.png"])
    assert torch.equal((255 * batch.pictures[0]).round().byte(), pixels.movedim(-1, 0))
    assert batch.pictures[1].flatten(1).std(dim=1).max() < 1e-3
    with pytest.raises(ValueError, match=r"wide.png has 20x10 px; a framed picture is square"):
        Subjects(image_bundle, sampling(references=str(listed({"picture": "wide.png", "framed": True}))))
    with pytest.raises(ValueError, match=r"\"framed\" is 'yes'"):
        read_references(listed({"picture": "framed.png", "framed": "yes"}))


def test_prompts_have_no_pictures(tiny_bundle):
    subjects = Subjects(tiny_bundle, sampling(prompts="animals"))
    batch = subjects.batch(subjects.split.train[:2])
    assert batch.prompts == subjects.split.train[:2]
    assert batch.pictures is None


def test_model_and_source_must_do_the_same_task(tiny_bundle, image_bundle, folder):
    with pytest.raises(ValueError, match=r"draws views of prompts; take an adapter"):
        Subjects(tiny_bundle, sampling(references=str(folder)))
    with pytest.raises(ValueError, match=r"draws views of pictures; set sampling.references"):
        Subjects(image_bundle, sampling(prompts="animals"))


def test_a_picture_that_cannot_be_cut_out_is_refused_before_training(image_bundle, folder):
    Image.new("RGB", (20, 20)).save(folder / "opaque.png")
    with pytest.raises(ValueError, match=r"opaque.png has no transparency"):
        Subjects(image_bundle, sampling(references=str(folder)))
    (folder / "opaque.png").unlink()
    Image.new("RGBA", (20, 20)).save(folder / "empty.png")
    with pytest.raises(ValueError, match=r"empty.png: The picture is transparent everywhere"):
        Subjects(image_bundle, sampling(references=str(folder)))


@pytest.mark.parametrize(
    ("mode", "name", "sentence"),
    [
        ("RGBA", "a.png", "has transparency, so it is not framed yet"),
        ("RGB", "a.jpg", "is a JPEG file; only PNG and WEBP are read"),
        ("I;16", "a.png", "has 16 bits per channel"),
    ],
)
def test_a_file_that_only_claims_to_be_framed_is_refused(image_bundle, folder, listed, mode, name, sentence):
    Image.new(mode, (16, 16)).save(folder / name)
    with pytest.raises(ValueError, match=sentence):
        Subjects(image_bundle, sampling(references=str(listed({"picture": name, "framed": True}))))


def test_a_picture_is_known_by_what_it_shows_and_its_words(image_bundle, folder):
    def identities():
        return Subjects(image_bundle, sampling(references=str(folder))).identities(["car.png", "mug.png"])

    before = identities()
    assert identities() == before
    (folder / "mug.txt").write_text("a blue mug\n")
    assert identities()[0] == before[0]
    assert identities()[1] != before[1]
    draw(folder / "car.png", (20, 220, 20))
    assert identities()[0] != before[0]


def test_a_held_out_picture_is_not_trained_on_under_another_name(folder, listed):
    draw(folder / "again.png")
    path = listed({"picture": "mug.png", "split": "heldout"}, {"picture": "again.png"})
    with pytest.raises(ValueError, match=r"again.png and mug.png are the same picture, and mug.png is held"):
        split_references(read_references(path), 0.0)
    with pytest.raises(ValueError, match=r"line 2: './mug.png' is there twice"):
        read_references(listed({"picture": "mug.png"}, {"picture": "./mug.png"}))


@pytest.mark.parametrize("name", ["\ud800.png", 5000 * "x" + ".png"])
def test_names_that_no_file_can_have_get_a_sentence(listed, name):
    with pytest.raises((ValueError, FileNotFoundError), match=r"list.jsonl, line 1: "):
        read_references(listed({"picture": name}))


def test_words_and_pictures_that_are_not_read_are_named(folder, caplog):
    (folder / "photo.JPG").write_bytes(b"")
    read_references(folder)
    assert "1 pictures of" in caplog.text
    assert "photo.JPG" in caplog.text
    (folder / "mug.txt").write_text(" \n")
    with pytest.raises(ValueError, match=r"mug.txt: A prompt is empty"):
        read_references(folder)


def test_a_share_that_holds_nothing_out_is_refused(folder):
    with pytest.raises(ValueError, match=r"none of 2 pictures is held out"):
        split_references(read_references(folder), 0.001)
