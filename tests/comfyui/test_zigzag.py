"""The zigzag sampler in a process like ComfyUI's: its guiders, samplers and patchers, an analytic network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import ComfyInstall

FACTS = Path(__file__).parent / "zigzag_facts.py"


@pytest.fixture(scope="module")
def facts(comfy_install: ComfyInstall) -> dict[str, Any]:
    """What `zigzag_facts.py` found, run once."""
    return comfy_install.run_with_pack(FACTS.read_text("utf-8"))


@pytest.mark.parametrize("kind", ["noise", "velocity", "flow"])
@pytest.mark.parametrize("name", ["lcm", "euler", "euler_ancestral"])
def test_without_zigzags_it_is_comfyuis_sampler_bit_for_bit(
    facts: dict[str, Any], name: str, kind: str
) -> None:
    assert facts["plain"][f"{kind} {name}"] == "equal"


@pytest.mark.parametrize(
    "case", ["lcm K=1", "lcm K=2 R=2", "lcm K=4 (all)", "euler_ancestral K=2", "euler K=2 R=2"]
)
def test_it_is_the_cores_zmv(facts: dict[str, Any], case: str) -> None:
    """Same noise, same alpha-bar, same network: the pictures' latents agree, and the zigzag did something."""
    found = facts["core"][case]
    assert found["difference"] < 1e-4
    assert found["effect of the zigzag"] > 0.05


def test_comfyuis_lcm_schedule_visits_the_methods_timesteps(facts: dict[str, Any]) -> None:
    assert facts["timesteps"] == [999, 879, 759, 639, 499, 379, 259, 139]


def test_evaluations_guidance_and_view_scale_are_the_methods(facts: dict[str, Any]) -> None:
    """N=3, K=1, R=1 with cfg 5 and w_inv=1: two passes per zig, one per zag; only zags have a view scale."""
    zig, zag = [2, None], [1, 0.25]
    assert facts["calls"] == [zig, zag, zig, zig, zig]
    # All of the first step (its zag, too) at the first timestep.
    assert facts["sigmas asked"][0] == facts["sigmas asked"][1] == facts["sigmas asked"][2]


def test_progress_counts_evaluations_and_shows_previews(facts: dict[str, Any]) -> None:
    assert [value for value, _, _ in facts["progress"]] == [1, 2, 3, 4, 5]
    assert {total for _, total, _ in facts["progress"]} == {5}
    assert all(has_preview for _, _, has_preview in facts["progress"])


def test_the_guider_and_the_models_options_stay_as_they_were(facts: dict[str, Any]) -> None:
    assert facts["guider"] == {"cfg": 5.0, "options": True}


def test_the_same_seed_gives_the_same_latents(facts: dict[str, Any]) -> None:
    assert facts["seeds"] == {"same": True, "other": False}


def test_what_a_noise_mask_protects_stays(facts: dict[str, Any]) -> None:
    assert facts["mask"] == {"protected part": True, "other part changed": True, "finite": True}


@pytest.mark.parametrize("name", ["euler", "lcm"])
def test_flows_go_back_by_eulers_step(facts: dict[str, Any], name: str) -> None:
    assert facts["flow"][name] < 1e-5


def test_velocities_go_back_by_the_rotation(facts: dict[str, Any]) -> None:
    assert facts["velocity"] < 1e-4


def test_zero_guidance_on_the_way_back_is_the_negative_condition(facts: dict[str, Any]) -> None:
    """For models sampled with cfg 1: one pass per zig, and the zag sees the negative alone in its sum."""
    assert facts["cfg 1"]["changes"]
    assert facts["cfg 1"]["finite"]


def test_a_node_that_overrides_the_guidance_does_not_reach_the_way_back(facts: dict[str, Any]) -> None:
    assert facts["overridden"] == {"same": True, "no zigzag": False}


def test_a_damaged_run_leaves_the_guider_usable(facts: dict[str, Any]) -> None:
    assert facts["interrupted"] == {"raised": True, "same afterwards": True}


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("basic guider", "needs a guider with a negative conditioning"),
        ("dual guider", "no single guidance"),
        ("too many", "zigzag_steps=5 must lie between 0 and the number of steps, here 3"),
        ("flipped", "must fall, from more noise to less"),
        ("cosmos", "cannot go back with this kind of model (ModelSamplingCosmosRFlow"),
        ("x0", "cannot go back with this kind of model (ModelSamplingDiscrete, X0"),
        ("IMG_TO_IMG_FLOW", "cannot go back with this kind of model (ModelSamplingDiscrete, IMG_TO_IMG_FLOW"),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_first_evaluation(
    facts: dict[str, Any], case: str, words: str
) -> None:
    assert words in facts["refusals"][case]["message"]
    assert facts["refusals"][case]["evaluations"] == 0


def test_what_cannot_go_back_still_goes_forth(facts: dict[str, Any]) -> None:
    """zigzag_steps=0 asks nothing of model or guider; a basic guider zigzags with its own guidance."""
    assert facts["allowed"] == {"basic guider": True, "cosmos K=0": True, "dual guider K=0": True}
