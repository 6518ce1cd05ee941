"""Whole runs that must agree, whatever interrupts them and however they are cut into batches."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from t2mv_core.bundle import load_bundle
from training.config import config_to_dict
from training.metrics import read_metrics
from training.trainer import Trainer

ROOT = Path(__file__).parents[2]
TIMES = ("rollout_seconds", "update_seconds")
# Trains with rewards of plain arithmetic, slowly enough to be killed in the middle.
DRIVER = """
import json, sys, time
from t2mv_core.bundle import load_bundle
from t2mv_core.rewards.base import RewardResult
from training.config import config_from_dict
from training.rollout import Rewards
from training.trainer import Trainer

def redness(images, prompts):
    time.sleep(0.2)
    return RewardResult(images[:, 0].mean(dim=(1, 2)))

def agreement(images, prompts):
    blue = images[:, 2].mean(dim=(1, 2)).reshape(len(prompts), -1)
    return RewardResult(-blue.std(dim=1, correction=0), {"overall": -blue.std(dim=1, correction=0)})

config = config_from_dict(json.loads(sys.argv[2]))
Trainer(config, load_bundle(sys.argv[1]), Rewards(redness, agreement), resume=True).run()
"""


@pytest.fixture
def train(tiny_model_dir, plain_rewards, tiny_config, tmp_path):
    """Runs the tiny configuration into a folder; returns its weights and metrics without times."""
    torch.set_num_threads(1)

    def run(name, resume=False, **sections):
        sections["run"] = {"sheet_prompts": 0, **sections.get("run", {}), "out_dir": str(tmp_path / name)}
        config = tiny_config(**sections)
        Trainer(config, load_bundle(str(tiny_model_dir)), plain_rewards, resume=resume).run()
        return outcome(tmp_path / name)

    return run


def outcome(folder):
    records = [{k: v for k, v in r.items() if k not in TIMES} for r in read_metrics(folder / "metrics.jsonl")]
    return load_file(folder / "last" / "lora.safetensors"), records


def assert_identical(ours, theirs):
    assert ours[1] == theirs[1]
    assert ours[0].keys() == theirs[0].keys()
    assert all(torch.equal(tensor, theirs[0][name]) for name, tensor in ours[0].items())


def test_the_same_seed_gives_the_same_run_and_another_seed_another(train):
    first, again, other = train("a"), train("b"), train("c", run={"seed": 1})
    assert_identical(first, again)
    assert first[1] != other[1]


def test_four_iterations_equal_two_and_a_resumed_two(train):
    whole = train("whole")
    train("parts", run={"epochs": 1})
    assert_identical(train("parts", resume=True), whole)


def test_a_run_killed_in_the_middle_ends_like_the_undisturbed_one(
    train, tiny_model_dir, tiny_config, tmp_path
):
    config = tiny_config(run={"sheet_prompts": 0, "out_dir": str(tmp_path / "killed")})
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tiny_model_dir), json.dumps(config_to_dict(config))],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 300
    while len(read_metrics(tmp_path / "killed" / "metrics.jsonl")) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert_identical(train("killed", resume=True), train("whole"))


def test_batches_of_one_accumulated_four_times_equal_one_batch_of_four(train):
    """The same update from 4 micro-batches of 1 and from 1 of 4; also whatever the batches while sampling."""
    shared = {"prompts_per_update": 4, "lr": 1e-4}
    short = {"epochs": 1}
    single = train("single", optim={**shared, "micro_batch": 1}, sampling={"batch_size": 1}, run=short)
    four = train("four", optim={**shared, "micro_batch": 4}, sampling={"batch_size": 4}, run=short)
    for name, tensor in single[0].items():
        torch.testing.assert_close(tensor, four[0][name], atol=1e-6, rtol=0)


def test_two_processes_train_the_lora_of_one(train, tiny_model_dir, tiny_config, tmp_path):
    """Global advantages, dual steps and updates: 2 processes x 2 prompts are 1 x 4."""
    optim = {"lr": 1e-4, "prompts_per_update": 3}  # 3 of 4: the second update is one process's alone
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    config = tiny_config(run={"sheet_prompts": 0, "out_dir": str(tmp_path / "two")}, optim=optim)
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(tiny_model_dir), json.dumps(config_to_dict(config))],
            cwd=ROOT,
            env={**shared, "WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank, "ACCELERATE_USE_CPU": "true"},
        )
        for rank in ("0", "1")
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    (two, two_records), (one, one_records) = outcome(tmp_path / "two"), train("one", optim=optim)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=0)
    for ours, theirs in zip(two_records, one_records, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-6)
