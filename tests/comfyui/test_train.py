"""Training in a real ComfyUI: one queue from prompts to a LoRA to pictures, cancelling, going on, failing."""

from __future__ import annotations

import io
import json
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from conftest import ComfyInstall, ComfyServer, Run

PROMPTS = "# a red mug = 1\n--preset toybox\na blue chair: tall"
SETTINGS = {"name": "ü test", "preset": "demo", "prompts": PROMPTS,
            "iterations": 2, "learning_rate": 3e-3, "rank": 2, "seed": 1, "objective": "preset's",
            "prompts_per_iteration": 1, "resume": True, "download": False}  # fmt: skip
LOAD = {"class_type": "T2MVLoadModel",
        "inputs": {"model": "toybox", "adapter": "the model's own", "precision": "auto"}}  # fmt: skip
ENDLESS = 500


def train(**changes: Any) -> dict[str, Any]:
    """The node with settings of seconds."""
    return {"class_type": "T2MVTrainLoRA", "inputs": SETTINGS | changes}


def drawn(model: list[Any]) -> dict[str, Any]:
    """A sampler node."""
    inputs = {
        "model": model,
        "prompt": "a red mug",
        "seed": 1,
        "steps": 2,
        "guidance": 2.0,
        "view_scale": 1.0,
    }
    return {"class_type": "T2MVSampleStandard", "inputs": inputs}


def sheet(images: list[Any]) -> dict[str, Any]:
    """A contact sheet node."""
    return {"class_type": "T2MVCreateContactSheet", "inputs": {"images": images, "cell_px": 32}}


def run_dir(server: ComfyServer, name: str) -> Path:
    """Where a run of that name lies."""
    return server.base_dir / "output" / "t2mv_runs" / name


def iterations(server: ComfyServer, name: str) -> list[int]:
    """The iterations in a run's record."""
    lines = (run_dir(server, name) / "metrics.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["iteration"] for line in lines]


def shown_picture(server: ComfyServer, run: Run, node: str) -> np.ndarray:
    """The picture a node showed."""
    return np.asarray(Image.open(io.BytesIO(server.picture(run.outputs[node]["images"][0]))))


def trainers(name: str) -> list[int]:
    """Process ids of the trainers of a run; a name in ASCII, as their arguments are."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue
        if b"training.mvczigal" in words and f'/{name}"'.encode() in words:
            found.append(int(path.parent.name))
    return found


def wait_until(is_so: Any, seconds: float) -> bool:
    """Whether something becomes true within a time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if is_so():
            return True
        time.sleep(0.2)
    return False


@pytest.fixture(scope="module")
def trained(toybox: Path, server: ComfyServer) -> Run:
    """One queue: train, load the LoRA that results, draw with and without it."""
    workflow = {
        "1": train(),
        "2": LOAD,
        "3": {
            "class_type": "T2MVLoadLoRA",
            "inputs": {"model": ["2", 0], "lora": ["1", 0], "strength": 10.0},
        },
        "4": drawn(["2", 0]),
        "5": drawn(["3", 0]),
        "6": sheet(["4", 0]),
        "7": sheet(["5", 0]),
        "8": {"class_type": "PreviewImage", "inputs": {"images": ["1", 2]}},
        "9": {"class_type": "PreviewImage", "inputs": {"images": ["1", 3]}},
        "10": {"class_type": "PreviewAny", "inputs": {"source": ["3", 1]}},
    }
    run = server.run(workflow)
    assert run.status == "success", run.error
    return run


def test_a_lora_is_trained_loaded_and_seen_in_one_queue(server: ComfyServer, trained: Run) -> None:
    assert iterations(server, "ü test") == [1, 2]
    assert (server.base_dir / "models/loras/t2mv/ü test.safetensors").is_file()
    assert "step: 2" in trained.outputs["10"]["text"][0]
    assert "not matched: 0 keys" in trained.outputs["10"]["text"][0]
    before, after = (shown_picture(server, trained, node) for node in ("6", "7"))
    assert not np.array_equal(before, after)
    assert "t2mv/ü test.safetensors" in trained.outputs["1"]["text"][0]
    assert "reward for single views" in trained.outputs["1"]["text"][0]


def test_progress_pictures_and_curves_are_shown(server: ComfyServer, trained: Run) -> None:
    values = [(value, total) for node, value, total in trained.progress if node == "1"]
    assert values[-1] == (2, 2)
    assert [value for value, _ in values] == sorted(value for value, _ in values)
    assert trained.previews
    assert shown_picture(server, trained, "8").shape == (600, 1040, 3)  # two by two panels of 520 x 300
    sheet_file = run_dir(server, "ü test") / "samples" / "epoch_0002.png"
    assert np.array_equal(shown_picture(server, trained, "9"), np.asarray(Image.open(sheet_file)))


def test_prompts_that_look_like_options_or_comments_are_only_prompts(
    server: ComfyServer, trained: Run
) -> None:
    lines = (run_dir(server, "ü test") / "prompts.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == PROMPTS.split("\n")
    assert "preset: demo" in (run_dir(server, "ü test") / "config.yaml").read_text("utf-8")


def test_the_same_inputs_do_not_train_again(server: ComfyServer, trained: Run) -> None:
    log = run_dir(server, "ü test") / "trainer.log"
    size = log.stat().st_size
    lora = server.base_dir / "models/loras/t2mv/ü test.safetensors"
    weights = lora.read_bytes()
    assert server.run({"1": train()}).status == "success"
    assert log.stat().st_size == size  # ComfyUI had the result
    lora.unlink()
    assert server.run({"1": train()}).status == "success"  # it was removed: put back, nothing is computed
    assert lora.read_bytes() == weights
    assert iterations(server, "ü test") == [1, 2]


def test_cancel_keeps_the_state_and_the_next_queue_goes_on(server: ComfyServer, toybox: Path) -> None:
    def cancel(num_reports: int) -> None:
        if num_reports == 2:
            server.post("/interrupt", {})

    run = server.run({"1": train(name="cancelled", iterations=ENDLESS)}, on_progress=cancel)
    assert run.status == "interrupted"
    assert trainers("cancelled") == []
    iteration = torch.load(run_dir(server, "cancelled") / "last.pt", weights_only=True)["iteration"]
    assert 1 <= iteration < ENDLESS
    assert not (server.base_dir / "models/loras/t2mv/cancelled.safetensors").exists()

    total = iteration + 1
    again = server.run({"1": train(name="cancelled", iterations=total)})
    assert again.status == "success", again.error
    assert iterations(server, "cancelled") == list(range(1, total + 1))
    log = (run_dir(server, "cancelled") / "trainer.log").read_text("utf-8")
    assert f"at iteration {iteration}." in log  # Resumed ... at iteration


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("name", "../escape", "cannot name a LoRA"),
        ("name", "/etc/x", "cannot name a LoRA"),
        ("name", "a\\\\b", "cannot name a LoRA"),
        ("name", "", "cannot name a LoRA"),
        ("name", "con", "cannot name a LoRA"),
        ("name", "--resume", "cannot name a LoRA"),
        ("preset", "comparison", "is not available here"),
        ("preset", "../../evil.yaml", "is not available here"),
        ("objective", "os.system", "is not available here"),
        ("prompts", "x" * 3000, "3000 characters"),
        ("learning_rate", -1.0, "smaller than min"),
        ("iterations", 10**9, "bigger than max"),
        ("rank", -1, "smaller than min"),
        ("seed", "lucky", "Failed to convert"),
        ("prompts_per_iteration", 10**6, "bigger than max"),
    ],
)
def test_bad_values_are_refused_before_the_run(
    server: ComfyServer, name: str, value: Any, words: str
) -> None:
    assert words in server.refusal({"1": train(**{name: value})})


def test_bad_values_that_comfyui_lets_through_are_refused_when_they_arrive(server: ComfyServer) -> None:
    bad = {"class_type": "PrimitiveString", "inputs": {"value": "../escape"}}
    run = server.run({"1": train(name=["2", 0]), "2": bad})
    assert run.status == "error"
    assert "cannot name a LoRA" in run.error
    run = server.run({"1": train(learning_rate=float("nan"))})  # passes ComfyUI's ranges
    assert run.status == "error"
    assert "learning_rate=nan must be a number from 0 to 1" in run.error


def test_a_lora_of_somebody_else_is_not_overwritten(server: ComfyServer) -> None:
    lora = server.base_dir / "models/loras/t2mv/precious.safetensors"
    lora.parent.mkdir(exist_ok=True)
    lora.write_bytes(b"precious")
    run = server.run({"1": train(name="precious")})
    assert run.status == "error"
    assert "was not written by the run" in run.error
    assert lora.read_bytes() == b"precious"
    assert not run_dir(server, "precious").exists()


CANCEL_A_SLOW_TRAINER = """
import importlib.util, json, pathlib
import comfy.model_management as model_management

spec = importlib.util.spec_from_file_location("pack", sys.argv[1] + "/__init__.py")
sys.modules["pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["pack"])
from pack.nodes.common import progress as shown
from pack.nodes.train import node, process, progress

run_dir = pathlib.Path(sys.argv[2])
TRAINER = '''
import pathlib, sys, time
record = '{"iteration": 1, "rollout_seconds": 1.0, "update_seconds": 5.0}'
pathlib.Path(sys.argv[1], "metrics.jsonl").write_text(record + chr(10))
sys.stdin.read()
time.sleep(3)
print("saved")
'''
process.build_command = lambda *_: [sys.executable, "-c", TRAINER, str(run_dir)]
process.TrainerProcess.stop.__defaults__ = (0.5, *process.TrainerProcess.stop.__defaults__[1:])
progress.MIN_STOP_SECONDS = progress.STOP_MARGIN_SECONDS = 0.5  # in place of half a minute: a short test
texts = []

def show_text_on(node_id, text):
    texts.append(text)
    if "iteration 1" in text:  # the trainer's first record has been seen
        model_management.interrupt_current_processing(True)

shown.show_text_on = show_text_on
facts = {}
try:
    node._train({"preset": "demo", "resume": True}, [], run_dir, 5, "1")
except model_management.InterruptProcessingException:
    facts["interrupted"] = True
print(json.dumps(facts | {"log": (run_dir / "trainer.log").read_text(), "texts": texts}))
"""


def test_a_cancel_waits_as_long_as_the_last_iteration_took(
    comfy_install: ComfyInstall, tmp_path: Path
) -> None:
    pack_dir = str(Path(__file__).parents[2])
    facts = json.loads(
        comfy_install.run_code(CANCEL_A_SLOW_TRAINER, pack_dir, str(tmp_path)).splitlines()[-1]
    )
    assert facts["interrupted"]
    assert facts["log"] == "saved\n"
    stopping = [text for text in facts["texts"] if text.startswith("stopping: up to ")]
    assert "up to 6 s until the update ends" in stopping[0]  # 1 + 5 and half a second
    assert len(stopping) > 1


@pytest.mark.slow
def test_a_trainer_that_fails_gives_its_last_words(server: ComfyServer, trained: Run) -> None:
    other_seed = server.run({"1": train(seed=2)})
    assert other_seed.status == "error"
    assert "was started with run.seed=1, now it is 2" in other_seed.error
    assert "another name of the LoRA" in other_seed.error
    fresh_only = server.run({"1": train(resume=False)})
    assert fresh_only.status == "error"
    assert "holds a run at iteration 2" in fresh_only.error


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the trainer in /proc")
def test_a_trainer_that_is_killed_leaves_comfyui_alive(server: ComfyServer, toybox: Path) -> None:
    def kill(num_reports: int) -> None:
        if num_reports < 3:  # the first comes before the trainer has started, the second before it logs
            return
        for process_id in trainers("crashed"):
            os.kill(process_id, signal.SIGKILL)

    run = server.run({"1": train(name="crashed", iterations=ENDLESS)}, on_progress=kill)
    assert run.status == "error"
    assert "The trainer was killed by signal 9" in run.error
    assert "iteration 1/500" in run.error  # the end of its log
    assert json.loads(server.get("/system_stats"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the trainer in /proc")
def test_killing_comfyui_ends_the_trainer_with_its_state_saved(
    toybox: Path, start_server: Callable[..., AbstractContextManager[ComfyServer]], tmp_path: Path
) -> None:
    (tmp_path / "custom_nodes").mkdir()
    (tmp_path / "custom_nodes" / "ComfyUI-T2MV").symlink_to(Path(__file__).parents[2])
    with start_server(tmp_path) as comfy:
        status, _ = comfy.post("/prompt", {"prompt": {"1": train(name="orphan", iterations=ENDLESS)}})
        assert status == 200
        assert wait_until(lambda: (run_dir(comfy, "orphan") / "last.pt").is_file(), 120)
        assert trainers("orphan")
        os.kill(comfy.process_id, signal.SIGKILL)
        assert wait_until(lambda: not trainers("orphan"), 30)
    log = (run_dir(comfy, "orphan") / "trainer.log").read_text("utf-8")
    assert "was stopped and saved" in log
