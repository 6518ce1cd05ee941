"""A tiny random model of real diffusers classes in a folder, rewards of plain arithmetic, small runs."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest

os.environ.setdefault("ACCELERATE_USE_CPU", "true")

ROOT = Path(__file__).parents[2]
DRIVER = Path(__file__).with_name("driver.py")
TIMES = ("rollout_seconds", "update_seconds")


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory) -> Path:
    """A model folder with a few thousand random weights: 8 px latents, 16 px pictures, LCM."""
    import torch
    from diffusers import AutoencoderKL, LCMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from t2mv_core.unet.adapter import create_camera_encoder, save_adapter
    from t2mv_core.unet.attention import install_multiview_attention

    folder = tmp_path_factory.mktemp("tiny-model")
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        transformer_layers_per_block=1,
        attention_head_dim=(1, 2),
        cross_attention_dim=16,
        use_linear_projection=True,
        norm_num_groups=4,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=8 + 6 * 4,
        time_cond_proj_dim=8,
    )
    unet.save_pretrained(folder / "unet")
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        mid_block_add_attention=False,
    ).save_pretrained(folder / "vae")
    text = CLIPTextConfig(
        vocab_size=600,
        hidden_size=8,
        intermediate_size=8,
        projection_dim=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=598,
        eos_token_id=599,
        pad_token_id=0,
    )
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    CLIPTextModelWithProjection(text).save_pretrained(folder / "text_encoder_2")
    LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").save_pretrained(
        folder / "scheduler"
    )
    install_multiview_attention(unet)
    for name, parameter in unet.named_parameters():
        if "to_out_mv" in name:  # zero at first in a new adapter: then views would not see each other
            torch.nn.init.normal_(parameter, std=0.2)
    save_adapter(unet, create_camera_encoder(unet, 2), folder / "mvadapter.safetensors")
    return folder


@pytest.fixture(autouse=True)
def unflushed(monkeypatch) -> None:
    """Do not wait for the disk: hundreds of small files are written, and no test cuts the power."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="session")
def image_adapter_path(tiny_model_dir, tmp_path_factory) -> Path:
    """The tiny model's adapter with reference attention, whose outputs are not zero."""
    import torch
    from diffusers import UNet2DConditionModel

    from t2mv_core.unet.adapter import create_camera_encoder, save_adapter
    from t2mv_core.unet.attention import install_multiview_attention

    torch.manual_seed(1)
    unet = UNet2DConditionModel.from_pretrained(tiny_model_dir / "unet")
    install_multiview_attention(unet, has_reference=True)
    for name, parameter in unet.named_parameters():
        if "to_out_mv" in name or "to_out_ref" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    path = tmp_path_factory.mktemp("image-adapter") / "adapter.safetensors"
    save_adapter(unet, create_camera_encoder(unet, 2), path)
    return path


@pytest.fixture
def image_bundle(tiny_model_dir, image_adapter_path):
    """The tiny model of image to multiview, freshly loaded."""
    from t2mv_core.formats.sources import ModelSources
    from t2mv_core.loading import load_bundle

    return load_bundle(ModelSources(str(tiny_model_dir), str(image_adapter_path)))


@pytest.fixture
def tiny_bundle(tiny_model_dir):
    """The tiny model, freshly loaded."""
    from t2mv_core.loading import load_bundle

    return load_bundle(str(tiny_model_dir))


@pytest.fixture(scope="session")
def plain_rewards():
    """View reward: mean red. Joint reward: minus the views' spread of mean blue."""
    from t2mv_core.rewards.base import RewardResult
    from training.algorithm.scoring import Rewards

    def redness(images, prompts):
        assert len(images) == len(prompts)
        return RewardResult(images[:, 0].mean(dim=(1, 2)))

    def agreement(images, prompts):
        blue = images[:, 2].mean(dim=(1, 2)).reshape(len(prompts), -1)
        spread = blue.std(dim=1, correction=0)
        return RewardResult(-spread, {"overall": -spread})

    return Rewards({"redness": redness}, {"agreement": agreement})


@pytest.fixture
def registered_rewards(plain_rewards, monkeypatch) -> None:
    """The plain rewards by their names, as a command finds them."""
    from t2mv_core.rewards.registry import REWARDS, RewardSpec

    for role in ("view", "joint"):
        for name, scorer in getattr(plain_rewards, role).items():
            monkeypatch.setitem(REWARDS, name, RewardSpec(role, lambda *_, scorer=scorer: scorer, "test"))


@pytest.fixture
def tiny_config(tmp_path) -> Callable:
    """Builds the configuration of a run of seconds; sections are overridden by keyword."""
    from training.config import config_from_dict

    values = {
        "sampling": {"prompts": "animals", "prompts_per_iteration": 4, "batch_size": 4, "num_steps": 2},
        "model": {"name": "tiny", "lora_rank": 2, "lora_alpha": 2, "device": "cpu"},
        "optim": {"lr": 1e-2, "prompts_per_update": 2, "micro_batch": 2},
        "reward": {"view": "redness", "joint": "agreement"},
        "constraint": {"threshold_prompts": 3},
        "run": {
            "epochs": 2,
            "iterations_per_epoch": 2,
            "sheet_prompts": 1,
            "trackers": [],
            "out_dir": str(tmp_path / "run"),
        },
    }
    values["sampling"]["azimuths_deg"] = [0, 90]

    def build(objective="mvc_zigal", **sections):
        merged = {name: {**values.get(name, {}), **sections.get(name, {})} for name in {*values, *sections}}
        return config_from_dict({"objective": objective, **merged})

    return build


class Runs:
    """Tiny runs in folders of their own, in this process or as command lines that can be killed."""

    _undisturbed: ClassVar[dict[str, dict]] = {}

    def __init__(self, root: Path, model_dir: Path, rewards, build_config) -> None:
        self.root, self.model_dir = root, model_dir
        self._rewards, self._build_config = rewards, build_config

    def config(self, name, **sections):
        run = {"sheet_prompts": 0, **sections.pop("run", {}), "out_dir": str(self.root / name)}
        model = {**sections.pop("model", {}), "name": str(self.model_dir)}
        return self._build_config(**sections, run=run, model=model)

    def trainer(self, name, resume=False, **sections):
        from t2mv_core.loading import load_bundle
        from training.run.trainer import Trainer

        config = self.config(name, **sections)
        return Trainer(config, load_bundle(str(self.model_dir)), self._rewards, resume=resume)

    def train(self, name, resume=False, **sections):
        """Train to the end; returns the outcome."""
        self.trainer(name, resume, **sections).run()
        return self.outcome(name)

    def undisturbed(self, **sections) -> dict:
        """The outcome of a run that nothing interrupts, trained once per session."""
        key = json.dumps(sections, sort_keys=True)
        if key not in self._undisturbed:
            self._undisturbed[key] = self.train("undisturbed", **sections)
        return self._undisturbed[key]

    def start(self, name, options=None, environment=None, **sections) -> subprocess.Popen:
        """`python -m training.mvczigal --resume auto` in a process; see driver.py for the options."""
        import yaml

        from training.config import config_to_dict

        preset = self.root / f"{name}.yaml"
        preset.write_text(yaml.safe_dump(config_to_dict(self.config(name, **sections))))
        words = ["--preset", str(preset), "--resume", "auto"]
        return subprocess.Popen(
            [sys.executable, str(DRIVER), json.dumps(options or {}), *words],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **(environment or {})},
            stdout=subprocess.PIPE,
            text=True,
        )

    def outcome(self, name) -> dict:
        """The saved state, weights of all LoRA files, metrics without times, evaluations."""
        from safetensors.torch import load_file

        from training.run.checkpoint import load_checkpoint
        from training.run.metrics import read_metrics

        folder = self.root / name
        found = {
            "metrics": [
                {k: v for k, v in r.items() if k not in TIMES} for r in read_metrics(folder / "metrics.jsonl")
            ]
        }
        found["evaluations"] = read_metrics(folder / "evaluations.jsonl")
        state = load_checkpoint(folder / "last.pt")
        for name in ("iteration", "dual", "prompts", "early_stop"):
            found[name] = getattr(state, name)
        average = state.average or {"shadow_params": []}
        moments = {f"{i}.{name}": x for i, of in state.optimizer["state"].items() for name, x in of.items()}
        found["weights"] = {
            "lora": state.lora,
            "average": {str(number): tensor for number, tensor in enumerate(average["shadow_params"])},
            "moments": moments,
        }
        for path in sorted((folder / "lora").glob("*.safetensors")):
            found["weights"][path.name] = load_file(path)
        return found

    @staticmethod
    def assert_identical(ours: dict, theirs: dict) -> None:
        import torch

        assert ours.keys() == theirs.keys()
        for part, values in ours.items():
            if part != "weights":
                assert values == theirs[part], part
        assert ours["weights"].keys() == theirs["weights"].keys()
        for part, tensors in ours["weights"].items():
            others = theirs["weights"][part]
            assert tensors.keys() == others.keys(), part
            assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items()), part


@pytest.fixture
def runs(tmp_path, tiny_model_dir, plain_rewards, tiny_config) -> Runs:
    """Runs below the test's folder, on one thread: on tensors this small threads only wait."""
    import torch

    torch.set_num_threads(1)
    return Runs(tmp_path, tiny_model_dir, plain_rewards, tiny_config)


EVERYTHING = {
    "optim": {"ema_decay": 0.9, "kl_weight": 1.0, "trained_steps": 1, "splits_pairs": True},
    "evaluation": {"every": 1, "prompts": "dev", "num_prompts": 1, "stop_measure": "view_reward"},
    "sampling": {"state_dtype": "bf16", "prompts_per_iteration": 2},
}


@pytest.fixture(params=["plain", "everything"])
def sections(request) -> dict:
    """Settings of a run: nothing special, or average, KL, evaluation and the cost levers all on."""
    return {"plain": {}, "everything": EVERYTHING}[request.param]
