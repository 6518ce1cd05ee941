"""The training loop on a tiny random model: what it leaves behind, how it stops, what it refuses."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate import Accelerator, DistributedType
from accelerate.tracking import GeneralTracker
from safetensors import safe_open
from safetensors.torch import load_file

from t2mv_core.loading import load_bundle
from t2mv_core.lora.files import load_lora, lora_state_dict
from t2mv_core.rewards.base import RewardResult
from t2mv_core.rewards.inputs import PromptTokens
from t2mv_core.text import clip_tokenizer
from training.algorithm.advantages import iteration_advantages
from training.algorithm.constraint import DualVariable
from training.algorithm.objectives import OBJECTIVES
from training.algorithm.scoring import NonFiniteError, Rewards
from training.config import config_from_dict
from training.models.policy import LORA_NAME
from training.run.checkpoint import load_checkpoint
from training.run.metrics import METRICS, read_metrics
from training.run.trainer import Trainer

OF_KINDS = {
    ("standard", "zmv"): ("standard", "zmv"),
    ("standard", "redraw"): ("standard", "redraw"),
    ("standard", "standard"): ("standard", "again"),
    ("zmv", "zmv"): ("zmv", "again"),
}
"""How the rewards' metrics are called, by the samplers of the pairs."""


def metrics_of(objective):
    """Names of the metrics of a run with a joint reward."""
    absent = {"joint_share"} if OBJECTIVES[objective].uses_dual else {"lambda", "threshold", "joint_spread"}
    kinds = OF_KINDS[OBJECTIVES[objective].samplers]
    rewards = {f"{role}_reward_{kind}" for role in ("view", "joint") for kind in kinds}
    others = {name for name in METRICS if "_reward_" not in name} - absent
    return rewards | (others if kinds == ("standard", "zmv") else others - {"joint_gap"})


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_every_objective_trains(objective, tiny_bundle, plain_rewards, tiny_config):
    trainer = Trainer(
        tiny_config(objective, run={"epochs": 1, "sheet_prompts": 0}), tiny_bundle, plain_rewards
    )
    assert trainer.run()
    records = read_metrics(trainer.folder.metrics_path)
    assert [record["iteration"] for record in records] == [1, 2]
    assert all(set(record) == metrics_of(objective) for record in records)
    assert all(all(map(math.isfinite, record.values())) for record in records)
    assert records[1]["approx_kl"] > 0
    for record in records:
        share = {"zigal_view": 0.0, "zigal_weighted": 0.5}.get(objective, 1.0)
        assert record.get("joint_share", share) == share
        if "joint_gap" in record:
            gap = record["joint_reward_zmv"] - record["joint_reward_standard"]
            assert record["joint_gap"] == pytest.approx(gap, abs=1e-7)
            assert gap != 0
    has_dual = load_checkpoint(trainer.folder.state_path).dual is not None
    assert has_dual == OBJECTIVES[objective].uses_dual


def test_a_run_leaves_its_folder_and_trains_only_the_lora(
    tiny_model_dir, tiny_bundle, plain_rewards, tiny_config
):
    before = {name: tensor.clone() for name, tensor in tiny_bundle.unet.state_dict().items()}
    config = tiny_config()
    trainer = Trainer(config, tiny_bundle, plain_rewards)
    trainer.run()
    after = {
        name.replace(".base_layer", ""): tensor for name, tensor in tiny_bundle.unet.state_dict().items()
    }
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert all(bool(p.any()) for name, p in after.items() if "lora_B" in name)
    root = trainer.folder.root
    for name in (
        "curves.png",
        "samples/epoch_0001.png",
        "samples/epoch_0002.png",
        "lora/epoch_0001.safetensors",
        "last.pt",
    ):
        assert (root / name).exists(), name
    assert config_from_dict(yaml.safe_load((root / "config.yaml").read_text())) == config
    lora = root / "lora" / "epoch_0002.safetensors"
    with safe_open(lora, framework="pt") as opened:
        facts = opened.metadata()
    assert (facts["rank"], facts["alpha"], facts["step"], facts["preset"]) == ("2", "2.0", "4", "custom")
    assert facts["base_model"] == str(tiny_model_dir)
    records = read_metrics(root / "metrics.jsonl")
    mean = (records[2]["view_reward_standard"] + records[3]["view_reward_standard"]) / 2
    assert float(facts["view_reward_mean"]) == pytest.approx(mean)
    loaded = load_lora(load_bundle(str(tiny_model_dir)), lora)
    assert loaded.loras[0].num_matched > 0
    assert loaded.loras[0].unmatched == ()


def test_the_log_says_once_a_file_what_is_not_read_as_it_may_be_meant(
    tiny_bundle, plain_rewards, tiny_config, tmp_path, caplog
):
    # The tiny encoders have 12 places, 10 for words; a letter is a token.
    (tmp_path / "train.txt").write_text("a (b:2)\na b\na AND b\n" + "c " * 10 + "lost")
    (tmp_path / "asked.txt").write_text("a d\n[d|e]\n")
    config = tiny_config(
        sampling={"prompts": str(tmp_path / "train.txt"), "negative_prompt": "(e:2)"},
        evaluation={"every": 1, "prompts": str(tmp_path / "asked.txt")},
    )
    reader = SimpleNamespace(tokens=PromptTokens(clip_tokenizer(600), 13, "reader"))
    with caplog.at_level("WARNING", logger="training.data.text_cache"):
        Trainer(config, tiny_bundle, Rewards({"redness": reader}, plain_rewards.joint))
    words = "T2MV reads as plain words, unlike other programs:"
    assert [record.getMessage() for record in caplog.records if "text_cache" in record.name] == [
        f"{tmp_path / 'train.txt'}: {words} “(b:2)”, “AND” (in 2 of 4 prompts).",
        f"{tmp_path / 'train.txt'}: The text encoders read 10 tokens of a prompt; they do not read “lost” "
        "(in 1 of 4 prompts).",
        f"{tmp_path / 'train.txt'}: reader reads 11 tokens of a prompt; it does not read “lost” "
        "(in 1 of 4 prompts).",
        f"sampling.negative_prompt: {words} “(e:2)”.",
        f"{tmp_path / 'asked.txt'}: {words} “[d|e]” (in 1 of 2 prompts).",
    ]


def test_learning_follows_the_advantage(tiny_bundle, plain_rewards, tiny_config):
    """After an update on one rollout, the better trajectory of every pair has gained density on the other."""
    # 200 times more lr than curvature wants, one view, so that the direction is plain
    config = tiny_config(
        "zigal_view",
        optim={"lr": 1e-3, "prompts_per_update": None, "clip_range": 1.0},
        sampling={"azimuths_deg": [0]},
    )
    trainer = Trainer(config, tiny_bundle, plain_rewards)
    rollout, table = trainer._collect(1)
    advantages = trainer._advantages(table)
    first = trainer._update(1, rollout, advantages)
    second = trainer._update(2, rollout, advantages)
    assert second.loss < first.loss


def test_a_stop_during_an_evaluation_keeps_the_iteration_and_evaluates_later(
    tiny_model_dir, plain_rewards, tiny_config, tmp_path
):
    evaluation = {"every": 1, "prompts": "dev", "num_prompts": 2, "stop_measure": "view_reward"}

    def trainer_in(name, resume=False):
        run = {"out_dir": str(tmp_path / name), "epochs": 1, "iterations_per_epoch": 2, "save_every": 5}
        config = tiny_config(run=run, evaluation=evaluation)
        return Trainer(config, load_bundle(str(tiny_model_dir)), plain_rewards, resume=resume)

    whole, stopped = trainer_in("whole"), trainer_in("stopped")
    assert whole.run()
    measure = stopped.monitor._measure

    def stop_and_measure(begin):
        if stopped.iteration == 1:
            stopped.request_stop()
        return measure(begin)

    stopped.monitor._measure = stop_and_measure
    assert not stopped.run()
    assert [r["iteration"] for r in read_metrics(stopped.folder.evaluations_path)] == [0]
    resumed = trainer_in("stopped", resume=True)
    assert resumed.iteration == 1
    assert resumed.run()
    for name in ("metrics_path", "evaluations_path"):
        expected, records = (read_metrics(getattr(t.folder, name)) for t in (whole, resumed))
        for record in (*expected, *records):
            record.pop("rollout_seconds", None), record.pop("update_seconds", None)
        assert records == expected


def test_a_stop_during_the_update_finishes_the_iteration(tiny_bundle, plain_rewards, tiny_config):
    trainer = Trainer(tiny_config(), tiny_bundle, plain_rewards)
    apply = trainer.learner.apply

    def apply_and_stop(*arguments):
        trainer.request_stop()
        return apply(*arguments)

    trainer.learner.apply = apply_and_stop
    assert not trainer.run()
    assert trainer.iteration == len(read_metrics(trainer.folder.metrics_path)) == 1


def test_a_reward_that_is_no_number_stops_before_the_update(tiny_bundle, plain_rewards, tiny_config):
    trainer = Trainer(tiny_config(), tiny_bundle, plain_rewards)
    broken = lambda images, prompts: RewardResult(torch.full((len(prompts),), torch.nan))  # noqa: E731
    trainer.rewards = Rewards(plain_rewards.view, {"agreement": broken})
    before = [parameter.clone() for parameter in trainer.learner.parameters]
    with pytest.raises(NonFiniteError, match="The reward agreement of 'a photo of"):
        trainer.run()
    assert all(map(torch.equal, before, trainer.learner.parameters))


def test_a_folder_with_a_run_is_refused_without_resume(tiny_model_dir, plain_rewards, tiny_config, tmp_path):
    config = tiny_config(run={"epochs": 1, "iterations_per_epoch": 1, "sheet_prompts": 0})
    Trainer(config, load_bundle(str(tiny_model_dir)), plain_rewards).run()
    with pytest.raises(FileExistsError, match="holds a run; continue it with resume"):
        Trainer(config, load_bundle(str(tiny_model_dir)), plain_rewards)
    changes = (
        (
            {"model": {"lora_rank": 4}},
            "model.lora_rank=2, now it is 4",
            "model.lora_rank the run was started",
        ),
        (
            {"optim": {"ema_decay": 0.9}},
            "optim.ema_decay=None, now it is 0.9",
            "kept no moving average; resume it with optim.ema_decay=null",
        ),
    )
    for change, words, _ in changes:
        with pytest.raises(ValueError, match=f"was started with {words}"):
            Trainer(tiny_config(**change), load_bundle(str(tiny_model_dir)), plain_rewards, resume=True)
    (tmp_path / "run" / "config.yaml").unlink()  # what the state itself says
    for change, _, words in changes:
        with pytest.raises(ValueError, match=words):
            Trainer(tiny_config(**change), load_bundle(str(tiny_model_dir)), plain_rewards, resume=True)


def test_a_run_without_its_saved_state_keeps_what_it_has(tiny_model_dir, plain_rewards, tiny_config):
    """It would begin at iteration 1 and delete every LoRA and record of the run before."""
    config = tiny_config(run={"epochs": 2, "iterations_per_epoch": 1, "sheet_prompts": 0, "save_every": 1})
    folder = Trainer(config, load_bundle(str(tiny_model_dir)), plain_rewards).folder
    Trainer(config, load_bundle(str(tiny_model_dir)), plain_rewards).run()
    folder.state_path.unlink()
    for resume in (False, True):
        with pytest.raises(FileExistsError, match=r"holds a run whose saved state last.pt is gone"):
            Trainer(config, load_bundle(str(tiny_model_dir)), plain_rewards, resume=resume)
    assert len(folder.epoch_loras()) == 2


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_trained_nothing_may_begin_anew_with_other_settings(
    tiny_model_dir, plain_rewards, tiny_config, monkeypatch, resume
):
    """Memory was short in the first rollout, and the error advises other settings."""
    run = {"epochs": 1, "iterations_per_epoch": 1, "sheet_prompts": 0}
    failing = Trainer(tiny_config(run=run), load_bundle(str(tiny_model_dir)), plain_rewards)
    monkeypatch.setattr("training.run.trainer.collect", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        failing.run()
    monkeypatch.undo()
    assert failing.folder.state_path.is_file()
    config = tiny_config(run=run, model={"lora_rank": 4})
    again = Trainer(config, load_bundle(str(tiny_model_dir)), plain_rewards, resume=resume)
    assert again.run()
    assert again.iteration == 1


def test_a_folder_in_use_is_refused_before_anything_in_it_changes(tiny_model_dir, plain_rewards, tiny_config):
    config = tiny_config(run={"epochs": 1, "iterations_per_epoch": 1, "sheet_prompts": 0})
    trainer = Trainer(config, load_bundle(str(tiny_model_dir)), plain_rewards)
    trainer.run()
    root = trainer.folder.root
    with trainer.folder.metrics_path.open("a") as file:  # of the other process, not saved yet
        file.write(trainer.folder.metrics_path.read_text().replace('"iteration": 1', '"iteration": 2'))
    (root / "lora" / ".epoch_0002.safetensors.1.tmp").write_text("being written")

    def contents():
        return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}

    before = contents()
    with trainer.folder.locked(), pytest.raises(FileExistsError, match="Another process is training in"):
        Trainer(config, load_bundle(str(tiny_model_dir)), plain_rewards, resume=True).run()
    assert contents() == before


def greenness(images, prompts):
    return RewardResult(images[:, 1].mean(dim=(1, 2)))


def test_several_rewards_are_logged_apart_and_as_their_weighted_mean(tiny_bundle, plain_rewards, tiny_config):
    rewards = Rewards(
        {"redness": plain_rewards.view["redness"], "greenness": greenness},
        {
            "agreement": plain_rewards.joint["agreement"],
            "total": lambda images, prompts: RewardResult(
                images.mean(dim=(1, 2, 3)).reshape(len(prompts), -1).sum(1)
            ),
        },
    )
    weights = {"view": {"redness": 3, "greenness": 1}, "joint": {"agreement": 1, "total": 4}}
    config = tiny_config(
        reward=weights, constraint={"threshold_prompts": 0}, run={"epochs": 1, "sheet_prompts": 0}
    )
    trainer = Trainer(config, tiny_bundle, rewards)
    tables = []
    advantages = trainer._advantages
    trainer._advantages = lambda table: tables.append(table) or advantages(table)
    trainer.run()
    for record, table in zip(read_metrics(trainer.folder.metrics_path), tables, strict=True):
        expected = {
            f"{role}_reward_{kind}/{name}": float(values[:, number].double().mean())
            for role in ("view", "joint")
            for name, values in getattr(table, role).items()
            for number, kind in enumerate(("standard", "zmv"))
        }
        assert len(expected) == 8
        assert {name: value for name, value in record.items() if "/" in name} == pytest.approx(expected)
        for kind in ("standard", "zmv"):
            red, green = (expected[f"view_reward_{kind}/{name}"] for name in ("redness", "greenness"))
            assert record[f"view_reward_{kind}"] == pytest.approx((3 * red + green) / 4)
            apart, total = (expected[f"joint_reward_{kind}/{name}"] for name in ("agreement", "total"))
            assert record[f"joint_reward_{kind}"] == pytest.approx((apart + 4 * total) / 5)
    # the constraint is on the weighted mean of both joint rewards, over both kinds of trajectories
    first = read_metrics(trainer.folder.metrics_path)[0]
    assert first["threshold"] == pytest.approx(
        (first["joint_reward_standard"] + first["joint_reward_zmv"]) / 2
    )


@pytest.mark.parametrize("objective", ["zigal_view", "ppo", "reward_difference"])
def test_one_view_without_a_joint_reward_is_plain_text_to_image(
    objective, tiny_model_dir, plain_rewards, tiny_config, tmp_path
):
    found = []
    for name, sampling in (("first", {"num_views": 1}), ("only", {"azimuths_deg": [0]})):
        config = tiny_config(
            objective,
            sampling=sampling,
            reward={"joint": {}},
            run={"epochs": 1, "sheet_prompts": 1, "out_dir": str(tmp_path / name)},
        )
        trainer = Trainer(config, load_bundle(str(tiny_model_dir)), Rewards(plain_rewards.view, {}))
        assert trainer.policy.cameras.num_views == 1
        assert trainer.run()
        records = read_metrics(trainer.folder.metrics_path)
        expected = {name for name in metrics_of(objective) if "joint" not in name} - {"lambda", "threshold"}
        assert all(set(record) == expected for record in records)
        assert all(all(map(math.isfinite, record.values())) for record in records)
        assert records[1]["approx_kl"] > 0
        with safe_open(trainer.folder.lora_path(1), framework="pt") as opened:
            assert opened.metadata()["joint_reward_mean"] == ""
        assert trainer.folder.curves_path.exists()
        found.append(load_checkpoint(trainer.folder.state_path).lora)
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


@pytest.mark.parametrize(
    ("objective", "decay", "unit", "violated_lr"),
    [
        ("mvc_zigal", 0.6, "spread", 0.2),
        ("mvc_zigal_fixed_threshold", 1.0, "raw", 2.0),
        ("mvc_zigal_equal_rates", 0.6, "spread", 0.2),
        ("reward_difference", 0.6, "raw", 2.0),
    ],
)
def test_the_dual_variable_follows_the_joint_reward(
    objective, decay, unit, violated_lr, tiny_bundle, plain_rewards, tiny_config
):
    rates = {"unit": unit, "violated_lr": violated_lr, "satisfied_lr": violated_lr / 4}
    config = tiny_config(
        objective,
        sampling={"prompts_per_iteration": 2},
        constraint={"threshold_decay": 0.6, "lambda_init": 0.3, "threshold_prompts": 0, **rates},
        run={"epochs": 1, "iterations_per_epoch": 5, "sheet_prompts": 0},
    )
    trainer = Trainer(config, tiny_bundle, plain_rewards)
    used, tables = [], []
    advantages = trainer._advantages
    trainer._advantages = lambda table: (
        used.append(trainer.dual.lambda_) or tables.append(table) or advantages(table)
    )
    trainer.run()
    records = read_metrics(trainer.folder.metrics_path)
    if objective == "mvc_zigal_equal_rates":
        rates["satisfied_lr"] = violated_lr
    dual = DualVariable(threshold_decay=decay, initial_lambda=0.3, **rates)
    for record, table in zip(records, tables, strict=True):
        dual.step(table.joint["agreement"].flatten().tolist())
        assert (record["lambda"], record["threshold"], record["joint_spread"]) == pytest.approx(
            (dual.lambda_, dual.threshold, dual.spread)
        )
    assert used == [record["lambda"] for record in records]  # the update answers this iteration's violation
    assert len({record["lambda"] for record in records}) > 3
    thresholds = {record["threshold"] for record in records}
    assert (len(thresholds) == 1) == (objective == "mvc_zigal_fixed_threshold")


@pytest.mark.parametrize(
    ("objective", "lambda_", "normalization"),
    [
        ("zigal_view", 0.0, "iteration"),
        ("zigal_joint", math.inf, "prompt"),
        ("zigal_weighted", 1.0, "iteration"),
        ("mvc_zigal", 2.5, "prompt"),
        ("mvc_zigal_fixed_threshold", 2.5, "iteration"),
        ("mvc_zigal_equal_rates", 2.5, "prompt"),
        ("reward_difference", 2.5, "iteration"),
        ("ppo", 2.5, "prompt"),
        ("mv_pg", math.inf, "iteration"),
        ("mv_zigpg", math.inf, "prompt"),
        ("mv_dpo", math.inf, "iteration"),
    ],
)
def test_objectives_weigh_the_two_advantages(
    objective, lambda_, normalization, tiny_bundle, plain_rewards, tiny_config
):
    trainer = Trainer(
        tiny_config(objective, reward={"normalization": normalization}), tiny_bundle, plain_rewards
    )
    if trainer.dual is not None:
        trainer.dual.lambda_ = 2.5
    rollout, table = trainer._collect(1)
    assert [scored.sampler for scored in rollout.sets] == list(OBJECTIVES[objective].samplers)
    expected = iteration_advantages(
        table, {"redness": 1.0}, {"agreement": 1.0}, lambda_, normalization == "prompt"
    )
    assert torch.equal(trainer._advantages(table), expected)
    # rows of the table are the prompts' slots
    for number, scored in enumerate(rollout.sets):
        assert torch.equal(table.view["redness"][:, number], scored.scores.view["redness"])
        assert torch.equal(table.joint["agreement"][:, number], scored.scores.joint["agreement"])
    assert table.prompts == rollout.prompts


def test_the_advantage_gap_is_first_minus_second(tiny_bundle, plain_rewards, tiny_config):
    trainer = Trainer(tiny_config("zigal_view", run={"epochs": 1}), tiny_bundle, plain_rewards)
    calls = iter(range(100))

    def second_is_better(images, prompts):
        """Standard and ZMV sets are scored in turn."""
        return RewardResult(torch.full((len(images),), float(next(calls) % 2)))

    trainer.rewards = Rewards({"redness": second_is_better}, plain_rewards.joint)
    trainer.run()
    # half of the rewards are 0, half 1: mean 1/2, deviation 1/2, advantages -1 and 1
    assert read_metrics(trainer.folder.metrics_path)[0]["advantage_gap"] == pytest.approx(-2.0, abs=1e-6)


def kohya(name):
    """The name in a file of a LoRA's matrix."""
    module, _, part = name.partition(".lora_")
    end = {"A.weight": "lora_down.weight", "B.weight": "lora_up.weight"}[part]
    return f"lora_unet_{module.replace('.', '_')}.{end}"


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_the_epochs_file_holds_the_average_and_the_state_the_trained_weights(
    ema_decay, tiny_bundle, plain_rewards, tiny_config
):
    config = tiny_config(optim={"ema_decay": ema_decay}, run={"epochs": 1, "sheet_prompts": 0})
    trainer = Trainer(config, tiny_bundle, plain_rewards)
    trainer.run()
    state, saved = load_checkpoint(trainer.folder.state_path).lora, load_file(trainer.folder.lora_path(1))
    live = lora_state_dict(trainer.policy.bundle.unet, LORA_NAME)
    epoch = {name: saved[kohya(name)] for name in live}
    assert live.keys() == state.keys()
    assert len(saved) == len(live) * 3 // 2  # an alpha for each pair
    assert all(torch.equal(state[name], tensor) for name, tensor in live.items())
    with safe_open(trainer.folder.lora_path(1), framework="pt") as opened:
        weights = opened.metadata()["weights"]
    if ema_decay is None:
        assert all(torch.equal(epoch[name], tensor) for name, tensor in state.items())
        assert weights == "trained"
        return
    assert weights == "average, decay 0.9"
    shadows = {
        parameter.data_ptr(): shadow
        for parameter, shadow in zip(trainer.learner.parameters, trainer.ema.shadow_params, strict=True)
    }
    for name, tensor in live.items():
        assert torch.equal(epoch[name], shadows[tensor.data_ptr()])
        assert not torch.equal(epoch[name], tensor)


def test_only_the_newest_loras_are_kept(tiny_bundle, plain_rewards, tiny_config):
    run = {"epochs": 4, "iterations_per_epoch": 1, "sheet_prompts": 0, "keep_loras": 2}
    evaluation = {"every": 1, "prompts": "dev", "num_prompts": 1, "stop_measure": "view_reward"}
    sampling = {"prompts_per_iteration": 2}
    trainer = Trainer(
        tiny_config(run=run, evaluation=evaluation, sampling=sampling), tiny_bundle, plain_rewards
    )
    trainer.run()
    assert sorted(path.name for path in (trainer.folder.root / "lora").iterdir()) == [
        "best.safetensors",
        "epoch_0003.safetensors",
        "epoch_0004.safetensors",
    ]


def test_a_loss_that_is_no_number_leaves_the_last_good_state(
    tiny_model_dir, plain_rewards, tiny_config, tmp_path
):
    def run(name, breaks_in=None):
        config = tiny_config(
            optim={"ema_decay": 0.9},
            sampling={"prompts_per_iteration": 2},
            run={"sheet_prompts": 0, "out_dir": str(tmp_path / name)},
        )
        trainer = Trainer(config, load_bundle(str(tiny_model_dir)), plain_rewards, resume=True)
        if breaks_in is not None:
            loss, update = trainer.objective.loss, trainer._update

            def broken(iteration, *given):
                factor = torch.nan if iteration == breaks_in else 1.0
                settings = replace(trainer.learner.settings, loss=lambda *a: factor * loss(*a))
                trainer.learner.settings = settings
                return update(iteration, *given)

            trainer._update = broken
        trainer.run()
        return load_checkpoint(trainer.folder.state_path).lora

    with pytest.raises(NonFiniteError, match="Resume from the last saved state"):
        run("broken", breaks_in=3)
    saved = load_checkpoint(tmp_path / "broken" / "last.pt")
    assert saved.iteration == len(read_metrics(tmp_path / "broken" / "metrics.jsonl")) == 2
    resumed, whole = run("broken"), run("whole")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_sharded_models_are_refused(kind, tiny_bundle, plain_rewards, tiny_config):
    with pytest.raises(ValueError, match="only a LoRA is trained here"):
        Trainer(tiny_config(), tiny_bundle, plain_rewards, SimpleNamespace(distributed_type=kind))


def test_prompts_that_do_not_divide_among_processes_are_refused(tiny_bundle, plain_rewards, tiny_config):
    processes = SimpleNamespace(distributed_type=DistributedType.NO, num_processes=3, process_index=0)
    with pytest.raises(ValueError, match="prompts_per_iteration=4 does not divide among 3 processes"):
        Trainer(tiny_config(), tiny_bundle, plain_rewards, processes)


def test_trackers_get_the_metrics_and_the_evaluations(tiny_bundle, plain_rewards, tiny_config):
    class Memory(GeneralTracker):
        name, requires_logging_directory = "memory", False
        main_process_only = True

        def __init__(self):
            super().__init__()
            self.settings, self.logged, self.is_finished = {}, [], False

        @property
        def tracker(self):
            return self

        def store_init_configuration(self, values):
            self.settings = values

        def log(self, values, step, **_):
            self.logged.append((step, values))

        def finish(self):
            self.is_finished = True

    memory = Memory()
    accelerator = Accelerator(cpu=True, log_with=[memory])
    evaluation = {"every": 2, "prompts": "dev", "num_prompts": 1}
    config = tiny_config(evaluation=evaluation, run={"epochs": 1, "sheet_prompts": 0})
    trainer = Trainer(config, tiny_bundle, plain_rewards, accelerator)
    trainer.run()
    assert memory.settings["optim.lr"] == json.dumps(1e-2)
    assert memory.settings["objective"] == '"mvc_zigal"'
    assert memory.is_finished
    records = read_metrics(trainer.folder.metrics_path)
    start, end = (
        {f"evaluation/{name}": value for name, value in measured.items() if name != "iteration"}
        for measured in read_metrics(trainer.folder.evaluations_path)
    )
    assert memory.logged == [(0, start), (1, records[0]), (2, records[1]), (2, end)]
    assert "evaluation/view_reward" in end


def test_tensorboard_gets_its_file(tiny_bundle, plain_rewards, tiny_config, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tiny_config(run={"epochs": 1, "sheet_prompts": 0, "trackers": ["tensorboard"]})
    accelerator = Accelerator(cpu=True, log_with=["tensorboard"], project_dir=config.run.out_dir)
    trainer = Trainer(config, tiny_bundle, plain_rewards, accelerator)
    trainer.run()
    events = EventAccumulator(str(tmp_path / "run" / "trackers"))
    events.Reload()
    losses = [record["loss"] for record in read_metrics(trainer.folder.metrics_path)]
    assert [event.step for event in events.Scalars("loss")] == [1, 2]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses)
