"""Draws the registry's icon and banner with the toybox: `.venv/bin/python docs/images/draw.py`."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from PIL import Image  # noqa: E402

from t2mv_core.cameras import DEFAULT_RIG  # noqa: E402
from t2mv_core.defaults import DEFAULTS  # noqa: E402
from t2mv_core.denoiser import encode_cameras  # noqa: E402
from t2mv_core.images import contact_sheet, decode_latents  # noqa: E402
from t2mv_core.loading import load_bundle  # noqa: E402
from t2mv_core.samplers import SamplingSettings  # noqa: E402
from t2mv_core.samplers.standard import sample_standard  # noqa: E402
from t2mv_core.text import encode_text  # noqa: E402
from t2mv_core.trajectory import SeededNoise  # noqa: E402

PROMPTS = ["a red mug", "a green house", "a yellow airplane"]
SEED, SETTINGS = 3, SamplingSettings(**DEFAULTS["toybox-teacher"].numbers())
ICON_PX, BANNER_PX = 400, (1260, 540)
FRONT_RIGHT = 1  # the view that shows most of an object


def main() -> None:
    """Write icon.png and banner.png."""
    bundle = load_bundle("toybox-teacher")
    cameras, noise = encode_cameras(bundle, DEFAULT_RIG), SeededNoise([SEED + i for i in range(len(PROMPTS))])
    with torch.no_grad():
        record = sample_standard(bundle, encode_text(bundle, PROMPTS), cameras, noise, SETTINGS)
        views = decode_latents(bundle.vae, record.denoised)
    icon = contact_sheet(views[1:2, FRONT_RIGHT : FRONT_RIGHT + 1], cell_px=ICON_PX).convert("RGB")
    icon.crop((0, 0, ICON_PX, ICON_PX)).save(Path(__file__).with_name("icon.png"))
    sheet = contact_sheet(views, cell_px=BANNER_PX[1] // len(PROMPTS)).convert("RGB")
    banner = Image.new("RGB", BANNER_PX, sheet.getpixel((2, 2)))
    banner.paste(sheet, ((BANNER_PX[0] - sheet.width) // 2, (BANNER_PX[1] - sheet.height) // 2))
    banner.save(Path(__file__).with_name("banner.png"))


if __name__ == "__main__":
    main()
