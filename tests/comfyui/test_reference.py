"""Pictures in a running ComfyUI: Load Image, Read Reference Image and the samplers; what each refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from t2mv_core.cameras import CameraRig
from t2mv_core.denoiser import encode_cameras
from t2mv_core.formats.sources import ModelSources
from t2mv_core.images import decode_latents
from t2mv_core.loading import load_bundle
from t2mv_core.reference import encode_reference
from t2mv_core.reference_picture import frame_picture
from t2mv_core.samplers import SAMPLERS, SamplingSettings
from t2mv_core.text import encode_text
from t2mv_core.trajectory import SeededNoise

if TYPE_CHECKING:
    from conftest import ComfyServer, Run

RIG = {"class_type": "T2MVCreateCameraRig", "inputs": {"azimuths": "0, 90", "elevations": "0"}}
TEXT = {
    "class_type": "T2MVLoadModel",
    "inputs": {"model": "diffusers/tiny", "adapter": "the model's own", "precision": "float32"},
}
OF_PICTURES = {**TEXT, "inputs": {**TEXT["inputs"], "adapter": "tiny_i2mv.safetensors"}}
SIZE = 32  # of the tiny model's views
CUT_OUT = (slice(10, 50), slice(20, 40))  # rows and columns of the object in `rgba`


def rgba(seed: int = 0, side: int = 64) -> np.ndarray:
    """A random object on transparent ground, 40 px high and 20 px wide, uint8."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 4), dtype=np.uint8)
    pixels[..., 3] = 0
    pixels[CUT_OUT][..., 3] = 255
    return pixels


def save(server: ComfyServer, name: str, picture: Image.Image, **options: Any) -> str:
    """Put a picture into ComfyUI's input folder."""
    picture.save(server.base_dir / "input" / name, **options)
    return name


def read(name: str, size: int = 64, mask: bool = True) -> dict[str, Any]:
    """Load Image and Read Reference Image, as nodes "8" and "9"."""
    inputs = {"image": ["8", 0], "size": size} | ({"mask": ["8", 1]} if mask else {})
    return {
        "8": {"class_type": "LoadImage", "inputs": {"image": name}},
        "9": {"class_type": "T2MVReadImage", "inputs": inputs},
    }


def sample(kind: str = "Standard", **changes: Any) -> dict[str, Any]:
    """A rig, a sampler with small settings, and its views saved as they are: nodes "2", "3" and "4"."""
    inputs = {
        "model": ["1", 0], "rig": ["2", 0], "prompt": "a red mug", "seed": 3, "steps": 2, "guidance": 7.0,
        "view_scale": 1.0, "reference": ["9", 0],
    }  # fmt: skip
    if kind != "Standard":
        inputs |= {"zigzag_steps": 1, "zigzag_repeats": 1, "inverse_guidance": 1.0, "inverse_view_scale": 1.0}
    inputs = {name: value for name, value in (inputs | changes).items() if value is not None}
    return {
        "2": RIG,
        "3": {"class_type": f"T2MVSample{kind}", "inputs": inputs},
        "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}},
        "5": {"class_type": "PreviewAny", "inputs": {"source": ["3", 2 if kind != "Best" else 6]}},
    }


def pictures(server: ComfyServer, run: Run, node: str) -> np.ndarray:
    """What a node showed, [n, H, W, 3]."""
    assert run.status == "success", run.error
    return np.stack([np.asarray(picture.convert("RGB")) for picture in server.pictures(run, node)])


def framed(pixels: np.ndarray, size: int) -> torch.Tensor:
    return frame_picture(torch.from_numpy(pixels).movedim(-1, 0).float() / 255, size)


@pytest.fixture(scope="module")
def names(server: ComfyServer) -> list[str]:
    """Two pictures with transparency."""
    return [save(server, f"object{seed}.png", Image.fromarray(rgba(seed))) for seed in (0, 1)]


@pytest.mark.parametrize("has_mask", [True, False])
def test_a_picture_is_cut_out_framed_and_shown(server: ComfyServer, names: list[str], has_mask: bool) -> None:
    workflow = read(names[0], 128)
    if not has_mask:  # the alpha of the picture itself, as other packs have it
        join = {"image": ["8", 0], "alpha": ["8", 1]}
        workflow |= {"7": {"class_type": "JoinImageWithAlpha", "inputs": join}}
        workflow["9"]["inputs"] = {"image": ["7", 0], "size": 128}
    (shown,) = pictures(server, server.run(workflow), "9")
    expected = (framed(rgba(0), 128) * 255).movedim(0, -1).numpy()
    assert np.abs(shown - expected).max() <= 1
    # 90 % of the frame, half as wide as it is high, in the middle, on grey
    outside = np.abs(shown.astype(int) - 127.5).max(axis=-1) < 1
    rows, columns = np.nonzero(~outside.all(axis=1))[0], np.nonzero(~outside.all(axis=0))[0]
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (6, 6 + 114, 35, 35 + 57)


def test_without_a_picture_the_packs_example_is_shown(server: ComfyServer) -> None:
    run = server.run({"9": {"class_type": "T2MVReadImage", "inputs": {"size": 64}}})
    (shown,) = pictures(server, run, "9")
    assert shown.std() > 10


def test_16_bits_and_a_palette_are_read_as_8_bits_are(server: ComfyServer, names: list[str]) -> None:
    (expected,) = pictures(server, server.run(read(names[0])), "9")
    save_16_bits(server.base_dir / "input" / "deep.png", rgba(0))
    (deep,) = pictures(server, server.run(read("deep.png")), "9")
    assert np.abs(deep.astype(int) - expected).max() <= 1
    flat = rgba(0)
    flat[..., :3] = flat[..., :3] // 128 * 128
    (expected,) = pictures(server, server.run(read(save(server, "flat.png", Image.fromarray(flat)))), "9")
    palette = Image.fromarray(flat).quantize(16, method=Image.Quantize.FASTOCTREE)
    (found,) = pictures(server, server.run(read(save(server, "palette.png", palette))), "9")
    assert np.abs(found.astype(int) - expected).mean() < 8


def save_16_bits(path: Any, pixels: np.ndarray) -> None:
    """Write a PNG of 16 bits per channel, which Pillow cannot."""
    import struct
    import zlib

    height, width = pixels.shape[:2]
    rows = (pixels.astype(">u2") * 257).astype(">u2")
    lines = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 16, 6, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def error(server: ComfyServer, workflow: dict[str, Any]) -> str:
    """The sentence of a run that fails before a model is loaded."""
    run = server.run(workflow)
    assert run.status == "error"
    assert not run.progress
    assert "1" not in run.executing
    return run.error


def test_pictures_without_an_object_are_refused_in_words(server: ComfyServer) -> None:
    opaque = save(server, "opaque.png", Image.fromarray(rgba()[..., :3]))
    sentence = error(server, read(opaque))
    assert "Nothing in the picture is transparent" in sentence
    assert "Remove Background" in sentence
    assert "Invert Mask" in sentence
    empty = rgba()
    empty[..., 3] = 0
    assert "is transparent everywhere" in error(
        server, read(save(server, "empty.png", Image.fromarray(empty)))
    )
    wide = save(server, "wide.png", Image.new("RGBA", (20_000, 16), (200, 0, 0, 0)))
    assert "has 20000x16 px; at most 8192 px a side" in error(server, read(wide))
    only_mask = read(opaque)
    only_mask["9"]["inputs"].pop("image")
    assert "A mask is connected, but no picture" in error(server, only_mask)
    other = read(opaque) | {
        "7": {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 8, "height": 8}}
    }
    other["9"]["inputs"]["mask"] = ["7", 0]
    assert "1 masks of 8x8 px were given for 1 pictures of 64x64" in error(server, other)


def test_frames_of_an_animation_are_several_pictures(server: ComfyServer) -> None:
    def animation(count: int) -> str:
        frames = [Image.fromarray(rgba(seed)) for seed in range(count)]
        options = {"save_all": True, "append_images": frames[1:], "lossless": True, "duration": 100}
        return save(server, f"moves{count}.webp", frames[0], **options)

    run = server.run(read(animation(3)))
    assert len(pictures(server, run, "9")) == 3
    assert "3 pictures: the sampler takes one per prompt line" in run.texts["9"][0]
    assert "Image From Batch picks one" in error(server, read(animation(17)))
    workflow = {"1": OF_PICTURES, **read("moves3.webp"), **sample(prompt="a mug\na chair")}
    assert "3 reference pictures were given for 2 prompt lines" in error(server, workflow)


def test_a_mask_the_wrong_way_round_is_noticed(server: ComfyServer, names: list[str]) -> None:
    workflow = read(names[0]) | {"7": {"class_type": "InvertMask", "inputs": {"mask": ["8", 1]}}}
    workflow["9"]["inputs"]["mask"] = ["7", 0]
    assert "use Invert Mask" in server.run(workflow).texts["9"][0]


@pytest.mark.parametrize("kind", ["Standard", "ZMV"])
def test_the_samplers_draw_what_the_core_draws(server: ComfyServer, names: list[str], kind: str) -> None:
    scales = {"ref_scale": 0.7} | ({"inverse_ref_scale": 0.2} if kind == "ZMV" else {})
    workflow = {"1": OF_PICTURES, **read(names[0], SIZE), **sample(kind, **scales)}
    run = server.run(workflow)
    found = pictures(server, run, "4")
    assert "picture scale 0.7" in run.outputs["5"]["text"][0]

    models = server.base_dir / "models"
    adapter = str(models / "mvadapter" / "tiny_i2mv.safetensors")
    bundle = load_bundle(ModelSources(str(models / "diffusers" / "tiny"), adapter=adapter))
    condition = encode_text(bundle, ["a red mug"], None)
    reference = encode_reference(bundle, framed(rgba(0), SIZE)[None], condition)
    settings = SamplingSettings(2, 7.0, 1.0, 1, 1, 1.0, 1.0, ref_scale=0.7, inverse_ref_scale=0.2)
    cameras = encode_cameras(bundle, CameraRig((0.0, 90.0), (0.0, 0.0)))
    draw = SAMPLERS["standard" if kind == "Standard" else "zmv"]
    latents = draw(bundle, condition, cameras, SeededNoise([3]), settings, reference=reference).denoised
    expected = (decode_latents(bundle.vae, latents)[0] * 255).movedim(1, -1).numpy()
    assert np.abs(found - expected).max() <= 2
    without = draw(
        bundle, condition, cameras, SeededNoise([3]), replace(settings, ref_scale=0.0), reference=reference
    ).denoised
    other = (decode_latents(bundle.vae, without)[0] * 255).movedim(1, -1).numpy()
    assert np.abs(found - other).max() > 4


def test_one_picture_for_all_lines_or_one_per_line(server: ComfyServer, names: list[str]) -> None:
    both = {
        **read(names[0], SIZE),
        "18": {"class_type": "LoadImage", "inputs": {"image": names[1]}},
        "19": {"class_type": "T2MVReadImage",
               "inputs": {"image": ["18", 0], "mask": ["18", 1], "size": SIZE}},
        "20": {"class_type": "ImageBatch", "inputs": {"image1": ["9", 0], "image2": ["19", 0]}},
    }  # fmt: skip
    lines = "a red mug\na red mug"
    alone, shared, batch, second = (
        pictures(server, server.run({"1": OF_PICTURES, **both, **sample(**changes)}), "4")
        for changes in (
            {},
            {"prompt": lines},
            {"prompt": lines, "reference": ["20", 0]},
            {"seed": 4, "reference": ["19", 0]},
        )
    )
    assert np.array_equal(shared[:2], alone)
    assert np.array_equal(batch[:2], alone)
    assert np.array_equal(batch[2:], second)  # the second line: its own seed, its own picture
    assert not np.array_equal(batch[2:], shared[2:])


def test_a_picture_of_another_size_is_resized(server: ComfyServer, names: list[str]) -> None:
    own, large = (
        pictures(server, server.run({"1": OF_PICTURES, **read(names[0], size), **sample()}), "4")
        for size in (SIZE, 8 * SIZE)
    )
    assert 0 < np.abs(own.astype(int) - large).max() < 40


def test_the_black_mask_of_an_opaque_file_leaves_the_pictures_own_alpha(
    server: ComfyServer, names: list[str]
) -> None:
    """As behind a background remover: the picture has alpha, and Load Image's mask is still connected."""
    opaque = save(server, "opaque.png", Image.fromarray(rgba()[..., :3]))
    alone = read(names[0], SIZE)
    behind = alone | {
        "7": {"class_type": "JoinImageWithAlpha", "inputs": {"image": ["8", 0], "alpha": ["8", 1]}},
        "18": {"class_type": "LoadImage", "inputs": {"image": opaque}},
        "9": {"class_type": "T2MVReadImage", "inputs": {"image": ["7", 0], "mask": ["18", 1], "size": SIZE}},
    }
    shown = {"10": {"class_type": "PreviewImage", "inputs": {"images": ["9", 0]}}}
    expected, framed = (pictures(server, server.run(nodes | shown), "10") for nodes in (alone, behind))
    assert np.array_equal(framed, expected)


def test_best_of_ranks_sets_of_a_picture(server: ComfyServer, names: list[str]) -> None:
    workflow = {
        "1": OF_PICTURES,
        "6": {"class_type": "T2MVLoadReward", "inputs": {"reward": "toybox_clip"}},
        **read(names[0], SIZE),
        **sample("Best", prompt=None, prompts="a red mug\na chair", rewards=["6", 0], candidates=2, keep=2,
                 rank_by="view reward (mean)", sampler="zmv", inverse_ref_scale=0.5),
    }  # fmt: skip
    run = server.run(workflow)
    assert len(pictures(server, run, "4")) == 2 * 2 * 2  # lines, kept sets, views
    assert "picture scale 0.5" in run.outputs["5"]["text"][0]
    workflow["3"]["inputs"].pop("reference")
    failed = server.run(workflow)
    assert "draws the views of a picture, and none is connected" in failed.error


def test_models_and_pictures_that_do_not_belong_together(server: ComfyServer, names: list[str]) -> None:
    for model, changes, words in (
        (TEXT, {}, "draws views of a text and cannot see a picture"),
        (OF_PICTURES, {"reference": None}, "draws the views of a picture, and none is connected"),
    ):
        run = server.run({"1": model, **read(names[0], SIZE), **sample("Standard", **changes)})
        assert run.status == "error"
        assert words in run.error
        assert not run.progress


def test_a_picture_that_is_not_framed_is_refused_or_noticed(server: ComfyServer, names: list[str]) -> None:
    wide = save(server, "landscape.png", Image.fromarray(rgba()[:32, :, :3]))
    loaded = {"8": {"class_type": "LoadImage", "inputs": {"image": wide}}}
    workflow = {"1": OF_PICTURES, **loaded, **sample(reference=["8", 0])}
    assert "has 64x32 px, but must be square. Put Read Reference Image" in error(server, workflow)
    square = save(server, "square.png", Image.fromarray(np.zeros((64, 64, 3), np.uint8)))
    workflow["8"] = {"class_type": "LoadImage", "inputs": {"image": square}}
    run = server.succeed(workflow)
    assert "border is not grey" in run.texts["3"][0]
    with_alpha = read(names[0]) | {
        "7": {"class_type": "JoinImageWithAlpha", "inputs": {"image": ["8", 0], "alpha": ["8", 1]}}
    }
    workflow = {"1": OF_PICTURES, **with_alpha, **sample(reference=["7", 0])}
    assert "has transparency, so it is not framed yet" in error(server, workflow)
