"""Pretrained networks and stages of fine-tuning from the command line, also killed within a stage."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.command_line import metrics, runs
from omegaconf import OmegaConf

TINY = [
    *("model=pretrained", "model.backbone=timm/test_efficientnet", "model.weights=none", "model.image_size=32"),
    *("model.channels=1", "data.augmentation=null", "data.training_images=200"),
]
STAGES = "finetune.stages=[{epoch:0,train:head},{epoch:2,train:1,lr:0.5},{epoch:4,train:all}]"
STAGED = [*TINY, "finetune=gradual", STAGES, "trainer.max_epochs=6"]
FIGURES = ("val/loss", "val/accuracy", "test/loss", "test/accuracy", "epochs")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    start(directory, *STAGED, "hydra.run.dir=run").wait()
    return metrics(directory / "run")


def start(directory, *arguments):
    command = [sys.executable, "-c", "from lightconv.cli import main; main()", "train", *arguments]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.Popen(command, env=environment, cwd=directory, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("epochs", [1, 3, 5], ids="in stage {}".format)
def test_killed_run_resumes_in_its_stage(uninterrupted, epochs, lightconv, tmp_path):
    process = start(tmp_path, *STAGED, "hydra.run.dir=run")
    table, saved, deadline = Path("run/metrics.csv"), Path("run/checkpoints/last.ckpt"), time.monotonic() + 120
    while not (saved.is_file() and len(table.read_text().splitlines()) > epochs) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -9
    assert not Path("run/metrics.json").exists()
    assert torch.load(saved, weights_only=True)["epoch"] in {epochs - 2, epochs - 1, epochs}
    lightconv("train", "resume=run")
    assert {name: metrics(Path("run"))[name] for name in FIGURES} == {name: uninterrupted[name] for name in FIGURES}


@pytest.mark.parametrize("recipe", ["feature_extraction", "last_block", "gradual", "fastai_style", "full"])
def test_every_recipe_trains_all_stages(recipe, lightconv, capsys):
    lightconv("train", *TINY, f"finetune={recipe}", "trainer.max_epochs=10", "trainer.limit_train_batches=1")
    printed = capsys.readouterr().out
    everything = "training all" in printed
    assert everything == (recipe in {"gradual", "fastai_style", "full"})
    assert metrics(runs()[0])["epochs"] == 10
    assert "timm/test_efficientnet on Digits" in printed


def test_evaluation_with_the_images_of_the_weights(lightconv):
    lightconv("train", *TINY, "finetune=feature_extraction", "trainer.max_epochs=1")
    (run,) = runs()
    lightconv("evaluate", f"run={run}")
    (evaluation,) = run.glob("evaluations/*/metrics.json")
    assert metrics(evaluation.parent)["test/accuracy"] == pytest.approx(metrics(run)["test/accuracy"])


def test_start_from_the_weights_of_a_run(lightconv):
    lightconv("train", *TINY, "finetune=full", "trainer.max_epochs=1", "hydra.run.dir=first")
    start = [*TINY, "finetune=feature_extraction", "trainer.max_epochs=1", "hydra.run.dir=second"]
    lightconv("train", *start, "model.weights=first/checkpoints/best.ckpt")
    first, second = (torch.load(f"{name}/weights.pt") for name in ("first", "second"))
    assert all(torch.equal(first[name], second[name]) for name in first if name.startswith("backbone"))


def test_mistakes(lightconv, mistake):
    assert "torchvision has no network resnet19" in mistake(
        lightconv, "train", "model=pretrained", "model.backbone=torchvision/resnet19"
    )
    assert "begin at epochs [2]" in mistake(
        lightconv, "train", *TINY, "finetune=gradual", "finetune.stages=[{epoch:2,train:all}]"
    )
    assert "haed is no module" in mistake(
        lightconv, "train", *TINY, "finetune=gradual", "finetune.stages=[{epoch:0,train:haed}]"
    )
    assert "Digits has 10 classes" in mistake(lightconv, "train", *TINY, "finetune=full", "model.classes=3")


def test_learning_rate_of_the_first_stage(lightconv):
    first = "finetune.stages=[{epoch:0,train:head}]"
    lightconv("train", *TINY, "finetune=gradual", first, "find_lr=true", "trainer.max_epochs=2", "hydra.run.dir=run")
    found = OmegaConf.load("run/config.yaml").optimizer.lr
    assert found != 0.005
    lightconv("train", *TINY, "finetune=gradual", first, f"optimizer.lr={found}", "trainer.max_epochs=2")
    assert metrics(Path("run"))["val/loss"] == metrics(runs()[-1])["val/loss"]


def test_plateau_in_stages(lightconv, mistake):
    plateau = ("finetune=feature_extraction", "scheduler=plateau", "scheduler.patience=0", "optimizer.lr=0.1")
    message = mistake(lightconv, "train", *TINY, *plateau, "trainer.limit_val_batches=0")
    assert "scheduler=plateau follows the validation loss" in message
    every = ("+trainer.check_val_every_n_epoch=2", "trainer.max_epochs=4", "scheduler.patience=0", "optimizer.lr=1e-9")
    lightconv("train", *TINY, *plateau, *every, "hydra.run.dir=run")
    assert metrics(Path("run"))["epochs"] == 4


def test_resume_with_other_stages(lightconv, capsys):
    lightconv("train", *TINY, "finetune=feature_extraction", "trainer.max_epochs=2", "hydra.run.dir=run")
    capsys.readouterr()
    stages = "+finetune.stages=[{epoch:0,train:head},{epoch:2,train:all}]"
    lightconv("train", "resume=run", stages, "trainer.max_epochs=3")
    assert "from epoch 2: training all" in capsys.readouterr().out
