"""The full state: round trip, interrupted swaps, damage."""

import random
import shutil

import pytest
import torch

from training.models.policy import make_average
from training.run.checkpoint import Checkpoint, load_checkpoint, save_checkpoint


def checkpoint(iteration: int, has_ema: bool = True) -> Checkpoint:
    weight = torch.nn.Parameter(torch.full((2, 2), float(iteration)))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    weight.grad = torch.ones(2, 2)
    optimizer.step()
    counters = {
        "dual": {"lambda": 0.1 * iteration, "threshold": None},
        "prompts": {"num_drawn": iteration},
    }
    ema = make_average(0.9, [weight])
    ema.step([weight])
    return Checkpoint(
        iteration,
        {"x": weight},
        {"step": str(iteration)},
        optimizer.state_dict(),
        counters,
        ema.state_dict() if has_ema else None,
    )


def test_everything_comes_back(tmp_path):
    saved = checkpoint(3)
    save_checkpoint(tmp_path, saved)
    drawn = torch.rand(1).item(), random.random()
    loaded = load_checkpoint(tmp_path)
    assert (torch.rand(1).item(), random.random()) == drawn
    assert (loaded.iteration, loaded.counters, loaded.metadata) == (3, saved.counters, saved.metadata)
    assert torch.equal(loaded.lora["x"], saved.lora["x"])
    moments = [state["state"][0]["exp_avg"] for state in (loaded.optimizer, saved.optimizer)]
    assert torch.equal(*moments)
    assert loaded.ema["optimization_step"] == 1
    assert torch.equal(loaded.ema["shadow_params"][0], saved.ema["shadow_params"][0])
    save_checkpoint(tmp_path, checkpoint(4, has_ema=False))
    assert load_checkpoint(tmp_path).ema is None


def test_nothing_saved_is_none(tmp_path):
    assert load_checkpoint(tmp_path) is None
    (tmp_path / "last.new").mkdir()  # killed while writing the first state
    (tmp_path / "last.new" / "counters.json").write_text("{")
    assert load_checkpoint(tmp_path) is None


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path):
    save_checkpoint(tmp_path, checkpoint(1))
    shutil.copytree(tmp_path / "last", tmp_path / "last.old")
    save_checkpoint(tmp_path, checkpoint(2))
    assert not (tmp_path / "last.old").exists()
    # as if killed after last -> last.old: the new folder is complete
    (tmp_path / "last").rename(tmp_path / "last.new")
    save_folder = tmp_path / "last.old"
    save_folder.mkdir()
    assert load_checkpoint(tmp_path).iteration == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last"]


def test_a_kill_while_writing_keeps_the_state_before(tmp_path):
    save_checkpoint(tmp_path, checkpoint(1))
    (tmp_path / "last.new").mkdir()
    (tmp_path / "last.new" / "lora.safetensors").write_bytes(b"half")
    assert load_checkpoint(tmp_path).iteration == 1
    save_checkpoint(tmp_path, checkpoint(2))
    assert load_checkpoint(tmp_path).iteration == 2


def test_a_failing_write_keeps_the_state_before(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, checkpoint(1))

    def no_space(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", no_space)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, checkpoint(2))
    assert load_checkpoint(tmp_path).iteration == 1


@pytest.mark.parametrize("name", ["counters.json", "lora.safetensors", "optimizer.pt", "random.pt"])
@pytest.mark.parametrize("is_removed", [True, False])
def test_damage_gets_a_sentence(tmp_path, name, is_removed):
    save_checkpoint(tmp_path, checkpoint(1))
    path = tmp_path / "last" / name
    if is_removed:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(ValueError, match="cannot be read"):
        load_checkpoint(tmp_path)


def test_a_damaged_average_gets_a_sentence_and_a_state_of_version_0_1_has_none(tmp_path):
    save_checkpoint(tmp_path, checkpoint(1))
    path = tmp_path / "last" / "ema.pt"
    path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(ValueError, match="cannot be read"):
        load_checkpoint(tmp_path)
    path.unlink()
    loaded = load_checkpoint(tmp_path)
    assert (loaded.iteration, loaded.ema) == (1, None)
