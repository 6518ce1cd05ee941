"""The adapter: put into a frozen base without effect of its views at first, and saved apart from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from training.toybox.stages.adapter import WRONG_SIDES, draw_views, load_adapter_into, shuffle_views
from training.toybox.stages.networks import MultiviewNetworks, SingleViewNetworks, create_average
from training.toybox.stages.stage import StageConfig


@pytest.fixture(scope="module")
def base() -> SingleViewNetworks:
    torch.manual_seed(0)
    return SingleViewNetworks().eval().requires_grad_(False)


def test_without_camera_residuals_a_new_adapter_changes_nothing(base: SingleViewNetworks) -> None:
    networks = MultiviewNetworks().eval().requires_grad_(False)
    networks.put_in(base)
    networks.start_adapter()
    for parameter in networks.camera_encoder.parameters():
        parameter.data.zero_()
    x, steps = torch.randn(2, 6, 4, 16, 16), torch.tensor([900, 100])
    condition = base.encode(["a red mug", "a blue car"])
    views = networks.predict(x, steps, condition)
    for view in range(6):
        torch.testing.assert_close(
            views[:, view], base.predict(x[:, view], steps, condition), rtol=1e-4, atol=1e-4
        )


def test_networks_of_another_kind_are_refused(base: SingleViewNetworks) -> None:
    with pytest.raises(ValueError, match="do not fit each other"):
        MultiviewNetworks(has_guidance_embedding=True).put_in(base)


def test_the_average_of_the_adapter_is_what_is_put_in(tmp_path: Path) -> None:
    source, target = MultiviewNetworks(), MultiviewNetworks()
    average = create_average(nn.ParameterList(source.adapter_parameters()))
    (tmp_path / "adapter").mkdir()
    torch.save({"parts": {"average": average.state_dict()}}, tmp_path / "adapter" / "state.pt")
    load_adapter_into(target, StageConfig(out_dir=tmp_path))
    pairs = zip(source.adapter_parameters(), target.adapter_parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(source.unet.conv_in.weight, target.unet.conv_in.weight)


def test_updates_see_two_three_or_all_views_and_the_last_ones_all() -> None:
    drawn = [draw_views(update, 100, 6, np.random.default_rng(update)) for update in range(100)]
    assert {len(views) for views in drawn[:85]} == {2, 3, 6}
    assert all(views == list(range(6)) for views in drawn[85:])
    assert all(len(set(views)) == len(views) and set(views) <= set(range(6)) for views in drawn)


def test_some_sets_show_other_views_of_their_own_scene() -> None:
    latents = np.arange(300 * 6, dtype=np.float16).reshape(300, 6, 1, 1, 1)  # each view has its own number
    views = [0, 2, 5]
    clean = torch.from_numpy(latents[:, views]).float()
    shown = shuffle_views(latents, clean, views, np.random.default_rng(0))
    assert torch.equal(shown.flatten() // 6, clean.flatten() // 6)  # of the same scene
    is_other = (shown != clean).flatten(1).any(dim=1)
    assert is_other.float().mean() == pytest.approx(WRONG_SIDES, abs=0.08)  # 3.5 deviations
    assert all(len(row.unique()) == len(views) for row in shown)
