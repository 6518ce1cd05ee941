"""A real ComfyUI for the tests: found on this machine, started on a free port, writing to a temporary folder.

COMFYUI_DIR names its folder (default ~/comfy/ComfyUI), COMFYUI_PYTHON the Python that has its requirements
(default: a `.venv` or `venv` in or beside that folder, else this Python). Without it the tests skip in words.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import io
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from PIL import Image
    from playwright.sync_api import Browser

    from tests.comfyui.small_sdxl import Reference

PACK_DIR = Path(__file__).parents[2]
PACK_NAME = "ComfyUI-T2MV"
LOAD_PACK = """
import importlib.util, json, torch
spec = importlib.util.spec_from_file_location("pack", sys.argv[1] + "/__init__.py")
sys.modules["pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["pack"])
"""
"""The pack as the module `pack`, loaded by path as ComfyUI does, before any of its nodes."""
LATER_CORE = Path(__file__).parent / "later_core"
START_TIMEOUT_S = 600
RUN_TIMEOUT_S = 600
TEXT_EVENT = 3  # ComfyUI's binary message of a text on a node
PREVIEW_EVENTS = (1, 4)  # ComfyUI's binary messages: a preview picture, without and with metadata


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs ComfyUI."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.comfy)


@dataclass(frozen=True)
class ComfyInstall:
    """Where ComfyUI is and which Python runs it."""

    folder: Path
    python: Path

    def run_code(self, code: str, *args: str, before: str = "", dynamic_vram: bool = False) -> str:
        """Run code in a process like ComfyUI's, before any node is loaded; give what it prints.

        Args:
            code: what to run.
            args: in its `sys.argv`.
            before: code that runs before ComfyUI is imported.
            dynamic_vram: whether ComfyUI loads models dynamically, on a card that is imitated.
        """
        prelude = (
            "import sys; sys.path.insert(0, sys.argv.pop(1))\n"
            f"from comfy.cli_args import args; args.cpu = True\n{before}\n"
        )
        if dynamic_vram:
            prelude += (
                f"sys.path.append({str(Path(__file__).parent)!r})\n"
                "import imitated_card.dynamic_vram; imitated_card.dynamic_vram.enable()\n"
            )
        done = subprocess.run(
            [str(self.python), "-c", prelude + code, str(self.folder), *args],
            capture_output=True,
            text=True,
            timeout=RUN_TIMEOUT_S,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    def run_with_pack(self, code: str, *args: str, dynamic_vram: bool = False) -> Any:
        """Run code behind LOAD_PACK; give the JSON that it prints last. `args` begin at `sys.argv[2]`."""
        printed = self.run_code(LOAD_PACK + code, str(PACK_DIR), *args, dynamic_vram=dynamic_vram)
        return json.loads(printed.splitlines()[-1])


class _WebSocket:
    """The receiving half of RFC 6455 that the tests need, on a plain socket."""

    def __init__(self, port: int, path: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=RUN_TIMEOUT_S)
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self._stream = self._socket.makefile("rb")
        assert b"101" in self._stream.readline()
        while self._stream.readline().strip():
            pass

    def receive(self) -> str | bytes:
        """The next text or binary message."""
        while True:
            first, second = self._stream.read(2)
            assert first & 0x80, "ComfyUI sends every message in one frame"
            size = second & 0x7F
            if size >= 126:
                size = int.from_bytes(self._stream.read(2 if size == 126 else 8), "big")
            body = self._stream.read(size)
            if first & 0x0F in (1, 2):
                return body.decode() if first & 0x0F == 1 else body

    def close(self) -> None:
        """Drop the connection."""
        self._stream.close()
        self._socket.close()


@dataclass
class Run:
    """What came back while a workflow ran.

    Attributes:
        status: "success", "interrupted" or "error".
        progress: (node id, value, max) of every progress message.
        previews: pictures (JPEG or PNG bytes) shown during the run.
        texts: node id -> the texts that it showed during the run.
        outputs: node id -> what the node showed (ComfyUI's "ui" output).
        error: ComfyUI's error message, if any.
        executing: ids of the nodes that ComfyUI ran, in order.
        cached: ids of the nodes whose results it had kept.
    """

    status: str = ""
    progress: list[tuple[str, int, int]] = field(default_factory=list)
    previews: list[bytes] = field(default_factory=list)
    texts: dict[str, list[str]] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    executing: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)


class ComfyServer:
    """A running ComfyUI, spoken to over HTTP and WebSocket."""

    def __init__(self, port: int, base_dir: Path, log: Path, process_id: int) -> None:
        self.port, self.base_dir, self.log, self.process_id = port, base_dir, log, process_id
        self.url = f"http://127.0.0.1:{port}"

    def get(self, path: str) -> bytes:
        """Body of a GET request."""
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return answer.read()

    def post(self, path: str, data: Any) -> tuple[int, Any]:
        """Status and JSON body of a POST request."""
        request = urllib.request.Request(
            self.url + path, json.dumps(data).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, body = answer.status, answer.read()
        except urllib.error.HTTPError as refused:
            status, body = refused.code, refused.read()
        return status, json.loads(body) if body else None

    def skip_unless_known(self, workflow: dict[str, Any]) -> None:
        """Skip in words where this ComfyUI's core is too old for a workflow's 3D nodes."""
        known = json.loads(self.get("/object_info"))
        missing = sorted({node["class_type"] for node in workflow.values()} - set(known))
        if any("Trellis2" in kind for kind in missing):
            pytest.skip(f"This ComfyUI's core does not have {', '.join(missing)}.")

    def refusal(self, workflow: dict[str, Any]) -> str:
        """Queue a workflow that validation must refuse; give ComfyUI's answer as text."""
        status, answer = self.post("/prompt", {"prompt": workflow})
        assert status == 400, f"accepted: {answer}"
        return json.dumps(answer["node_errors"], ensure_ascii=False)

    def refusal_or_error(self, workflow: dict[str, Any]) -> str:
        """Queue a workflow that must fail, before the run or in it; give ComfyUI's answer as text.

        In a run nothing may have been sampled. ComfyUI 0.33 checks more before it than 0.3.64.
        """
        status, answer = self.post("/prompt", {"prompt": workflow})
        if status == 400:
            return json.dumps(answer["node_errors"], ensure_ascii=False)
        run = self.run(workflow)
        assert run.status == "error"
        assert not run.progress
        return run.error

    def run(self, workflow: dict[str, Any], on_progress: Callable[[int], None] | None = None) -> Run:
        """Queue a workflow and follow it to its end.

        Args:
            workflow: in API format.
            on_progress: called after every progress message with the number of those so far.
        """
        client_id = uuid.uuid4().hex
        connection = _WebSocket(self.port, f"/ws?clientId={client_id}")
        try:
            status, answer = self.post("/prompt", {"prompt": workflow, "client_id": client_id})
            assert status == 200, answer
            run = Run()
            while not run.status:
                self._take(connection.receive(), run, answer["prompt_id"], on_progress)
            return run
        finally:
            connection.close()

    def succeed(self, workflow: dict[str, Any]) -> Run:
        """Run a workflow that must not fail."""
        run = self.run(workflow)
        assert run.status == "success", run.error
        return run

    def _take(
        self, message: str | bytes, run: Run, prompt_id: str, on_progress: Callable[[int], None] | None
    ) -> None:
        if isinstance(message, bytes):
            event, size = struct.unpack(">II", message[:8])
            if event in PREVIEW_EVENTS:
                run.previews.append(message[8:])
            elif event == TEXT_EVENT:
                run.texts.setdefault(message[8 : 8 + size].decode(), []).append(message[8 + size :].decode())
            return
        kind, data = (parsed := json.loads(message))["type"], parsed["data"]
        if data.get("prompt_id") != prompt_id:
            return
        if kind == "progress":
            run.progress.append((data["node"], data["value"], data["max"]))
            if on_progress:
                on_progress(len(run.progress))
        elif kind == "executing" and data["node"] is not None:
            run.executing.append(data["node"])
        elif kind == "execution_cached":
            run.cached += data["nodes"]
        elif kind == "executed":
            run.outputs[data["node"]] = data["output"]
        elif kind.startswith("execution_") and kind.split("_")[1] in ("success", "interrupted", "error"):
            run.status = kind.split("_")[1]
            run.error = data.get("exception_message", "")

    def picture(self, shown: dict[str, str]) -> bytes:
        """The file of a picture that a node showed."""
        query = f"filename={shown['filename']}&subfolder={shown['subfolder']}&type={shown['type']}"
        return self.get(f"/view?{query}")

    def pictures(self, run: Run, node: str) -> list[Image.Image]:
        """The pictures that a node showed in a run."""
        from PIL import Image

        return [Image.open(io.BytesIO(self.picture(shown))) for shown in run.outputs[node]["images"]]

    def resident_mib(self) -> float:
        """Memory of the server's process that is in RAM, MiB."""
        statm = Path(f"/proc/{self.process_id}/statm")
        if not statm.is_file():
            pytest.skip("Memory is read from /proc, which this system does not have.")
        return int(statm.read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def forget(self) -> None:
        """Drop ComfyUI's cached outputs and loaded models before the next run."""
        self.post("/free", {"unload_models": True, "free_memory": True})


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def find_install() -> ComfyInstall:
    """ComfyUI's folder and Python, or a skip that says what to install."""
    folder = Path(os.environ.get("COMFYUI_DIR") or Path.home() / "comfy" / "ComfyUI")
    if not (folder / "main.py").is_file():
        pytest.skip(f"ComfyUI is not at {folder}; install it there or set COMFYUI_DIR to its folder.")
    named = os.environ.get("COMFYUI_PYTHON")
    venvs = [parent / name for parent in (folder, folder.parent) for name in (".venv", "venv")]
    pythons = [Path(named)] if named else [venv / "bin" / "python" for venv in venvs] + [Path(sys.executable)]
    python = next((python for python in pythons if python.is_file()), Path(sys.executable))
    probe = subprocess.run([str(python), "-c", "import aiohttp, torch, av"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip(
            f"{python} lacks ComfyUI's requirements; install them or set COMFYUI_PYTHON to one that has them."
        )
    return ComfyInstall(folder, python)


@pytest.fixture(scope="session")
def comfy_install() -> ComfyInstall:
    """See `find_install`."""
    return find_install()


@pytest.fixture(scope="session", params=[False, True], ids=["static", "dynamic"])
def dynamic_vram(request: pytest.FixtureRequest, comfy_install: ComfyInstall) -> bool:
    """Whether ComfyUI's dynamic VRAM is on, on a card that is imitated.

    `imitated_card/dynamic_vram.py` says where the imitation ends.
    """
    patchers = (comfy_install.folder / "comfy" / "model_patcher.py").read_text("utf-8")
    if request.param and "class ModelPatcherDynamic" not in patchers:
        pytest.skip("This ComfyUI is older than dynamic VRAM (0.16).")
    return bool(request.param)


@pytest.fixture(scope="session")
def native_facts(
    comfy_install: ComfyInstall, dynamic_vram: bool, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., dict[str, Any]]:
    """Runs code in a process like ComfyUI's, behind `native_pair`; gives what it put into `facts`.

    The code has `folder` (an empty one) and `more` (arguments); `before` runs before ComfyUI is imported.
    """

    def run(code: str, *more: str, before: str = "") -> dict[str, Any]:
        prelude = (
            "import json, torch\nfrom pathlib import Path\nsys.path.append(sys.argv[1])\n"
            "folder, more, facts = Path(sys.argv[2]), sys.argv[3:], {}\nfrom native_pair import *\n"
        )
        folder = tmp_path_factory.mktemp("native")
        code = f"{prelude}{code}\nprint(json.dumps(facts))"
        printed = comfy_install.run_code(
            code, str(Path(__file__).parent), str(folder), *more, before=before, dynamic_vram=dynamic_vram
        )
        return json.loads(printed.splitlines()[-1])

    return run


def _write_tiny_model(folder: Path) -> None:
    """A random few-step model of the production architecture, in diffusers' layout with its MV-Adapter."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from t2mv_core.unet.adapter import create_camera_encoder, save_adapter
    from t2mv_core.unet.attention import install_multiview_attention

    torch.manual_seed(0)
    text_config = CLIPTextConfig(
        vocab_size=1024, hidden_size=32, intermediate_size=64, projection_dim=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=16, bos_token_id=1022, eos_token_id=1023,
        pad_token_id=0,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=64,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4), use_linear_projection=True, norm_num_groups=8, time_cond_proj_dim=32,
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=80,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 16, 16), down_block_types=("DownEncoderBlock2D",) * 3, latent_channels=4,
        up_block_types=("UpDecoderBlock2D",) * 3, norm_num_groups=4, sample_size=32,
    )  # fmt: skip
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    CLIPTextModel(text_config).save_pretrained(folder / "text_encoder")
    CLIPTextModelWithProjection(text_config).save_pretrained(folder / "text_encoder_2")
    install_multiview_attention(unet)
    encoder = create_camera_encoder(unet, vae_scale_factor=4)
    save_adapter(unet, encoder, folder / "mvadapter.safetensors")
    of_pictures = UNet2DConditionModel.from_config(unet.config)
    install_multiview_attention(of_pictures, has_reference=True)
    save_adapter(of_pictures, encoder, folder.parents[1] / "mvadapter" / "tiny_i2mv.safetensors")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "LCMScheduler"}')
    (folder / "model_index.json").write_text("{}")


def _write_tiny_lora(path: Path, model: Path) -> None:
    """A LoRA with random weights for the tiny model, strong enough to be seen."""
    import torch

    from t2mv_core.loading import load_bundle
    from t2mv_core.lora.adapters import add_lora, trainable_parameters
    from t2mv_core.lora.files import save_lora

    unet = load_bundle(str(model)).unet
    add_lora(unet, rank=2, alpha=2, name="tiny")
    with torch.no_grad():
        for parameter in trainable_parameters(unet, "tiny"):
            parameter.normal_(std=0.5)
    save_lora(unet, path, {"base_model": "tiny", "step": 7}, name="tiny")


def _write_tiny_files(models: Path) -> None:
    """A random small SDXL in files, under the names of the published ones; LoRAs of others; foreign files."""
    from dataclasses import replace

    import torch
    from safetensors.torch import save_file

    from benchmarks.sdxl_files import TINY, create_modules, original_checkpoint
    from t2mv_core.unet.adapter import create_camera_encoder, save_adapter
    from t2mv_core.unet.attention import install_multiview_attention

    def save(name: str, tensors: dict[str, torch.Tensor]) -> None:
        (models / name).parent.mkdir(exist_ok=True)
        save_file({key: x.contiguous() for key, x in tensors.items()}, models / name)

    torch.manual_seed(0)
    modules = create_modules(TINY)
    states = {part: dict(module.state_dict()) for part, module in modules.items()}
    checkpoint = original_checkpoint(states, TINY)
    save("checkpoints/sd_xl_base_1.0.safetensors", checkpoint)
    unet = create_modules(replace(TINY, guidance=64))["unet"]
    save("diffusion_models/lcm-sdxl.safetensors", dict(unet.state_dict()))
    save("vae/sdxl-vae-fp16-fix.safetensors", dict(modules["vae"].state_dict()))
    install_multiview_attention(unet)
    adapter = models / "mvadapter" / "mvadapter_t2mv_sdxl.safetensors"
    save_adapter(unet, create_camera_encoder(unet, vae_scale_factor=2), adapter)
    layer = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    text = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
    save("loras/kohya.safetensors", {
        f"{layer}.lora_down.weight": torch.randn(2, 64), f"{layer}.lora_up.weight": torch.randn(64, 2),
        f"{layer}.alpha": torch.tensor(1.0), f"{text}.lora_down.weight": torch.randn(2, 64),
    })  # fmt: skip


@pytest.fixture(scope="session")
def comfy_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ComfyUI's base folder for the tests: the pack in custom_nodes, a tiny model and a tiny LoRA."""
    base = tmp_path_factory.mktemp("comfy base ü")  # spaces and non-ASCII characters on purpose
    for name in (
        "custom_nodes",
        "user/default",
        "input",
        "models/loras",
        "models/diffusers",
        "models/mvadapter",
    ):
        (base / name).mkdir(parents=True)
    _write_tiny_model(base / "models" / "diffusers" / "tiny")
    _write_tiny_lora(base / "models" / "loras" / "tiny.safetensors", base / "models" / "diffusers" / "tiny")
    _write_tiny_files(base / "models")
    (base / "models" / "loras" / "damaged.safetensors").write_bytes(b"not a safetensors file")
    (base / "custom_nodes" / PACK_NAME).symlink_to(PACK_DIR, target_is_directory=True)
    shutil.copytree(LATER_CORE, base / "custom_nodes" / LATER_CORE.name)
    return base


@pytest.fixture(scope="session")
def server(comfy_install: ComfyInstall, comfy_base: Path) -> Iterator[ComfyServer]:
    """A running ComfyUI with the pack; stopped at the end."""
    with run_server(comfy_install, comfy_base) as running:
        yield running


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Headless Chromium, or a skip that says what to install."""
    pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed; pip install playwright to drive a browser"
    )
    from tests.comfyui.comfy_page import find_browser, open_browser

    if find_browser() is None:
        pytest.skip("no Chromium on this machine; apt-get install chromium to try the pack in a browser")
    with open_browser() as running:
        yield running


@pytest.fixture(scope="session")
def page_server(
    comfy_install: ComfyInstall,
    browser: Browser,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ComfyServer]:
    """A running ComfyUI for the browser, with an empty file for every model that an example names.

    Without them, ComfyUI's page scans for missing models after it opened a workflow, covers the canvas with
    a dialogue (1.27) or marks nodes as broken (1.49), and tells nobody when it has done so.
    """
    from tests.comfyui.comfy_page import WORKFLOWS, named_models, write_base

    files = {
        f"{model['directory']}/{name}"
        for path in WORKFLOWS.glob("*.json")
        for name, model in named_models(json.loads(path.read_text("utf-8"))).items()
    }
    with run_server(
        comfy_install, write_base(tmp_path_factory.mktemp("page"), PACK_NAME, {}, files)
    ) as running:
        yield running


@pytest.fixture(scope="session")
def small_sdxl(
    comfy_install: ComfyInstall, dynamic_vram: bool, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ComfyServer, Reference]]:
    """A running ComfyUI with a small random SDXL, and our diffusers path over the same weights."""
    from tests.comfyui.small_sdxl import CARD, write_base

    base = tmp_path_factory.mktemp("small sdxl") / "base"
    reference = write_base(base)
    if dynamic_vram:
        shutil.copytree(CARD, base / "custom_nodes" / CARD.name)
    with run_server(comfy_install, base, environment={"T2MV_DYNAMIC_VRAM": "1"}) as running:
        yield running, reference


@pytest.fixture(scope="session")
def start_server(
    comfy_install: ComfyInstall,
) -> Callable[..., contextlib.AbstractContextManager[ComfyServer]]:
    """Starts another ComfyUI on a base folder, see `run_server`; a context that gives the server."""
    return functools.partial(run_server, comfy_install)


@contextlib.contextmanager
def run_server(
    comfy_install: ComfyInstall,
    comfy_base: Path,
    before_start: Callable[[], None] | None = None,
    environment: dict[str, str] | None = None,
    options: tuple[str, ...] = ("--cpu",),
) -> Iterator[ComfyServer]:
    """Run a ComfyUI on a base folder.

    Args:
        comfy_install: which.
        comfy_base: its base folder.
        before_start: called in the new process, before its program.
        environment: variables besides those of this process.
        options: ComfyUI's own.
    """
    port, log = _free_port(), comfy_base / "comfyui.log"
    command = [
        str(comfy_install.python),
        "main.py",
        "--listen",
        "127.0.0.1",
        "--port",
        str(port),
        "--base-directory",
        str(comfy_base),
        "--database-url",
        "sqlite:///:memory:",
        "--disable-api-nodes",
        *options,
    ]
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=comfy_install.folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=before_start,
            # Models this small gain nothing from threads, and lose much to them on a machine that is busy.
            env={"OMP_NUM_THREADS": "1", **os.environ, **(environment or {})},
        )
        try:
            running = ComfyServer(port, comfy_base, log, process.pid)
            _wait_until_up(running, process)
            yield running
        finally:
            process.terminate()
            process.wait(timeout=60)


def _wait_until_up(running: ComfyServer, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            running.get("/system_stats")
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.5)
    raise RuntimeError(f"ComfyUI did not start:\n{running.log.read_text('utf-8')[-3000:]}")
