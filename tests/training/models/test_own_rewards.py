"""A user's function as a reward: what it is given, what it may return, and every mistake in words."""

import pytest
import torch

from training.config import OwnRewardConfig
from training.models.rewards import OwnReward, load_own_reward

IMAGES = torch.arange(6.0).div(10).view(6, 1, 1, 1).expand(6, 3, 4, 4)


def write(tmp_path, body, kind="view"):
    """A file with a function `reward` of the given body."""
    path = tmp_path / "mine.py"
    path.write_text(f"import torch\n\ndef reward(images, prompts):\n    {body}\n")
    return OwnRewardConfig(str(path), "reward", kind)


def test_the_function_gets_pictures_and_prompts_and_gives_scores(tmp_path):
    config = write(
        tmp_path, "return images.mean(dim=(1, 2, 3)) + torch.tensor([float(len(p)) for p in prompts])"
    )
    prompts = ["a", "bb", "a", "a", "a", "a"]
    scores = OwnReward("mine", config)(IMAGES, prompts).scores
    assert torch.allclose(scores, torch.tensor([1.0, 2.1, 1.2, 1.3, 1.4, 1.5]))
    assert scores.dtype == torch.float32


def test_a_joint_function_gives_one_number_a_set(tmp_path):
    config = write(tmp_path, "return [float(len(images))] * len(prompts)", "joint")
    assert OwnReward("mine", config)(IMAGES, ["a", "b"]).scores.tolist() == [6.0, 6.0]


def test_scores_have_no_graph(tmp_path):
    config = write(tmp_path, "return images.mean(dim=(1, 2, 3)) * torch.ones(1, requires_grad=True)")
    assert not OwnReward("mine", config)(IMAGES, ["a"] * 6).scores.requires_grad


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return 1.0", r"returned numbers of shape \[\] for 6 pictures; it must return \[6\]"),
        ("return images.mean(dim=1)", r"returned numbers of shape \[6, 4, 4\]"),
        ("return None", "returned NoneType, not a list of numbers"),
        ("return ['good'] * 6", "returned list, not a list of numbers"),
    ],
)
def test_what_it_must_not_return_is_said(tmp_path, body, words):
    with pytest.raises(ValueError, match=words):
        OwnReward("mine", write(tmp_path, body))(IMAGES, ["a"] * 6)


def test_what_the_function_does_to_its_pictures_stays_there(tmp_path):
    images = IMAGES.clone()
    OwnReward("mine", write(tmp_path, "images -= 1; return images.mean(dim=(1, 2, 3))"))(images, ["a"] * 6)
    assert torch.equal(images, IMAGES)


def test_a_failure_names_the_reward(tmp_path):
    with pytest.raises(ValueError, match="The reward mine failed: AttributeError: .*no attribute 'colours'"):
        OwnReward("mine", write(tmp_path, "return images.colours"))(IMAGES, ["a"] * 6)


def test_a_file_runs_once_and_may_hold_dataclasses(tmp_path):
    path = tmp_path / "counted.py"
    path.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom pathlib import Path\n"
        "with (Path(__file__).parent / 'runs').open('a') as file:\n    file.write('x')\n"
        "@dataclass\nclass Size:\n    height: int\n"
        "def reward(images, prompts):\n    return [Size(1).height] * len(prompts)\n"
    )
    for _ in range(3):
        assert OwnReward("mine", OwnRewardConfig(str(path)))(IMAGES, ["a"] * 6).scores.tolist() == [1] * 6
    assert (tmp_path / "runs").read_text() == "x"


def test_requests_are_checked_before_the_function_sees_them(tmp_path):
    with pytest.raises(ValueError, match="1 prompts for 6 images"):
        OwnReward("mine", write(tmp_path, "raise SystemExit"))(IMAGES, ["a"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("reward = 3", "has no function 'reward'"),
        ("x = 1", "has no function 'reward'"),
        ("def reward(:", "cannot be run: SyntaxError"),
        ("import no_such_package", "cannot be run: ModuleNotFoundError: No module named 'no_such_package'"),
    ],
)
def test_files_that_cannot_be_used_are_refused_in_words(tmp_path, text, words):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ValueError, match=words):
        load_own_reward(OwnRewardConfig(str(tmp_path / "mine.py")))


def test_a_missing_file_is_refused_with_its_whole_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"no file {tmp_path}/gone.py"):
        load_own_reward(OwnRewardConfig("gone.py"))
