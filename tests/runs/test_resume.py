import shutil
from pathlib import Path

import pytest
import torch
from helpers.command_line import SMOKE, metrics, mistake, weights
from omegaconf import OmegaConf

from lightconv.cli import resume
from lightconv.errors import InputError
from lightconv.runs.configuration import load_config
from lightconv.runs.resume import check_end, resumed_config

__all__ = ["mistake"]

STORED = Path(__file__).parent / "stored"
GROUPS = {"data", "model", "optimizer", "scheduler", "trainer", "experiment"}
CONSTANT = (*SMOKE, "scheduler=none", "optimizer=sgd", "optimizer.lr=0.1")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("optimizer=sgd", "keeps its optimizer=sgd"),
        ("+experiment=lenet_fashion_mnist", "keeps its"),
        ("scheduler.max_lr=1", "keeps its scheduler.max_lr"),
        ("+scheduler.div_factor=5", "keeps its scheduler.div_factor"),
        ("~scheduler.pct_start", "keeps its scheduler.pct_start"),
        ("optimizer.lr=1", "goes on as the run's scheduler has left it"),
        ("+optimizer.betas=[0.8,0.9]", "goes on as the run's scheduler has left it"),
        ("optimizer._target_=torch.optim.SGD", "keeps its optimizer._target_"),
        ("seed=1", "keeps its seed"),
        ("find_lr=true", "keeps its learning rate"),
        ("optimizer.weight_decay=0,1", "one value"),
    ],
)
def test_refused_settings(setting, words):
    with pytest.raises(InputError, match=words):
        resumed_config(STORED, [setting], GROUPS)


def test_applied_settings():
    settings = [
        "seed=0",  # as the run's own
        "trainer.max_epochs=null",
        "+trainer.gradient_clip_algorithm=value",
        "~data.seed",
        "optimizer.weight_decay=0.5",
    ]
    config = resumed_config(STORED, settings, GROUPS)
    assert config.trainer.max_epochs is None
    assert config.trainer.gradient_clip_algorithm == "value"
    assert "seed" not in config.data
    assert config.optimizer.weight_decay == 0.5
    assert config.scheduler == load_config(STORED).scheduler


def test_settings_of_optimizer_take_the_place_of_the_checkpoints(lightconv):
    def group():
        checkpoint = torch.load("runs/mine/checkpoints/last.ckpt", weights_only=True)
        return checkpoint["optimizer_states"][0]["param_groups"][0]

    lightconv("train", *CONSTANT, "trainer.max_epochs=1", "hydra.run.dir=runs/mine")
    lightconv("train", "resume=runs/mine", "trainer.max_epochs=2", "optimizer.lr=0.05", "optimizer.momentum=0.5")
    assert (group()["lr"], group()["momentum"]) == (0.05, 0.5)
    # later without a word: the run has its last settings
    lightconv("train", "resume=runs/mine", "trainer.max_epochs=3")
    assert (group()["lr"], group()["momentum"]) == (0.05, 0.5)
    assert load_config(Path("runs/mine")).trainer.max_epochs == 3


def test_setting_of_an_interrupted_resume_is_not_lost(lightconv):
    lightconv("train", *CONSTANT, "trainer.max_epochs=1", "hydra.run.dir=runs/mine")
    checkpoint = Path("runs/mine/checkpoints/last.ckpt").read_bytes()
    lightconv("train", "resume=runs/mine", "trainer.max_epochs=2", "optimizer.lr=0.05")
    expected = weights("runs/mine")
    # as if the resumed run had been killed before its first checkpoint
    Path("runs/mine/checkpoints/last.ckpt").write_bytes(checkpoint)
    lightconv("train", "resume=runs/mine")
    assert all(torch.equal(expected[name], tensor) for name, tensor in weights("runs/mine").items())


@pytest.mark.parametrize("scheduler", ["one_cycle", "cosine"])
def test_finished_schedule_does_not_rise_again(lightconv, mistake, scheduler):
    lightconv("train", *SMOKE, f"scheduler={scheduler}", "hydra.run.dir=runs/mine")
    before = {path: path.read_bytes() for path in Path("runs/mine/checkpoints").iterdir()}
    message = mistake(lightconv, "train", "resume=runs/mine", "trainer.max_epochs=2")
    assert "ends at step 3, and the run at step 6" in message
    assert "start a new run with more epochs" in message
    assert before == {path: path.read_bytes() for path in Path("runs/mine/checkpoints").iterdir()}


def test_finished_schedule_of_a_stage_does_not_rise_again(lightconv, mistake):
    pretrained = ("model=pretrained", "model.weights=none", "model.image_size=32", "finetune=gradual")
    stages = "finetune.stages=[{epoch: 0, train: head}, {epoch: 1, train: 1}]"
    lightconv("train", *SMOKE, *pretrained, stages, "trainer.max_epochs=2", "hydra.run.dir=runs/mine")
    message = mistake(lightconv, "train", "resume=runs/mine", "trainer.max_epochs=3")
    assert "ends at step 6, and the run at step 9" in message


def test_network_that_does_not_fit(lightconv, mistake):
    lightconv("train", *SMOKE, "hydra.run.dir=runs/mine")
    message = mistake(lightconv, "train", "resume=runs/mine", "model.width=2")
    assert "model.conv1.weight is [6, 1, 5, 5] in the checkpoint and [12, 1, 5, 5] in the network" in message


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_epochs": -1, "max_steps": -1}, None),
        ({"max_epochs": None, "max_steps": 8}, None),
        ({"max_epochs": 1, "max_steps": -1}, None),
        ({"max_epochs": 0, "max_steps": -1}, "trainer.max_epochs=0: .* is in epoch 2 already"),
        ({"max_epochs": -1, "max_steps": 7}, "trainer.max_steps=7: .* has made 8 steps already"),
    ],
)
def test_end_before_the_checkpoint(settings, words):
    content = {"epoch": 1, "global_step": 8}  # the second epoch
    if words is None:
        check_end(content, OmegaConf.create(settings), STORED)
    else:
        with pytest.raises(InputError, match=words):
            check_end(content, OmegaConf.create(settings), STORED)


def test_command_repeated_as_it_was(lightconv):
    command = ("train", *SMOKE, "optimizer=sgd", "+scheduler.total_steps=9", "hydra.run.dir=runs/mine", "resume=auto")
    lightconv(*command)
    lightconv(*command, "trainer.max_epochs=2")
    assert metrics("runs/mine")["epochs"] == 2
    first = load_config(Path("runs/mine"))
    assert first.optimizer._target_ == "torch.optim.SGD"


def test_resume_auto_needs_a_directory(lightconv, mistake):
    assert "give hydra.run.dir" in mistake(lightconv, "train", *SMOKE, "resume=auto")
    assert not Path("runs").exists()


def test_resumed_run_has_its_directory(lightconv, mistake):
    lightconv("train", *SMOKE, "hydra.run.dir='3'")
    assert "leave hydra.run.dir out" in mistake(lightconv, "train", "resume=3", "hydra.run.dir=runs/other")
    lightconv("train", "resume=3")
    assert "resume=7 is not a run" in mistake(lightconv, "train", "resume=7")


def test_split_arguments(tmp_path):
    shutil.copytree(STORED, tmp_path / "a (run)")
    run = f"'{tmp_path}/a (run)'"
    arguments, settings = resume.split_arguments(
        ["--config-dir", "conf", f"resume={run}", "trainer.max_epochs=5", "~data.seed", "hydra.verbose=true", "+a.b=c"]
    )
    assert arguments == ["--config-dir", "conf", f"resume={run}", "hydra.verbose=true"]
    assert settings == ["trainer.max_epochs=5", "~data.seed", "+a.b=c"]
    new = ["trainer.max_epochs=5", "resume=null"]
    assert resume.split_arguments(new) == (new, None)
