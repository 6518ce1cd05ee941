"""What the pack costs ComfyUI at start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import ComfyInstall

MAX_IMPORT_S = 0.1  # of processor time: wall time would measure what else the machine does
IMPORT_PACK = """
import asyncio, importlib.util, json, time
import nodes, folder_paths, comfy_api.latest, comfy.model_management  # what ComfyUI has before custom nodes
sys.dont_write_bytecode = False
path = sys.argv[1]
name = path.replace(".", "_x_")
before, start = set(sys.modules), time.process_time()
spec = importlib.util.spec_from_file_location(name, path + "/__init__.py")
pack = sys.modules[name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)

async def load():
    for node in await (await pack.comfy_entrypoint()).get_node_list():
        node.GET_SCHEMA()

asyncio.run(load())
seconds = time.process_time() - start
new = sorted({module.split(".")[0] for module in set(sys.modules) - before if not module.startswith(name)})
print(json.dumps({"seconds": seconds, "new": new}))
"""


def test_import_is_quick_and_loads_no_model_library(comfy_install: ComfyInstall) -> None:
    pack_dir = str(Path(__file__).parents[2])
    comfy_install.run_code(IMPORT_PACK, pack_dir)  # the first import compiles, as after an installation
    measured = json.loads(comfy_install.run_code(IMPORT_PACK, pack_dir).splitlines()[-1])
    assert not {"diffusers", "transformers", "peft", "open_clip", "timm", "accelerate"} & set(measured["new"])
    assert measured["seconds"] < MAX_IMPORT_S, measured
