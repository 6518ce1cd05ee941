"""What the node that trains shows of its run."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from t2mv_pack.nodes.train import progress


def write_sheet(run_dir: Path, epoch: int, size: int = 8) -> Path:
    """A sample sheet."""
    path = run_dir / "samples" / f"epoch_{epoch:04d}.png"
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (size, size), "red").save(path)
    return path


def test_the_newest_sheet_is_the_last_epochs(tmp_path: Path) -> None:
    assert progress.newest_sheet(tmp_path) is None
    write_sheet(tmp_path, 9999)
    last = write_sheet(tmp_path, 10000)
    assert progress.newest_sheet(tmp_path) == last


def test_a_damaged_picture_is_no_picture(tmp_path: Path) -> None:
    path = write_sheet(tmp_path, 1, 64)
    whole = path.read_bytes()
    assert progress.read_picture(path).size == (64, 64)
    path.write_bytes(whole[: len(whole) // 2])
    assert progress.read_picture(path) is None
    assert progress.read_picture(tmp_path / "missing.png") is None


def test_the_line_on_the_node() -> None:
    record = {"iteration": 3, "view_reward_standard": 0.87654, "lambda": 0.25}
    record |= {"rollout_seconds": 20.0, "update_seconds": 1.2}
    assert progress.status_text(record, 5) == (
        "iteration 3/5 · view 0.8765 · lambda 0.250 · 42 s left"  # two more of 21.2 s
    )
    assert progress.status_text(record, 20).endswith("6 min left")  # 17 * 21.2 s
    assert "left" not in progress.status_text(record, 3)


def test_rewards_are_compared_between_both_ends() -> None:
    records = [{"iteration": i, "view_reward_standard": float(i)} for i in range(1, 21)]
    # means of 1..5 and of 16..20
    assert progress.reward_lines(records) == [
        "reward for single views: 3.0000 at first, 18.0000 at last (means of 5 iterations)"
    ]
    assert "1.0000 at first, 1.0000 at last" in progress.reward_lines(records[:1])[0]
    assert progress.reward_lines([]) == []
    # an objective of two zigzags has no standard trajectories; a pair shows the standard one
    zigzags = [{"iteration": 1, "view_reward_zmv": 2.0}]
    assert "2.0000 at first, 2.0000 at last" in progress.reward_lines(zigzags)[0]
    pairs = [{"iteration": 1, "view_reward_zmv": 2.0, "view_reward_standard": 1.0}]
    assert "1.0000 at first, 1.0000 at last" in progress.reward_lines(pairs)[0]
