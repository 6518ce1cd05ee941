"""What a run was started with: facts, the commit, the list of starts."""

import json
import os
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import torch

import t2mv_core
from training.run import environment
from training.run.environment import (
    PACKAGES,
    describe_commit,
    describe_devices,
    describe_environment,
    package_version,
    write_environment,
)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with one commit of one file."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)  # the tests may run inside a git hook
    folder = tmp_path / "pack"
    folder.mkdir()
    (folder / "tracked.txt").write_text("one")
    who = ("-c", "user.name=Test", "-c", "user.email=test@example.invalid", "-c", "commit.gpgsign=false")
    for words in (("init", "-q"), ("add", "."), (*who, "commit", "-q", "--no-verify", "-m", "First")):
        subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True)
    return folder


def test_the_facts_are_those_of_this_process(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mvczigal.py", "--preset", "demo"])
    facts = describe_environment()
    assert facts["command"] == ["mvczigal.py", "--preset", "demo"]
    assert facts["t2mv"] == t2mv_core.__version__
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(facts["packages"]) == set(PACKAGES)
    assert torch.__version__.startswith(facts["packages"]["torch"])
    started = datetime.fromisoformat(facts["started"])
    assert started.utcoffset() == timedelta(0)
    assert abs(datetime.now(timezone.utc) - started) < timedelta(minutes=1)
    assert json.loads(json.dumps(facts)) == facts


def test_no_environment_variable_is_recorded(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret_of_this_test")
    assert "hf_secret_of_this_test" not in json.dumps(describe_environment())


def test_a_missing_package_has_no_version():
    assert package_version("t2mv-no-such-package") is None


def test_cuda_devices_are_named_with_their_memory(monkeypatch):
    class Properties:
        name = "Card"
        total_memory = 24 * 2**30

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: Properties)
    assert describe_devices() == [{"name": "Card", "memory_gib": 24.0}] * 2


def test_without_a_cuda_device_that_answers_it_is_the_cpu(monkeypatch):
    def no_answer(number):
        raise RuntimeError("CUDA driver initialization failed")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", no_answer)
    (device,) = describe_devices()
    assert device["num_cores"] == os.cpu_count()
    assert device["num_threads"] == torch.get_num_threads()


def git(folder, *words):
    done = subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_commit_is_gits(repository):
    commit = git(repository, "rev-parse", "HEAD")
    assert describe_commit(repository) == commit
    git(repository, "pack-refs", "--all")
    assert describe_commit(repository) == commit
    git(repository, "checkout", "-q", "--detach")
    assert describe_commit(repository) == commit


def test_a_repository_around_the_pack_is_not_the_packs(repository):
    inner = repository / "custom_nodes"
    inner.mkdir()
    assert describe_commit(inner) is None


def test_without_a_repository_the_commit_is_unknown(tmp_path):
    assert describe_commit(tmp_path) is None
    (tmp_path / ".git").write_text("gitdir: elsewhere")
    assert describe_commit(tmp_path) is None


def test_every_start_adds_an_entry(tmp_path, monkeypatch):
    path = tmp_path / "environment.json"
    for number in (1, 2, 3):
        monkeypatch.setattr(sys, "argv", [f"start {number}"])
        write_environment(path)
    starts = json.loads(path.read_text(encoding="utf-8"))
    assert [start["command"] for start in starts] == [["start 1"], ["start 2"], ["start 3"]]
    assert [entry.name for entry in tmp_path.iterdir()] == ["environment.json"]


@pytest.mark.parametrize("content", [b"", b'[{"started": "20', b"3", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_file_is_replaced_with_a_warning(tmp_path, caplog, content):
    path = tmp_path / "environment.json"
    path.write_bytes(content)
    write_environment(path)
    assert len(json.loads(path.read_text(encoding="utf-8"))) == 1
    assert "damaged" in caplog.text


def test_a_program_is_named_without_the_machines_folders(tmp_path):
    assert (
        environment.program_name(str(environment.REPOSITORY / "training" / "compare.py"))
        == "training/compare.py"
    )
    assert environment.program_name(str(tmp_path / "bin" / "pytest")) == "pytest"
    assert not Path(environment.describe_environment()["command"][0]).is_absolute()
