"""The samplers' pictures: how many there may be, and how often the UNet looks at them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from t2mv_pack.nodes.sampling import reference as references
from t2mv_pack.t2mv_core import reference as core


def pictures(count: int, height: int = 8, width: int = 8, channels: int = 3) -> torch.Tensor:
    """Grey ones."""
    return torch.full((count, height, width, channels), 0.5)


@pytest.mark.parametrize(("count", "lines"), [(1, 1), (1, 5), (3, 3), (3, 0)])
def test_one_picture_for_all_lines_or_one_per_line(count: int, lines: int) -> None:
    assert [references.check_pictures(given, lines) for given in (pictures(count), None)] == [None, None]
    with pytest.raises(ValueError, match="were given for"):
        references.check_pictures(pictures(count + 1), lines or count)


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        (pictures(3), "3 reference pictures were given for 2 prompt lines"),
        (pictures(1, 8, 12), "has 12x8 px, but must be square"),
        (pictures(1, channels=4), "has transparency"),
    ],
)
def test_other_pictures_are_refused(reference: torch.Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        references.check_pictures(reference, 2)


def test_a_border_that_is_not_grey_is_named() -> None:
    assert references.framing_notes(None) == []
    assert references.framing_notes(pictures(2)) == []
    one_is_white = torch.cat([pictures(1), torch.ones(1, 8, 8, 3)])
    assert "border is not grey" in references.framing_notes(one_is_white)[0]


def test_seeds_of_a_line_share_the_features_of_its_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []

    def look(bundle: Any, latents: torch.Tensor, condition: Any) -> Any:
        looked.append((float(latents), condition))
        return SimpleNamespace()

    monkeypatch.setattr(core, "reference_of_latents", look)
    model = SimpleNamespace(bundle=None)
    own = references.SetReferences(torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1))
    lines = ["a mug", "a mug"]
    found = [own.features(model, f"text {line}", lines[line], line) for line in (0, 0, 1, 1)]
    assert looked == [(1.0, "text 0"), (2.0, "text 1")]
    assert found[0] is found[1]
    shared = references.SetReferences(torch.ones(1, 1, 1, 1))
    for line, prompt in enumerate(("a mug", "a mug", "a chair")):
        shared.features(model, prompt, prompt, line)
    assert looked[2:] == [(1.0, "a mug"), (1.0, "a chair")]  # a picture under a prompt, not per line
