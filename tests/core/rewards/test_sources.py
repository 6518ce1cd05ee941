"""Where weights are looked for, and what is said when they are nowhere."""

from __future__ import annotations

import pytest

from t2mv_core.rewards.sources import PublishedWeights, RewardPlaces, find_weights, reward_files

WEIGHTS = PublishedWeights(
    ("model.pt", "model.safetensors"), "https://huggingface.co/someone/model", ("model.pt",), remark="Big."
)


@pytest.fixture
def calls(monkeypatch):
    """What the Hub client is asked; it has nothing."""
    asked = []

    def fetch(repo_id, filename, local_files_only):
        from huggingface_hub.errors import LocalEntryNotFoundError

        asked.append((repo_id, filename, local_files_only))
        raise LocalEntryNotFoundError("nothing")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    return asked


def test_a_named_path_comes_before_the_folders(tmp_path):
    (tmp_path / "model.pt").touch()
    own = tmp_path / "own.pt"
    own.touch()
    places = RewardPlaces({"reward": own}, (tmp_path,))
    assert find_weights("reward", WEIGHTS, places) == own
    assert find_weights("another", WEIGHTS, places) == tmp_path / "model.pt"
    with pytest.raises(
        FileNotFoundError, match=r"said to be at .*gone.pt.*https://huggingface.co/someone/model"
    ):
        find_weights("reward", WEIGHTS, RewardPlaces({"reward": tmp_path / "gone.pt"}, (tmp_path,)))


def test_the_first_folder_and_name_win(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, name in ((first, "model.safetensors"), (second, "model.pt")):
        folder.mkdir()
        (folder / name).touch()
    places = RewardPlaces(folders=(first, second))
    assert find_weights("reward", WEIGHTS, places) == first / "model.safetensors"


def test_without_permission_only_the_cache_is_asked(calls, tmp_path):
    with pytest.raises(FileNotFoundError) as refusal:
        find_weights("reward", WEIGHTS, RewardPlaces(folders=(tmp_path,)))
    assert calls == [("someone/model", "model.pt", True)]
    assert str(refusal.value) == (
        "The weights of the reward reward are not on this machine: get model.pt or model.safetensors from "
        f"https://huggingface.co/someone/model and put it into {tmp_path}. Big."
    )


def test_with_permission_the_hub_is_asked(calls):
    with pytest.raises(FileNotFoundError, match="a folder named t2mv_rewards.*not in the Hub's local cache"):
        find_weights("reward", WEIGHTS, RewardPlaces(allow_download=True))
    assert calls == [("someone/model", "model.pt", False)]


def test_weights_that_are_not_on_the_hub_ask_nobody(calls):
    elsewhere = PublishedWeights(("model.pth",), "https://example.org")
    with pytest.raises(FileNotFoundError, match="get model.pth from https://example.org"):
        find_weights("reward", elsewhere, RewardPlaces(allow_download=True))
    assert calls == []


@pytest.mark.parametrize("allowed", [False, True])
def test_folders_ask_the_network_only_with_permission(monkeypatch, tmp_path, allowed):
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download",
        lambda _, name, local_files_only: asked.append((name, local_files_only)) or str(tmp_path / name),
    )
    folder = PublishedWeights(("folder",), "https://huggingface.co/someone/model", ("a.json", "b.bin"))
    assert find_weights("reward", folder, RewardPlaces(allow_download=allowed)) == tmp_path
    assert asked == [("a.json", not allowed), ("b.bin", not allowed)]


def test_what_lies_there_must_be_complete(tmp_path):
    folder = PublishedWeights(
        ("model",),
        "https://example.org",
        needs=(("config.json",), ("a.safetensors", "a.bin")),
        remark="See there.",
    )
    (tmp_path / "model").mkdir()
    places = RewardPlaces(folders=(tmp_path,))
    with pytest.raises(FileNotFoundError, match="are not complete: config.json is missing; .*See there"):
        find_weights("reward", folder, places)
    (tmp_path / "model" / "config.json").touch()
    with pytest.raises(FileNotFoundError, match="a.safetensors or a.bin is missing"):
        find_weights("reward", folder, places)
    (tmp_path / "model" / "a.bin").touch()
    assert find_weights("reward", folder, places) == tmp_path / "model"
    beside = PublishedWeights(("model/a.bin",), "https://example.org", needs=(("vocab.txt",),))
    with pytest.raises(FileNotFoundError, match="vocab.txt is missing"):
        find_weights("reward", beside, places)
    (tmp_path / "model" / "vocab.txt").touch()
    assert reward_files(beside, find_weights("reward", beside, places)) == [
        tmp_path / "model" / "a.bin",
        tmp_path / "model" / "vocab.txt",
    ]
