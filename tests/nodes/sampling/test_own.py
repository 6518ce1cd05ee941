"""Tooltips, help pages and translations say the numbers that the core's table holds."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from t2mv_pack.nodes.sampling import own

from t2mv_core.defaults import DEFAULTS, FEW_STEP, OF_PICTURE

PACK_DIR = Path(__file__).parents[3]
SETTINGS = {  # input -> setting of the core
    "steps": "num_steps",
    "guidance": "guidance_scale",
    "zigzag_steps": "zigzag_steps",
    "inverse_guidance": "inverse_guidance_scale",
    "inverse_view_scale": "inverse_view_scale",
}
PAGES = {"T2MVSampleStandard": ("steps", "guidance"), "T2MVSampleZMV": tuple(SETTINGS)[2:]}
CHINESE_OF_PICTURE = "带图像适配器的 SDXL"
CHINESE_OTHERS = "使用其他求解器的少步模型"
CHINESE = {"toybox": "toybox", "toybox-teacher": "教师模型", "lcm-sdxl": "LCM-SDXL", "sdxl": "SDXL"}


def chinese_words(setting: str) -> str:
    """The same sentence as `own_words` in Chinese, with a blank between letters and signs."""
    records = [(DEFAULTS[name], words) for name, words in CHINESE.items()]
    records += [(OF_PICTURE, CHINESE_OF_PICTURE), (FEW_STEP, CHINESE_OTHERS)]
    models: dict[float, list[str]] = {}
    for record, words in records:
        models.setdefault(getattr(record, setting), []).append(words)
    if len(models) == 1:
        return f"所有模型均为 {next(iter(models)):g}"
    text = "，".join(
        f"{'、'.join(names[:-1])}和{names[-1]}为{x:g}".removeprefix("和") for x, names in models.items()
    )
    return re.sub(r"(?<=[A-Za-z0-9])(?=[一-鿿])|(?<=[一-鿿])(?=[A-Za-z0-9])", " ", text)


def test_every_model_of_the_table_has_words() -> None:
    assert list(own.MODELS) == list(DEFAULTS)


def test_models_with_one_number_are_named_together(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {name: replace(FEW_STEP, num_steps=8) for name in own.MODELS}
    monkeypatch.setattr(own, "DEFAULTS", table | {"toybox": replace(FEW_STEP, num_steps=4)})
    monkeypatch.setattr(own, "OF_PICTURE", replace(FEW_STEP, num_steps=8))
    monkeypatch.setattr(own, "FEW_STEP", replace(FEW_STEP, guidance_scale=1.5, num_steps=2))
    assert own.own_words("num_steps") == (
        "4 for the toybox, 8 for the toybox teacher, LCM-SDXL, SDXL and SDXL with an image adapter, "
        "2 for few-step models with another solver"
    )
    assert own.own_words("guidance_scale").endswith("adapter, 1.5 for few-step models with another solver")
    assert own.own_words("zigzag_steps") == "1 for all models"


@pytest.mark.parametrize("node_id", PAGES)
def test_help_pages_say_the_numbers(node_id: str) -> None:
    text = (PACK_DIR / "web/docs" / f"{node_id}.md").read_text("utf-8")
    items = {item.split("**")[1]: " ".join(item.split()) for item in text.split("\n* ")[1:]}
    for name in PAGES[node_id]:
        words = f" model's own: {own.own_words(SETTINGS[name])}."
        assert words in items[name], f"{name}: {words}"


@pytest.mark.parametrize(
    ("node_id", "names"),
    [
        ("T2MVSampleStandard", ("steps", "guidance")),
        ("T2MVSampleZMV", tuple(SETTINGS)),
        ("T2MVSampleBest", tuple(SETTINGS)),
    ],
)
def test_translations_say_the_numbers(node_id: str, names: tuple[str, ...]) -> None:
    inputs = json.loads((PACK_DIR / "locales/zh/nodeDefs.json").read_text("utf-8"))[node_id]["inputs"]
    for name in names:
        words = f" 使用模型自己的值：{chinese_words(SETTINGS[name])}。"
        assert words in inputs[name]["tooltip"], f"{name}: {words}"
