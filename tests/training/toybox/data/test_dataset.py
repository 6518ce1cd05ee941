"""The dataset: seeded per scene, resumable, complete or refused."""

import numpy as np
import pytest

from training.toybox.data import dataset
from training.toybox.data.dataset import dataset_scene, load_dataset, render_dataset
from training.toybox.data.renderer import render_views
from training.toybox.data.scenes import FAMILIES, is_held_out


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(dataset, "SHARD_SIZE", 4)


def test_round_trip_keeps_pictures_silhouettes_and_ground_truth(tmp_path, small_shards):
    render_dataset(tmp_path / "data", num_scenes=6, seed=3)
    loaded = load_dataset(tmp_path / "data")
    assert loaded.images.shape == (6, 6, 64, 64, 3)
    assert len(loaded.azimuths_deg) == 6
    assert loaded.scenes == [dataset_scene(3, index) for index in range(6)]
    images, silhouettes = render_views(loaded.scenes[5])
    assert np.array_equal(loaded.images[5], images)
    assert np.array_equal(loaded.silhouettes[5], silhouettes)
    assert load_dataset(tmp_path / "data", limit=5).images.shape[0] == 5


def test_resume_keeps_finished_shards_and_writes_the_rest_identically(tmp_path, small_shards):
    render_dataset(tmp_path / "data", num_scenes=8, seed=0)
    before = load_dataset(tmp_path / "data").images
    kept, lost = sorted((tmp_path / "data").glob("scenes_*.npz"))
    stamp = kept.stat().st_mtime_ns
    lost.unlink()
    with pytest.raises(FileNotFoundError, match="run the render stage again"):
        load_dataset(tmp_path / "data")
    render_dataset(tmp_path / "data", num_scenes=8, seed=0)
    assert kept.stat().st_mtime_ns == stamp
    assert np.array_equal(load_dataset(tmp_path / "data").images, before)
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        "recipe.json",
        kept.name,
        lost.name,
    ]


def test_workers_change_nothing(tmp_path, small_shards):
    render_dataset(tmp_path / "one", num_scenes=5, seed=1, workers=1)
    render_dataset(tmp_path / "two", num_scenes=5, seed=1, workers=2)
    assert np.array_equal(load_dataset(tmp_path / "one").images, load_dataset(tmp_path / "two").images)


def test_families_take_turns_and_training_scenes_are_never_held_out():
    names = list(FAMILIES)
    scenes = [dataset_scene(0, index) for index in range(3 * len(names))]
    assert [scene.family for scene in scenes] == names * 3
    assert not any(
        is_held_out(scene.family, scene.colour, scene.part_colour, scene.companion_colour) for scene in scenes
    )


def test_seeds_give_different_datasets():
    assert dataset_scene(0, 0) != dataset_scene(1, 0)


def test_another_dataset_in_the_folder_is_refused(tmp_path, small_shards):
    render_dataset(tmp_path, num_scenes=1, seed=0)
    with pytest.raises(ValueError, match="choose another folder or delete it"):
        render_dataset(tmp_path, num_scenes=1, seed=1)


def test_bad_numbers_and_an_empty_folder_are_refused_in_words(tmp_path):
    with pytest.raises(ValueError, match="num_scenes=0"):
        render_dataset(tmp_path, num_scenes=0, seed=0)
    with pytest.raises(FileNotFoundError, match="holds no rendered dataset"):
        load_dataset(tmp_path)
