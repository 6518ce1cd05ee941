"""The trainer's command line with rewards of plain arithmetic, for tests that kill or watch it.

python driver.py OPTIONS --preset run.yaml --resume auto

OPTIONS is JSON: "sleep" are seconds that every scoring takes, so that a run can be killed in the middle;
"keeps_advantages" writes every iteration's into the run folder. In the iteration "stops_in" the second
process is asked to stop before it samples. "ready" is printed when the run folder is about to be opened.
"""

import json
import sys
import time
from pathlib import Path

import torch

import t2mv_core.rewards.registry
from t2mv_core.rewards.base import RewardResult
from t2mv_core.rewards.registry import RewardSpec
from training.mvczigal import main
from training.run.trainer import Trainer

OPTIONS = {"sleep": 0.0, "keeps_advantages": False, "stops_in": None, **json.loads(sys.argv[1])}


def redness(images, prompts):
    time.sleep(OPTIONS["sleep"])
    return RewardResult(images[:, 0].mean(dim=(1, 2)))


def agreement(images, prompts):
    blue = images[:, 2].mean(dim=(1, 2)).reshape(len(prompts), -1)
    spread = blue.std(dim=1, correction=0)
    return RewardResult(-spread, {"overall": -spread})


class WatchedTrainer(Trainer):
    def _open_folder(self, resume):
        print("ready", flush=True)  # noqa: T201 - for the process that waits
        super()._open_folder(resume)

    def _collect(self, iteration):
        if iteration == OPTIONS["stops_in"] and self.accelerator.process_index == 1:
            self.request_stop()
        return super()._collect(iteration)

    def _advantages(self, table):
        found = super()._advantages(table)
        if OPTIONS["keeps_advantages"]:
            name = f"advantages_{self.iteration}_{self.accelerator.process_index}.pt"
            torch.save(found, Path(self.config.run.out_dir) / name)
        return found


if __name__ == "__main__":
    import training.run.trainer

    training.run.trainer.Trainer = WatchedTrainer
    t2mv_core.rewards.registry.REWARDS["redness"] = RewardSpec("view", lambda *_: redness, "test")
    t2mv_core.rewards.registry.REWARDS["agreement"] = RewardSpec("joint", lambda *_: agreement, "test")
    sys.exit(main(sys.argv[2:]))
