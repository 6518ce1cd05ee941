"""The benchmark of training on pictures: what is trained on, what is held out, and gains computed by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from benchmarks.picture_training import COLUMNS, gains, table, values_of, write_references
from t2mv_core.reference_picture import frame_picture, read_picture
from training.data.references import read_references, split_references
from training.toybox.data.scenes import is_held_out


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_references(tmp_path_factory.mktemp("pictures"), 24, 30)


def test_pictures_are_cut_out_and_divided(written):
    path, scenes = written
    found = read_references(path)
    split = split_references(found, 0.0)
    assert (len(split.train), len(split.held_out)) == (24, 30)
    assert len(scenes) == 30
    for name, scene in zip(split.held_out, scenes, strict=True):
        assert found[name].prompt.split()[1:] == scene.family.split()
    framed = [frame_picture(read_picture(one.path), 64) for one in found.values()]
    assert len({float(picture.sum()) for picture in framed}) == 54


def test_some_held_out_objects_show_what_no_training_had(written):
    _, scenes = written
    unseen = [s for s in scenes if is_held_out(s.family, s.colour, s.part_colour, s.companion_colour)]
    assert 0 < len(unseen) < 30


def test_gains_are_paired_by_object(written):
    truth, nan = torch.zeros(2, 6, 3, 4, 4), float("nan")

    def found(colour, pixel):
        values = {
            "judge_family": torch.ones(2, 1),
            "judge_colour": torch.tensor(colour)[:, None],
            "judge_part": torch.tensor([[nan], [1.0]]),
            "judge_relation": torch.full((2, 1), nan),
        }
        images = torch.full((2, 6, 3, 4, 4), pixel, dtype=torch.uint8)
        return values_of(SimpleNamespace(values=values, images=images), truth)

    base, after = found([0.0, 1.0], 102), found([1.0, 1.0], 51)
    entry = gains([after, base], base)
    assert entry["kept"]["mean"] == entry["judge_colour"]["mean"] == 0.25
    assert entry["psnr"]["mean"] == pytest.approx(10 * torch.log10(torch.tensor(4.0)).item() / 2, abs=1e-3)
    assert "judge_relation" not in entry


def test_the_table_has_a_row_per_variant_and_signs_for_gains():
    interval = {"mean": 0.5, "low": 0.25, "high": 0.75}
    rows = table(
        {"no training": dict.fromkeys(COLUMNS, interval), "x: gain": dict.fromkeys(COLUMNS, interval)}
    )
    assert rows.count("0.500 [0.250, 0.750]") == len(COLUMNS)
    assert rows.count("+0.500 [+0.250, +0.750]") == len(COLUMNS)
