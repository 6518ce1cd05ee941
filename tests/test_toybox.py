"""The shipped toybox: it is there, it fits its budget, and the whole path works on it."""

from pathlib import Path

import pytest
import torch

from t2mv_core.bundle import ModelBundle
from t2mv_core.cameras import DEFAULT_RIG
from t2mv_core.defaults import DEFAULTS
from t2mv_core.denoiser import encode_cameras
from t2mv_core.images import decode_latents
from t2mv_core.loading import load_bundle
from t2mv_core.lora.files import load_lora
from t2mv_core.rewards.registry import load_reward
from t2mv_core.samplers import SAMPLERS, SamplingSettings
from t2mv_core.text import encode_text
from t2mv_core.toybox import TOYBOX_DIR
from t2mv_core.toybox.judge import load_judge
from t2mv_core.trajectory import SeededNoise
from training.mvczigal import main
from training.toybox.data.captions import DEV_PROMPTS, phrase
from training.toybox.data.dataset import load_dataset, render_dataset
from training.toybox.data.scenes import FAMILIES

SETTINGS = SamplingSettings(**DEFAULTS["toybox"].numbers())


@pytest.fixture(scope="module")
def student() -> ModelBundle:
    return load_bundle("toybox")


def _sample(
    bundle: ModelBundle, prompts: list[str], sampler: str = "standard", seed: int = 0
) -> torch.Tensor:
    noise = SeededNoise(range(seed, seed + len(prompts)))
    cameras = encode_cameras(bundle, DEFAULT_RIG)
    trajectory = SAMPLERS[sampler](bundle, encode_text(bundle, prompts), cameras, noise, SETTINGS)
    return decode_latents(bundle.vae, trajectory.denoised)


def test_shipped_weights_are_fp16_and_at_most_40_mb() -> None:
    from safetensors import safe_open

    files = sorted(TOYBOX_DIR.rglob("*.safetensors"))
    assert len(files) == 11  # two UNets, VAE, two text encoders, two MV-Adapters, two rewards, judge, LoRA
    assert sum(path.stat().st_size for path in files) <= 40e6
    for path in files:
        with safe_open(path, framework="pt") as opened:
            dtypes = {opened.get_slice(key).get_dtype() for key in opened.keys()}  # noqa: SIM118
        assert "F32" not in dtypes, path


def test_student_draws_what_dev_prompts_ask_for_far_above_chance(student: ModelBundle) -> None:
    """Chance is 1/22 for the family, 1/10 for the colour, 1/6 for the azimuth; figures: MODEL_CARD."""
    specs = DEV_PROMPTS[:16]
    verdict = load_judge().judge_views(_sample(student, [spec.prompt for spec in specs]), specs)
    asymmetric = torch.tensor([FAMILIES[spec.family].is_asymmetric for spec in specs])
    assert verdict.family.float().mean() >= 0.5
    assert verdict.colour.float().mean() >= 0.5
    assert verdict.azimuth[asymmetric].float().mean() >= 0.5


def test_a_sentence_becomes_views_rewards_become_a_lora_and_the_lora_changes_the_views(
    student: ModelBundle, tmp_path: Path
) -> None:
    """The whole path, through the command line a user types: two short iterations, then the file loads."""
    words = [
        "sampling.prompts_per_iteration=2",
        "optim.prompts_per_update=2",
        "run.epochs=1",
        "optim.lr=1e-2",
        "constraint.threshold_prompts=2",
    ]
    status = main(
        ["--preset", "demo", *words, "run.iterations_per_epoch=2", f"run.out_dir={tmp_path / 'run'}"]
    )
    assert status == 0
    lora = tmp_path / "run" / "lora" / "epoch_0001.safetensors"
    prompts = ["a red mug"]
    before = _sample(student, prompts)
    after = _sample(load_lora(student, lora), prompts)
    assert before.shape == after.shape == (1, 6, 3, 64, 64)
    assert (before - after).abs().max() > 1e-3
    assert torch.equal(before, _sample(student, prompts))


def test_the_rewards_know_the_right_prompt_the_right_views_and_clean_pictures(tmp_path: Path) -> None:
    """Twelve test scenes: another prompt, turned views and noise each lower the head that is there for it."""
    render_dataset(tmp_path, num_scenes=12, seed=1, allow_held_out=True)
    rendered = load_dataset(tmp_path)
    clip, hyperscore = load_reward("toybox_clip"), load_reward("toybox_hyperscore")
    scenes = rendered.scenes
    views = torch.from_numpy(rendered.images).movedim(-1, -3).float() / 255  # [12, 6, 3, 64, 64]
    right = [phrase(s.family, s.colour, s.part_colour, companion_colour=s.companion_colour) for s in scenes]
    wrong = [*right[1:], right[0]]  # neighbours are of other families

    def joint(pictures: torch.Tensor, prompts: list[str]) -> dict[str, torch.Tensor]:
        return hyperscore(pictures.flatten(0, 1), prompts).details

    def single(prompts: list[str]) -> torch.Tensor:
        return clip(views.flatten(0, 1), [prompt for prompt in prompts for _ in range(6)]).scores

    clean = joint(views, right)
    assert (single(right) > single(wrong)).float().mean() >= 0.95
    assert (clean["alignment"] > joint(views, wrong)["alignment"]).float().mean() >= 0.9
    is_asymmetric = torch.tensor([FAMILIES[scene.family].is_asymmetric for scene in scenes])
    turned = joint(views.roll(1, dims=1), right)
    assert (clean["geometry"] > turned["geometry"])[is_asymmetric].float().mean() >= 0.9
    noise = 0.15 * torch.randn(views.shape, generator=torch.Generator().manual_seed(0))
    noisy = joint((views + noise).clamp(0, 1), right)
    assert (clean["texture"] > noisy["texture"]).float().mean() >= 0.9
