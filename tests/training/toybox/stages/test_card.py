"""The model card that ships is the one its template and the shipped reports make."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from t2mv_core.toybox import TOYBOX_DIR
from training.toybox.stages.card import write_card
from training.toybox.stages.stage import StageConfig


def test_the_shipped_card_has_the_figures_of_the_shipped_reports(tmp_path: Path) -> None:
    config = StageConfig(out_dir=tmp_path)
    shutil.copytree(TOYBOX_DIR, config.export_dir)
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "report.json").write_text(json.dumps({"psnr_db": 28.685012817382812}))  # not shipped
    write_card(config)
    card = (config.export_dir / "MODEL_CARD.md").read_text("utf-8")
    assert card == (TOYBOX_DIR / "MODEL_CARD.md").read_text("utf-8")
