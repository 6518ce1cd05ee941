"""How the example workflows look: columns of nodes with titles, notes, and sizes where pictures appear.

What they compute is in docs/api/<name>.json; both together give example_workflows/<name>.json (make.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Column:
    """Nodes under each other.

    Attributes:
        title: of the group around them.
        nodes: ids in docs/api/<name>.json, from top to bottom.
        width: of the nodes, in the graph's units.
        note: Markdown for people, above the nodes; "" is none.
        note_height: of the note.
    """

    title: str
    nodes: tuple[str, ...]
    width: int = 320
    note: str = ""
    note_height: int = 200


@dataclass(frozen=True)
class Layout:
    """A workflow on the canvas.

    Attributes:
        columns: from left to right.
        heights: node id -> height, for nodes that show pictures or texts after a run.
        after_run: what happens to seeds after a run, a word of ComfyUI's control_after_generate.
        runs: ids of the output nodes that make.py runs for the picture; None runs all, () nothing.
        placeholders: files under models/ that stand for downloads while the picture is taken.
        downloads: node id -> what ComfyUI offers to download when it is missing.
    """

    columns: tuple[Column, ...]
    heights: dict[str, int] = field(default_factory=dict)
    after_run: str = "randomize"
    runs: tuple[str, ...] | None = None
    placeholders: tuple[str, ...] = ()
    downloads: dict[str, list[dict[str, str]]] = field(default_factory=dict)


TEXT_TO_VIEWS = """# A sentence becomes six views
Runs as it is, on any machine: the toybox comes with this pack. It knows plain objects (a red mug, a yellow chair with
wooden legs) at 64 pixels; workflow 5 is the same with SDXL.

* Change the **prompt**; every line becomes a set of views.
* **Create Camera Rig** has presets; `views` picks some of them.
* **Split Views** gives single views, for example to 3D nodes.
* The **turntable** is saved in `output/T2MV`.
"""

STANDARD_VS_ZMV = """# Does the zigzag help?
The same prompt and seed, once by ordinary sampling, once with a zigzag in the first step (ZMV), both scored by the same
rewards. Higher is better; compare the two rows only with each other.

One picture proves nothing: put several lines into **Prompt** and compare means. On this small model the zigzag by
itself does not help; it is what training learns from.
"""

TRAIN_LORA = """# Train a LoRA, see what it changed
**Train LoRA** runs the trainer as a process of its own: 12 iterations of the preset *demo*, some minutes on two processor
cores. Watch its line of text, its bar and its pictures. **Cancel** keeps the state, the same inputs go on.

* The LoRA appears as `loras/t2mv/first lora.safetensors`.
* Queue again: a finished run is not repeated. More `iterations` make it go on; other settings need another `name`.
* The prompts to compare with are none it trains on. Six of them and one seed are a look, not a measurement: for that,
  see docs/training.md.
"""

BEST_OF_8 = """# Keep the best of eight
Eight sets with eight seeds, scored by all connected rewards, ranked, the best kept. `seeds` says which one it was: a
sampler gives it again with that seed.

`rank_by` decides what counts: the sum of all rewards, the set as a whole, the mean view or the worst one.
"""

LCM_SDXL = """# Six views at 768 px in 8 steps
Needs about 12 GB of files and a graphics card. Put into ComfyUI's folder:

| file | from | to |
|---|---|---|
| sd_xl_base_1.0.safetensors | [SDXL](https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0) | models/checkpoints |
| diffusion_pytorch_model.fp16.safetensors as lcm-sdxl.safetensors | [LCM-SDXL](https://huggingface.co/latent-consistency/lcm-sdxl) | models/diffusion_models |
| sdxl.vae.safetensors as sdxl-vae-fp16-fix.safetensors | [VAE](https://huggingface.co/madebyollin/sdxl-vae-fp16-fix) | models/vae |
| mvadapter_t2mv_sdxl.safetensors | [MV-Adapter](https://huggingface.co/huanngzh/mv-adapter) | models/mvadapter |
| the LoRA as mvc_zigal_lcm_sdxl.safetensors | its authors' page ([paper](https://arxiv.org/abs/2505.20107)) or your own training | models/loras |

Then press R to refresh. Without the LoRA: select **Load LoRA** and press Ctrl-B (bypass). Or switch `download` of **Load
Model** on (show advanced inputs): then all but the LoRA is fetched, about 7 GB.
"""

TO_MESH = """# Views become a mesh
Needs one file and a graphics card:
[hunyuan3d-dit-v2-mv_fp16.safetensors](https://huggingface.co/Comfy-Org/hunyuan3D_2.0_repackaged) (folder `split_files`)
into `models/checkpoints`, then press R to refresh.

* **Left and right change places**: we name sides as the viewer sees them, Hunyuan3D as the object does.
* The toybox draws 64 pixels, enough to try the wiring. For real objects choose `LCM-SDXL` in **Load Model** with 8 steps
  and guidance 7 (workflow 5 says what to fetch).
* If the mesh shows the background, put a background remover between **Split Views** and **CLIP Vision Encode**: the
  model was trained on objects without one.
"""

LAYOUTS: dict[str, Layout] = {
    "1_text_to_views_standard": Layout(
        columns=(
            Column("1 Model and cameras", ("1", "2"), 340, TEXT_TO_VIEWS, 300),
            Column("2 Sample", ("3", "4"), 420),
            Column("3 Turn", ("5", "6"), 340),
            Column("4 Single views", ("7", "8"), 240),
            Column("5 Single views", ("9", "10"), 240),
        ),
        heights={"3": 400, "4": 230, "5": 500, "7": 300, "8": 300, "9": 300, "10": 300},
    ),
    "2_standard_vs_zmv": Layout(
        columns=(
            Column("1 The same for both", ("1", "2", "3", "4"), 340, STANDARD_VS_ZMV, 250),
            Column("2 Sample twice", ("5", "6", "13"), 340),
            Column("3 Score", ("7", "8", "9", "10"), 440),
            Column("4 Compare", ("14", "11", "12"), 520),
        ),
        heights={"9": 320, "10": 320, "14": 360, "11": 150, "12": 150},
        after_run="fixed",
    ),
    "3_train_lora_before_after": Layout(
        columns=(
            Column("1 Train", ("4",), 400, TRAIN_LORA, 330),
            Column("2 With and without", ("1", "5", "2", "3"), 340),
            Column("3 Sample", ("6", "7"), 320),
            Column("4 Score", ("8", "9", "12", "13"), 440),
            Column("5 Compare", ("10", "11"), 520),
        ),
        heights={"4": 640, "2": 190, "12": 330, "13": 210, "10": 660, "11": 660},
        after_run="fixed",
    ),
    "4_best_of_8_standard": Layout(
        columns=(
            Column("1 Model, cameras and rewards", ("1", "2", "3", "4"), 340, BEST_OF_8, 200),
            Column("2 Sample and rank", ("5",), 560),
            Column("3 The best", ("6", "7", "8"), 520),
        ),
        heights={"5": 1240, "6": 230, "7": 270, "8": 420},
    ),
    "5_text_to_views_lcm_sdxl": Layout(
        columns=(
            Column("1 Model, LoRA and cameras", ("1", "2", "3"), 520, LCM_SDXL, 420),
            Column("2 Sample", ("4",), 420),
            Column("3 Look and keep", ("5", "6"), 620),
        ),
        heights={"4": 420, "5": 260, "6": 620},
        runs=(),
        placeholders=("loras/mvc_zigal_lcm_sdxl.safetensors",),
    ),
    "6_views_to_mesh_hunyuan3d": Layout(
        columns=(
            Column("1 Model and cameras", ("1", "2"), 400, TO_MESH, 380),
            Column("2 Views", ("3", "4", "5"), 420),
            Column("3 What Hunyuan3D sees", ("6", "7", "8", "9", "10"), 360),
            Column("4 Shape", ("11", "12", "13", "14"), 340),
            Column("5 Mesh", ("15", "16", "17"), 400),
        ),
        heights={"3": 360, "4": 230, "17": 420},
        runs=("4",),
        placeholders=("checkpoints/hunyuan3d-dit-v2-mv_fp16.safetensors",),
        downloads={
            "6": [
                {
                    "name": "hunyuan3d-dit-v2-mv_fp16.safetensors",
                    "url": "https://huggingface.co/Comfy-Org/hunyuan3D_2.0_repackaged/resolve/main/"
                    "split_files/hunyuan3d-dit-v2-mv_fp16.safetensors",
                    "directory": "checkpoints",
                }
            ]
        },
    ),
}


def to_page(layout: Layout) -> dict[str, Any]:
    """The layout as page.js reads it."""
    return {
        "columns": [vars(column) for column in layout.columns],
        "heights": layout.heights,
        "after_run": layout.after_run,
        "downloads": layout.downloads,
    }
