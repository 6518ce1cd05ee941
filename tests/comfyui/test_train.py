"""Training in a real ComfyUI: one queue from prompts to a LoRA to pictures, cancelling, going on, failing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from tests.comfyui.workflows import TOYBOX

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from conftest import ComfyInstall, ComfyServer, Run

PROMPTS = "# a red mug = 1\n--preset toybox\na blue chair: (tall:1.2)"
SETTINGS = {"name": "ü test", "preset": "demo", "prompts": PROMPTS,
            "iterations": 2, "learning_rate": 3e-3, "rank": 2, "seed": 1, "objective": "preset's",
            "prompts_per_iteration": 1, "resume": True, "download": False}  # fmt: skip
ENDLESS = 500


def train(**changes: Any) -> dict[str, Any]:
    """The node with settings of seconds."""
    return {"class_type": "T2MVTrainLoRA", "inputs": SETTINGS | changes}


def drawn(model: list[Any], seed: int = 1) -> dict[str, Any]:
    """A sampler node."""
    inputs = {
        "model": model,
        "prompt": "a red mug",
        "seed": seed,
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
    return np.asarray(server.pictures(run, node)[0])


def wait_until(is_so: Any, seconds: float) -> bool:
    """Whether something becomes true within a time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if is_so():
            return True
        time.sleep(0.2)
    return False


@pytest.fixture(scope="module")
def trained(server: ComfyServer) -> Run:
    """One queue: train, load the LoRA that results, draw with and without it."""
    workflow = {
        "1": train(),
        "2": TOYBOX,
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
    run = server.succeed(workflow)
    return run


def test_a_lora_is_trained_loaded_and_seen_in_one_queue(server: ComfyServer, trained: Run) -> None:
    assert iterations(server, "ü test") == [1, 2]
    assert (server.base_dir / "models/loras/t2mv/ü test.safetensors").is_file()
    assert "step: 2" in trained.outputs["10"]["text"][0]
    assert "modules act, 0 are left out" in trained.outputs["10"]["text"][0]
    before, after = (shown_picture(server, trained, node) for node in ("6", "7"))
    assert not np.array_equal(before, after)
    assert "t2mv/ü test.safetensors" in trained.outputs["1"]["text"][0]
    assert "reward for single views" in trained.outputs["1"]["text"][0]


def test_progress_pictures_and_curves_are_shown(server: ComfyServer, trained: Run) -> None:
    values = [(value, total) for node, value, total in trained.progress if node == "1"]
    assert values[-1] == (2, 2)
    assert [value for value, _ in values] == sorted(value for value, _ in values)
    assert trained.previews
    assert shown_picture(server, trained, "8").shape == (900, 1040, 3)  # five panels, two in a row
    sheet_file = run_dir(server, "ü test") / "samples" / "epoch_0002.png"
    assert np.array_equal(shown_picture(server, trained, "9"), np.asarray(Image.open(sheet_file)))


def test_prompts_that_look_like_options_or_comments_are_only_prompts(
    server: ComfyServer, trained: Run
) -> None:
    (path,) = run_dir(server, "ü test").glob("prompts-*.jsonl")
    lines = path.read_text("utf-8").splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == PROMPTS.split("\n")
    assert "preset: demo" in (run_dir(server, "ü test") / "config.yaml").read_text("utf-8")
    assert "“(tall:1.2)” (in 1 of 3 prompts)" in trained.outputs["1"]["text"][0]


def test_the_same_inputs_do_not_train_again(server: ComfyServer, trained: Run) -> None:
    starts = run_dir(server, "ü test") / "environment.json"
    before = starts.read_bytes()
    lora = server.base_dir / "models/loras/t2mv/ü test.safetensors"
    weights = lora.read_bytes()
    assert server.run({"1": train()}).status == "success"
    assert starts.read_bytes() == before  # ComfyUI had the result
    lora.unlink()
    assert server.run({"1": train()}).status == "success"  # it was removed: put back, nothing is computed
    assert lora.read_bytes() == weights
    assert iterations(server, "ü test") == [1, 2]


def test_a_run_that_is_deleted_with_its_lora_is_trained_anew(server: ComfyServer) -> None:
    workflow = {"1": train(name="deleted", iterations=1, objective="zigal_view")}
    assert server.run(workflow).status == "success"
    lora = server.base_dir / "models/loras/t2mv/deleted.safetensors"
    shutil.rmtree(run_dir(server, "deleted"))
    lora.unlink()
    assert server.run(workflow).status == "success"  # ComfyUI has a result that it must not give
    assert lora.is_file()
    assert iterations(server, "deleted") == [1]


@pytest.mark.parametrize("connected", [{}, {"model": ["2", 0]}], ids=["the preset's", "connected"])
def test_missing_weights_are_named_before_a_model_is_loaded(
    server: ComfyServer, connected: dict[str, Any]
) -> None:
    node = train(name="without files", preset="lcm-sdxl-24gb")  # small files stand in for its model's
    node["inputs"] |= connected
    run = server.run({"1": node, "2": TOYBOX})
    assert run.status == "error"
    assert "weights of the reward pickscore are not on this machine" in run.error
    assert not run_dir(server, "without files").exists()


def test_the_command_line_trains_the_same_lora(
    comfy_install: ComfyInstall, server: ComfyServer, trained: Run, tmp_path: Path
) -> None:
    folder = run_dir(server, "ü test")
    words = ["-m", "training.mvczigal", "--preset", str(folder / "config.yaml"), f"run.out_dir={tmp_path}"]
    subprocess.run([str(comfy_install.python), *words], cwd=Path(__file__).parents[2], check=True)
    ours, theirs = (load_file(place / "lora" / "epoch_0002.safetensors") for place in (folder, tmp_path))
    assert ours.keys() == theirs.keys()
    largest = max(float(x.abs().max()) for x in theirs.values())
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-4 * largest


def test_it_trains_on_what_is_connected_and_leaves_it_as_it_was(server: ComfyServer, trained: Run) -> None:
    """The LoRA of `trained` below, one reward alone; the same sampler node draws the same picture after."""
    reward = {"class_type": "T2MVLoadReward", "inputs": {"reward": "toybox_clip", "download": False}}
    lora = {
        "class_type": "T2MVLoadLoRA",
        "inputs": {"model": ["2", 0], "lora": "t2mv/ü test.safetensors", "strength": 0.5},
    }
    connected = train(name="connected", objective="zigal_view", iterations=1)
    connected["inputs"] |= {"model": ["3", 0], "rewards": ["4", 0]}
    common = {"2": TOYBOX, "3": lora}
    before = server.run({**common, "5": drawn(["3", 0]), "6": sheet(["5", 0])})
    server.succeed({**common, "1": connected, "4": reward})
    # Another seed makes ComfyUI sample once more, the first one again a third time.
    assert server.run({**common, "5": drawn(["3", 0], seed=2), "6": sheet(["5", 0])}).status == "success"
    after = server.run({**common, "5": drawn(["3", 0]), "6": sheet(["5", 0])})
    assert np.array_equal(shown_picture(server, before, "6"), shown_picture(server, after, "6"))
    config = yaml.safe_load((run_dir(server, "connected") / "config.yaml").read_text("utf-8"))
    assert config["reward"]["view"] == {"toybox_clip": 1.0}
    assert config["reward"]["joint"] == {}
    (base,) = config["model"]["base_loras"]
    assert (Path(base["path"]).name, base["strength"]) == ("ü test.safetensors", 0.5)
    assert "hyperscore" not in (run_dir(server, "connected") / "metrics.jsonl").read_text("utf-8")


def test_cancel_keeps_the_state_and_the_next_queue_goes_on(server: ComfyServer) -> None:
    asked = []

    def cancel(num_reports: int) -> None:
        if num_reports == 2:
            server.post("/interrupt", {})
            asked.append(time.monotonic())

    run = server.run({"1": train(name="cancelled", iterations=ENDLESS)}, on_progress=cancel)
    assert run.status == "interrupted"
    assert time.monotonic() - asked[0] < 20  # a UNet evaluation of the toybox, on a busy machine
    iteration = torch.load(run_dir(server, "cancelled") / "last.pt", weights_only=True)["iteration"]
    assert 1 <= iteration < ENDLESS
    assert not (server.base_dir / "models/loras/t2mv/cancelled.safetensors").exists()

    total = iteration + 1
    server.succeed({"1": train(name="cancelled", iterations=total)})
    assert iterations(server, "cancelled") == list(range(1, total + 1))
    assert f"at iteration {iteration}." in server.log.read_text("utf-8")  # Resumed ... at iteration


def test_a_name_that_is_no_file_name_is_refused_alone(server: ComfyServer) -> None:
    refused = server.refusal({"1": train(name="../escape")})
    assert "cannot name a LoRA" in refused
    assert len(json.loads(refused)["1"]["errors"]) == 1


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("preset", "comparison", "is not available here"),
        ("preset", "../../evil.yaml", "is not available here"),
        ("prompts", "x" * 3000, "3000 characters"),
        ("learning_rate", -1.0, "smaller than min"),
        ("seed", "lucky", "Failed to convert"),
    ],
)
def test_bad_values_are_refused_before_a_model_is_loaded(
    server: ComfyServer, name: str, value: Any, words: str
) -> None:
    """By ComfyUI where it checks such inputs (0.3.64 checks no choices), else when the node is asked."""
    node = train(name="never", **{name: value})
    node["inputs"]["model"] = ["2", 0]
    status, answer = server.post("/prompt", {"prompt": {"1": node, "2": TOYBOX}})
    if status == 400:
        (error,) = answer["node_errors"]["1"]["errors"]
        assert words in error["message"] or error["type"] == "value_not_in_list"
        assert name in error["details"]
        return
    run = server.run({"1": node, "2": TOYBOX})
    assert run.status == "error"
    assert words in run.error
    assert not run_dir(server, "never").exists()


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


def test_a_run_that_cannot_go_on_says_why(server: ComfyServer, trained: Run) -> None:
    other_seed = server.run({"1": train(seed=2)})
    assert other_seed.status == "error"
    assert "was started with run.seed=1, now it is 2" in other_seed.error
    finished = server.succeed({"1": train(learning_rate=1e-3)})
    assert "Nothing was trained, as this run was finished" in finished.outputs["1"]["text"][0]
    fresh_only = server.run({"1": train(resume=False)})
    assert fresh_only.status == "error"
    assert "holds a run; continue it with resume" in fresh_only.error
    config = (run_dir(server, "ü test") / "config.yaml").read_text("utf-8")
    assert yaml.safe_load(config)["optim"]["lr"] == SETTINGS["learning_rate"]
    prompts = Path(yaml.safe_load(config)["sampling"]["prompts"])
    before = prompts.read_bytes()
    other_prompts = server.run({"1": train(prompts="a green boat")})
    assert other_prompts.status == "error"
    assert "was trained on other prompts" in other_prompts.error
    assert (run_dir(server, "ü test") / "config.yaml").read_text("utf-8") == config
    assert prompts.read_bytes() == before
    assert server.run({"2": TOYBOX, "4": drawn(["2", 0], seed=3), "6": sheet(["4", 0])}).status == "success"


@pytest.mark.slow
def test_a_killed_comfyui_goes_on_where_it_was(
    start_server: Callable[..., AbstractContextManager[ComfyServer]], tmp_path: Path
) -> None:
    (tmp_path / "custom_nodes").mkdir()
    (tmp_path / "custom_nodes" / "ComfyUI-T2MV").symlink_to(Path(__file__).parents[2])
    with start_server(tmp_path) as comfy:
        status, _ = comfy.post("/prompt", {"prompt": {"1": train(name="killed", iterations=ENDLESS)}})
        assert status == 200
        assert wait_until(
            lambda: (run_dir(comfy, "killed") / "metrics.jsonl").is_file() and iterations(comfy, "killed"),
            120,
        )
        os.kill(comfy.process_id, signal.SIGKILL)
    with start_server(tmp_path) as comfy:
        total = torch.load(run_dir(comfy, "killed") / "last.pt", weights_only=True)["iteration"] + 1
        comfy.succeed({"1": train(name="killed", iterations=total)})
        assert iterations(comfy, "killed") == list(range(1, total + 1))


ONE_CORE = """
from pack.nodes.common.memory import Residency, load_together, unload_everything

class Spy(torch.nn.Linear):
    seen = []

    def _apply(self, *args, **named):
        Spy.seen.append(torch.is_inference_mode_enabled())
        return super()._apply(*args, **named)

with torch.inference_mode():
    residency = Residency(None, {"unet": Spy(2, 2)})
    Spy.seen.clear()
    load_together([residency])
    residency.load("unet")
    unload_everything()
facts = {"moves in inference mode": Spy.seen.count(True), "moves": len(Spy.seen) > 0}
from pack.nodes.train.session import share_core
facts["leaked before"] = "t2mv_core" in sys.modules
share_core()
from pack.training.algorithm import rollout
from pack.t2mv_core.trajectory import Trajectory
facts["one core"] = rollout.Trajectory is Trajectory
facts["copies"] = [
    name for name, module in sys.modules.items()
    if name.partition(".")[0] == "t2mv_core" and sys.modules["pack." + name] is not module
]
print(json.dumps(facts))
"""


def test_training_shares_the_core_and_weights_that_it_can_use(comfy_install: ComfyInstall) -> None:
    facts = comfy_install.run_with_pack(ONE_CORE)
    assert facts == {
        "moves in inference mode": 0, "moves": True, "leaked before": False, "one core": True, "copies": []
    }  # fmt: skip
