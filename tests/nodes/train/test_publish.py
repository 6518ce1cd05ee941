"""Where a finished LoRA goes, and what it never overwrites."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from t2mv_pack.nodes.train import publish as publishing


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run folder with two LoRAs."""
    folder = tmp_path / "runs" / "mine"
    (folder / "lora").mkdir(parents=True)
    (folder / "lora" / "epoch_0002.safetensors").write_bytes(b"second")
    (folder / "lora" / "epoch_0010.safetensors").write_bytes(b"tenth")
    return folder


@pytest.fixture
def loras(tmp_path: Path) -> Path:
    """ComfyUI's folder for LoRAs."""
    (tmp_path / "loras").mkdir()
    return tmp_path / "loras"


def test_a_run_replaces_its_own_file(run_dir: Path, loras: Path) -> None:
    place = publishing.find_place("mine", run_dir, [loras])
    assert place == loras / publishing.listed_name("mine") == loras / "t2mv" / "mine.safetensors"
    assert publishing.publish(run_dir, place).name == "epoch_0010.safetensors"
    assert place.read_bytes() == b"tenth"
    (run_dir / "lora" / "epoch_10000.safetensors").write_bytes(b"later")
    again = publishing.find_place("mine", run_dir, [loras])
    publishing.publish(run_dir, again)
    assert place.read_bytes() == b"later"
    assert [path.name for path in place.parent.iterdir()] == ["mine.safetensors"]  # nothing left over


def test_a_record_that_cannot_be_written_whole_stays_as_it_was(
    run_dir: Path, loras: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = publishing.find_place("mine", run_dir, [loras])
    publishing.publish(run_dir, place)
    (run_dir / "lora" / "epoch_10000.safetensors").write_bytes(b"later")

    def write_half(path: Path, text: str, encoding: str) -> None:
        path.write_bytes(text.encode(encoding)[:10])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", write_half)
    with pytest.raises(OSError, match="No space"):
        publishing.publish(run_dir, place)
    assert place.read_bytes() == b"tenth"
    assert publishing.find_place("mine", run_dir, [loras]) == place  # its own file still


def test_the_best_comes_before_the_last(run_dir: Path) -> None:
    (run_dir / "lora" / "best.safetensors").write_bytes(b"best")
    assert publishing.newest_lora(run_dir).name == "best.safetensors"


@pytest.mark.parametrize("shadows", [False, True], ids=["same folder", "earlier folder"])
def test_a_file_of_somebody_else_is_refused(
    run_dir: Path, loras: Path, tmp_path: Path, shadows: bool
) -> None:
    other = (tmp_path / "first" if shadows else loras) / "t2mv" / "mine.safetensors"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="was not written by the run"):
        publishing.find_place("mine", run_dir, [tmp_path / "first", loras])


def test_a_file_that_appears_while_training_is_kept(run_dir: Path, loras: Path) -> None:
    place = publishing.find_place("mine", run_dir, [loras])
    place.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="by another program"):
        publishing.publish(run_dir, place)
    assert place.read_bytes() == b"precious"


def test_an_own_file_that_was_changed_counts_as_somebody_elses(run_dir: Path, loras: Path) -> None:
    place = publishing.find_place("mine", run_dir, [loras])
    publishing.publish(run_dir, place)
    place.write_bytes(b"merged with another")
    with pytest.raises(FileExistsError, match="was not written by the run"):
        publishing.find_place("mine", run_dir, [loras])


def test_the_first_writable_folder_is_taken(run_dir: Path, loras: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"  # for root too: its t2mv is no folder
    closed.mkdir()
    (closed / "t2mv").write_bytes(b"")
    place = publishing.find_place("mine", run_dir, [tmp_path / "missing", closed, loras])
    assert place.is_relative_to(loras)
    with pytest.raises(PermissionError, match="can be written"):
        publishing.find_place("mine", run_dir, [closed])


def test_a_missing_folder_is_made_when_there_is_no_other(run_dir: Path, tmp_path: Path) -> None:
    place = publishing.find_place("mine", run_dir, [tmp_path / "models" / "loras"])
    publishing.publish(run_dir, place)
    assert place.is_file()


def test_a_lora_that_was_removed_is_missed(run_dir: Path, loras: Path) -> None:
    assert not publishing.is_lost("mine", run_dir, [loras])  # never published
    place = publishing.find_place("mine", run_dir, [loras])
    publishing.publish(run_dir, place)
    assert not publishing.is_lost("mine", run_dir, [loras])
    place.unlink()
    assert publishing.is_lost("mine", run_dir, [loras])
    publishing.publish(run_dir, place)  # and can be put back
    assert not publishing.is_lost("mine", run_dir, [loras])


def test_a_deleted_run_is_missed_with_its_lora(run_dir: Path, loras: Path) -> None:
    place = publishing.find_place("mine", run_dir, [loras])
    publishing.publish(run_dir, place)
    assert publishing.name_loss("mine", run_dir, [loras]) == ""
    shutil.rmtree(run_dir)
    assert publishing.is_lost("mine", run_dir, [loras])  # and find_place says that the LoRA is in the way
    place.unlink()
    assert publishing.is_lost("mine", run_dir, [loras])
    first_loss = publishing.name_loss("mine", run_dir, [loras])
    assert first_loss
    (run_dir / "lora").mkdir(parents=True)
    (run_dir / "lora" / "epoch_0001.safetensors").write_bytes(b"anew")
    publishing.publish(run_dir, place)
    assert not publishing.is_lost("mine", run_dir, [loras])
    assert publishing.name_loss("mine", run_dir, [loras]) == first_loss  # what replaced it is not repeated
    place.unlink()
    assert publishing.name_loss("mine", run_dir, [loras]) not in ("", first_loss)


def test_a_run_without_a_lora_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="left no LoRA"):
        publishing.newest_lora(tmp_path)
