"""Whole runs that must agree, whatever interrupts them and however they are cut into batches."""

import os
import signal
import socket
import time

import pytest
import torch

from training.mvczigal import EXIT_INTERRUPTED
from training.run.metrics import read_metrics
from training.run.trainer import Trainer


def test_the_same_seed_gives_the_same_run_and_another_seed_another(runs, sections):
    first = runs.undisturbed(**sections)
    runs.assert_identical(runs.train("again", **sections), first)
    other = runs.train("other", run={"seed": 1, "epochs": 1}, **sections)
    assert first["metrics"][:2] != other["metrics"]


def test_four_iterations_equal_two_and_a_resumed_two(runs, sections):
    whole = runs.undisturbed(**sections)
    runs.train("parts", run={"epochs": 1}, **sections)
    runs.assert_identical(runs.train("parts", resume=True, **sections), whole)
    assert len(whole["weights"]["average"]) == (len(whole["weights"]["lora"]) if sections else 0)


@pytest.mark.parametrize("stopped_in", [1, 2])
def test_a_stopped_run_goes_on_where_it_was(runs, sections, stopped_in):
    """Asked to stop in a rollout, which is thrown away, with a save every third iteration."""
    trainer = runs.trainer("stopped", run={"save_every": 3}, **sections)
    collect = trainer._collect

    def stop_and_collect(iteration):
        if iteration == stopped_in:
            trainer.request_stop()
        return collect(iteration)

    trainer._collect = stop_and_collect
    assert not trainer.run()
    assert runs.outcome("stopped")["iteration"] == stopped_in - 1
    resumed = runs.train("stopped", resume=True, run={"save_every": 3}, **sections)
    runs.assert_identical(resumed, runs.undisturbed(**sections))


@pytest.mark.parametrize("sections", ["everything"], indirect=True)
def test_a_run_killed_in_the_middle_ends_like_the_undisturbed_one(runs, sections):
    process = runs.start("killed", {"sleep": 0.2}, **sections)
    metrics = runs.root / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while len(read_metrics(metrics)) < 2 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert 2 <= len(read_metrics(metrics)) < 4
    runs.assert_identical(runs.train("killed", resume=True, **sections), runs.undisturbed(**sections))


def test_batches_of_one_accumulated_four_times_equal_one_batch_of_four(runs):
    """The same update from 4 micro-batches of 1 and from 1 of 4; also whatever the batches while sampling."""
    shared = {"prompts_per_update": 4, "lr": 1e-4}
    short = {"epochs": 1}
    single, four = (
        runs.train(
            f"of{count}",
            optim={**shared, "micro_batch": count},
            sampling={"batch_size": count},
            run=short,
        )
        for count in (1, 4)
    )
    for name, tensor in single["weights"]["lora"].items():
        torch.testing.assert_close(tensor, four["weights"]["lora"][name], atol=1e-6, rtol=0)


def run_two(runs, options, **sections):
    """Run "two" in two processes; return their exit statuses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": "2"}
    processes = [
        runs.start("two", options, {**place, "RANK": rank, "LOCAL_RANK": rank}, **sections)
        for rank in ("0", "1")
    ]
    for process in processes:
        process.communicate(timeout=300)
    return [process.returncode for process in processes]


def test_a_stop_asked_of_one_process_ends_all_while_they_sample(runs):
    """An iteration of SDXL takes minutes, and a launcher kills its processes half a minute after a signal."""
    shared = {"constraint": {"threshold_prompts": 2}, "run": {"iterations_per_epoch": 3, "epochs": 1}}
    assert run_two(runs, {"stops_in": 2}, **shared) == [EXIT_INTERRUPTED] * 2
    assert runs.outcome("two")["iteration"] == 1


def test_two_processes_train_the_lora_of_one(runs, monkeypatch):
    """Global advantages, dual steps and updates: 2 processes x 4 prompts are 1 x 8."""
    shared = {
        # 3 of 8 prompts an update: the last one has 2, and the processes' shares differ
        "optim": {"lr": 1e-4, "prompts_per_update": 3, "ema_decay": 0.9, "kl_weight": 1.0},
        "sampling": {"prompts_per_iteration": 8, "batch_size": 4},
        "constraint": {
            "lambda_init": 0.5,
            "violated_lr": 2.0,
            "satisfied_lr": 0.2,
            "threshold_prompts": 6,
        },
        "evaluation": {"every": 2, "prompts": "dev", "num_prompts": 1},
        "run": {"iterations_per_epoch": 2, "epochs": 1},
    }
    assert run_two(runs, {"keeps_advantages": True}, **shared) == [0, 0]
    advantages, compute = [], Trainer._advantages

    def compute_and_keep(*given):
        advantages.append(compute(*given))
        return advantages[-1]

    monkeypatch.setattr(Trainer, "_advantages", compute_and_keep)
    one, two = runs.train("one", **shared), runs.outcome("two")
    for iteration, expected in enumerate(advantages):
        assert expected.shape == (8, 2, 2)
        for rank in (0, 1):
            found = torch.load(runs.root / "two" / f"advantages_{iteration}_{rank}.pt", weights_only=True)
            # Batches of other sizes round otherwise in float32, and normalisation divides by the rewards'
            # spread, which enlarges that; 1.01e-5 was seen.
            torch.testing.assert_close(found, expected, atol=3e-5, rtol=0)
    assert len(advantages) == 2
    assert one.keys() == two.keys()
    for part in ("lora", "epoch_0001.safetensors", "average"):
        assert one["weights"][part].keys() == two["weights"][part].keys()
        for name, tensor in one["weights"][part].items():
            torch.testing.assert_close(two["weights"][part][name], tensor, atol=1e-5, rtol=0)
    assert one["metrics"][-1]["lambda"] > 0.1
    assert one["metrics"][-1]["lambda"] != pytest.approx(0.5, abs=0.01)  # the dual variable took steps
    assert two["dual"] == pytest.approx(one["dual"], abs=1e-5)
    assert two["prompts"] == one["prompts"]
    for part in ("metrics", "evaluations"):
        for ours, theirs in zip(two[part], one[part], strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5, rel=1e-5)
