"""Training of image to multiview: the picture is a part of the state, and the zag may drop it."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image

from t2mv_core.denoiser import encode_cameras
from t2mv_core.formats.safetensors_io import read_safetensors
from t2mv_core.formats.sources import ModelSources
from t2mv_core.loading import load_bundle
from t2mv_core.policy import log_prob
from t2mv_core.rewards.base import RewardResult
from t2mv_core.rewards.registry import load_reward
from t2mv_core.text import encode_text
from training.algorithm.learner import recorded_steps, step_distribution
from training.algorithm.rollout import Batch, Policy, paired_noise, sample_and_score
from training.algorithm.scoring import Rewards
from training.algorithm.updates import MicroStep
from training.models.policy import camera_rig, sampling_settings
from training.run.trainer import Trainer

COLOURS = ((200, 30, 30), (30, 30, 200), (30, 200, 30), (200, 200, 30), (20, 20, 20), (240, 240, 240))


class Likeness:
    """Minus the distance of a view's mean colour from its picture's."""

    takes_pictures = True

    def __call__(self, images, prompts, pictures):
        wanted = pictures.mean(dim=(2, 3)).repeat_interleave(len(images) // len(pictures), dim=0)
        return RewardResult(-(images.mean(dim=(2, 3)) - wanted).norm(dim=1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("references")
    for number, colour in enumerate(COLOURS):
        picture = Image.new("RGBA", (24, 24), (0, 0, 0, 0))
        picture.paste((*colour, 255), (4, 4 + number % 3, 20, 18))
        picture.save(root / f"object{number}.png")
    return root


@pytest.fixture
def make_trainer(tiny_model_dir, image_adapter_path, folder, plain_rewards, tiny_config, tmp_path):
    rewards = Rewards({"likeness": Likeness()}, plain_rewards.joint)

    def make(name, resume=False, **sections):
        model, adapter = str(tiny_model_dir), str(image_adapter_path)
        config = tiny_config(
            model={"name": model, "adapter": adapter},
            sampling={"references": str(folder), "held_out_share": 0.4, **sections.pop("sampling", {})},
            reward={"view": "likeness"},
            run={**sections.pop("run", {}), "out_dir": str(tmp_path / name)},
            **sections,
        )
        bundle = load_bundle(ModelSources(model, adapter))
        return Trainer(config, bundle, rewards, resume=resume)

    return make


def test_scored_again_the_policy_that_acted_gives_the_same_probabilities(make_trainer):
    trainer = make_trainer("run")
    rollout, _ = trainer._collect(1)
    micro_step = MicroStep(torch.tensor([0, 1, 3]), torch.tensor([0, 1, 0]))
    for scored in rollout.sets:
        recorded = recorded_steps(rollout, [scored.trajectory], micro_step)
        swapped = replace(recorded, reference=recorded.reference.select([2, 0, 1]))
        with torch.no_grad():
            seen, other = (
                step_distribution(trainer.policy, x, trainer.sampling) for x in (recorded, swapped)
            )
        torch.testing.assert_close(log_prob(seen, recorded.actions), recorded.log_probs, atol=1e-5, rtol=1e-5)
        difference = log_prob(other, recorded.actions) - recorded.log_probs
        assert difference.abs().max() > 1e-4  # of another picture they are others


def test_a_resumed_run_ends_as_one_that_nobody_stopped(make_trainer, tmp_path):
    evaluation = {"every": 2, "num_prompts": 2}
    make_trainer("whole", evaluation=evaluation).run()
    first = make_trainer("parts", evaluation=evaluation)
    first.display.report = lambda record: first.request_stop()
    assert not first.run()
    assert make_trainer("parts", resume=True, evaluation=evaluation).run()
    (whole,), (parts,) = (
        sorted((tmp_path / name).glob("**/epoch_0002*/**/*.safetensors"))
        or sorted((tmp_path / name).glob("**/*0002*.safetensors"))
        for name in ("whole", "parts")
    )
    one, other = read_safetensors(whole)[0], read_safetensors(parts)[0]
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert any("to_q_ref" in key for key in one)


def test_a_run_measured_on_another_picture_of_that_name_is_not_compared(make_trainer, folder, tmp_path):
    pictures = shutil.copytree(folder, tmp_path / "pictures")
    sections = {
        "sampling": {"references": str(pictures)},
        "evaluation": {"every": 1, "num_prompts": 2, "stop_measure": "view_reward"},
        "run": {"epochs": 1},
    }
    trainer = make_trainer("run", **sections)
    trainer.run()
    assert make_trainer("run", resume=True, **sections).iteration == trainer.iteration
    held_out = trainer.subjects.split.held_out[0]
    Image.open(pictures / held_out).rotate(90).save(pictures / held_out)
    with pytest.raises(ValueError, match="was measured on other held-out prompts or pictures"):
        make_trainer("run", resume=True, **sections)


def test_a_zag_without_the_picture_is_another_zag(make_trainer):
    of_picture, without = (
        make_trainer(f"scale{scale}", sampling={"inverse_ref_scale": scale})._collect(1)[0]
        for scale in (1.0, 0.0)
    )
    standard, zigzag = (
        (a.trajectory.states - b.trajectory.states).abs().max()
        for a, b in zip(of_picture.sets, without.sets, strict=True)
    )
    assert standard == 0
    assert zigzag > 1e-4


def test_sets_of_other_pictures_differ(image_bundle, tiny_config):
    sampling = sampling_settings(tiny_config().sampling)
    policy = Policy(image_bundle, encode_cameras(image_bundle, camera_rig((0.0, 90.0))))
    prompts = ("a mug", "a mug")
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    rewards = Rewards({"likeness": Likeness()}, {})

    def draw(pictures):
        batch = Batch(prompts, encode_text(image_bundle, list(prompts)), pictures)
        noise = paired_noise(0, 0, (0, 1), 0)
        given = (policy, rewards, "standard", batch, noise, sampling, None)
        return sample_and_score(*given, policy.read_pictures(batch))

    here, swapped = draw(pictures), draw(pictures.flip(0))
    assert not torch.equal(here.images, swapped.images)
    assert here.scores.view["likeness"].shape == (2, 2)


def test_a_reward_of_pictures_says_so_where_there_are_none(tiny_config):
    rewards = Rewards({"toybox_picture": load_reward("toybox_picture")}, {})
    with pytest.raises(ValueError, match="give the pictures, or choose another reward"):
        rewards.score(torch.rand(1, 2, 3, 64, 64), ["a mug"])
