"""Scoring where rewards or pictures are unusual, in a process like ComfyUI's."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import ComfyInstall

SCORE = """
from types import SimpleNamespace
import comfy.model_management as model_management

from pack.nodes.scoring.report import score_sheet, set_title, view_labels
from pack.nodes.scoring.score import score_set, split_by_prompt
from pack.nodes.sockets import RewardHandle
from pack.t2mv_core.rewards.base import RewardResult

class Reward:
    def __init__(self, kind, name, value, details):
        self.kind, self.name, self.value, self.details, self.calls = kind, name, value, details, 0

    def __call__(self, images, prompts):
        self.calls += 1
        value = torch.full((len(prompts),), self.value)
        return RewardResult(value, {name: value * 0 + part for name, part in self.details.items()})

def handle(kind, name, value, **details):
    residency = SimpleNamespace(run=lambda work: work(torch.device("cpu")))
    return RewardHandle(Reward(kind, name, value, details), residency)

def sentence(*handles):
    try:
        score_set(handles, torch.rand(3, 3, 8, 8), "a red mug", lambda: None)
    except ValueError as error:
        return str(error)

pictures = split_by_prompt(torch.rand(6, 8, 8, 3), 2)
clip, sharp, joint = handle("view", "clip", 0.25), handle("view", "sharp", 2.0), handle("joint", "joint", 7.0)
sets = [
    score_set((clip, sharp, joint), views, prompt, lambda: None)
    for views, prompt in zip(pictures, ["a red mug", "x" * 200], strict=True)
]
facts = {
    "nan": sentence(clip, handle("view", "broken", float("nan"))),
    "inf": sentence(handle("joint", "broken", float("inf"))),
    "part": sentence(handle("joint", "broken", 1.0, geometry=float("nan"))),
    "labels": view_labels(sets[0]),
    "title": set_title(sets[0]),
    "long title": len(set_title(sets[1])),
    "no view reward": [view_labels(score_set((joint,), pictures[0], "a", lambda: None))],
    "wide": list(score_sheet([torch.rand(300, 3, 8, 8)], ["300 pictures"], [[]]).shape),
}

def cancel():
    model_management.interrupt_current_processing(True)

sharp.reward.calls = 0
try:
    score_set((clip, sharp), pictures[0], "a red mug", cancel)
except model_management.InterruptProcessingException:
    facts["cancelled before the next reward"] = sharp.reward.calls == 0
print(json.dumps(facts))
"""


def test_scores_are_told_drawn_and_refused(comfy_install: ComfyInstall) -> None:
    facts = comfy_install.run_with_pack(SCORE)
    assert facts["nan"].startswith("broken gave [nan, nan, nan] (broken) for “a red mug”, which is no score")
    assert facts["inf"].startswith("broken gave [inf] (broken)")
    assert facts["part"].startswith("broken gave [nan] (geometry)")
    assert facts["labels"] == ["0.250 | 2.000"] * 3
    assert facts["title"] == "“a red mug”   joint 7.000   views: clip | sharp"
    assert facts["long title"] < 110
    assert facts["no view reward"] == [[]]
    assert facts["wide"][2] <= 8192
    assert facts["cancelled before the next reward"]
