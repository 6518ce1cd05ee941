"""Branches of one model with different noise schedules: each draws what it draws alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

BRANCHES = """
import comfy.samplers
import comfy.model_management as management
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete, RescaleCFG
from pack.nodes.native.schedule import T2MVShiftSNR

def shift(model, sampling="the model's own", scale=8.0):
    return T2MVShiftSNR.execute(model, sampling, scale).args[0]

MAKE = {
    "plain": lambda pair: pair.model,
    "shifted": lambda pair: shift(pair.model),
    "views": lambda pair: shift(pair.patched()),
    "shifted twice": lambda pair: shift(shift(pair.model), scale=4.0),
    "shifted lcm": lambda pair: shift(pair.model, "lcm"),
    "behind ComfyUI's": lambda pair: shift(ModelSamplingDiscrete().patch(pair.model, "x0", False)[0]),
    "before ComfyUI's": lambda pair: RescaleCFG().patch(shift(pair.model), 0.7)[0],
}

def draw(model):
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 2)
    return sample(model, noise, sigmas, conditions, 5.0)

with torch.inference_mode():
    condition = create_pair(folder).condition(1, (64, 64))
    noise, conditions = torch.randn(3, 4, 8, 8), comfy_conditions(condition, RIG.num_views)
    alone = {}
    for name, make in MAKE.items():
        alone[name] = draw(make(create_pair(folder)))
        management.unload_all_models()
    facts["branches differ"] = min(
        relative_error(alone[name], alone["plain"]) for name in MAKE if name != "plain"
    )
    pair = create_pair(folder)
    before = pair.model.model.model_sampling.sigmas.clone()
    models = {name: make(pair) for name, make in MAKE.items()}
    names = list(MAKE)
    orders = {"in order": names, "backwards": names[::-1], "to and fro": [
        name for other in names[1:] for name in ("plain", other, "plain", other, "shifted")
    ]}
    for unloads in (False, True):
        for order, sequence in orders.items():
            wrong = set()
            for name in sequence:
                if not torch.equal(draw(models[name]), alone[name]):
                    wrong.add(name)
                if unloads:
                    management.unload_all_models()
            facts[f"{order}, {'unloaded' if unloads else 'kept'}"] = sorted(wrong)
    facts["the model's own"] = torch.equal(pair.model.model.model_sampling.sigmas, before)
"""


@pytest.fixture(scope="module")
def facts(native_facts: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """What BRANCHES found, run once."""
    return native_facts(BRANCHES)


def test_branches_of_one_model_keep_their_schedules(facts: dict[str, Any]) -> None:
    assert facts.pop("branches differ") > 1e-3
    assert facts.pop("the model's own")
    assert len(facts) == 6
    assert {order: wrong for order, wrong in facts.items() if wrong} == {}
