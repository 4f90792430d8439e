"""Settings that make no run end with status 2, the key, and no directory."""

import json
from pathlib import Path

import pytest
import torch
from helpers.command_line import SMOKE

from lightconv.data import Digits
from lightconv.models import LeNet

QUICK = (*SMOKE, "logger=metrics")


class Speechless(LeNet):
    """Fails in training mode alone, as networks with auxiliary outputs do."""

    def forward(self, images):
        logits = super().forward(images)
        return (logits, logits) if self.training else logits


class Frozen(LeNet):
    def __init__(self, **options):
        super().__init__(**options)
        self.requires_grad_(False)


class Mislabelled(Digits):
    def load(self, stage):
        splits = super().load(stage)
        images, labels = splits["validation"]
        return {**splits, "validation": (images, labels + 1)}


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("trainer.limit_train_batches=0.01", "Try at least"),
        ("+trainer.val_check_interval=1000", "must be less than"),
        ("+trainer.val_check_interval=0", "above 0"),
        ("trainer.accumulate_grad_batches=0", "at least 1"),
        ("trainer.accumulate_grad_batches=2.5", "a whole number"),
        ("+trainer.check_val_every_n_epoch=0", "at least 1"),
        ("trainer.max_epochs=abc", "a whole number or null"),
        ("trainer.max_epochs=-5", "non-negative"),
        ("trainer.max_time=abc", "not a valid duration"),
        ("trainer.limit_val_batches=0.01", "Try at least"),
        ("trainer.limit_test_batches=0.001", "Try at least"),
        ("trainer.gradient_clip_val=abc", "a number or null"),
        ("trainer.gradient_clip_val=-1", "at least 0"),
        ("trainer.gradient_clip_val=nan", "a finite number"),
        ("trainer.precision=foo", "bf16-mixed"),
        ("trainer.accelerator=foo", "invalid accelerator"),
        ("trainer.deterministic=foo", "true or false, warn or null"),
        ("+trainer.enable_checkpointing=false", "ModelCheckpoint"),
        ("+trainer.maximum=3", "unexpected keyword"),
        ("data.batch_size=2.5", "a whole number"),
        ("data.batch_size=-4", "at least one image"),
        ("data.training_images=0", "at least 1"),
        ("data.augmentation.rotation=far", "a number"),
        ("data.augmentation=foo", "_target_"),
        ("data.training_images=1258", "cannot set 1258 of 1257 images apart"),
        ("data.seed=-1", "at least 0"),
        ("callbacks.random_state=5", "_target_"),
        ("optimizer.lr=abc", "a number"),
        ("optimizer.lr=-1", "at least 0"),
        ("optimizer.lr=inf", "a finite number"),
        ("optimizer.weight_decay=-1", "Invalid weight_decay"),
        ("+optimizer.betas=[0.9,1.5]", "Invalid beta"),
        ("scheduler.pct_start=2", "between 0 and 1"),
        ("+scheduler.total_steps=2", "at least 3"),
        ("+scheduler.total_steps=-3", "positive integer"),
        ("scheduler.max_lr=-1", "at least 0"),
        ("scheduler.max_lr=[0.1,0.2]", "same length"),
        ("task.label_smoothing=2", "less than 1"),
        ("task._target_=torch.nn.Identity", "Classification"),
        ("data._target_=torch.nn.Identity", "lightconv.data.ImageData"),
        ("task.class_weights=[1,2]", "10 numbers"),
        ("task.class_weights=[1,1,1,1,1,1,1,1,1,a]", "not supported"),
        ("task.classes=1", "at least two classes"),
        ("model.width=-1", "leaves LeNet without filters"),
        ("model.image_size=-1", "at least 12x12"),
        ("seed=true", "a whole number"),
        ("channels_last=maybe", "true or false"),
        ("find_lr=maybe", "true or false"),
        ("objective=accuracy", "val/accuracy"),
        ("callbacks.best.monitor=val_loss", "val/loss"),
        ("callbacks.best.filename=3", "a word or null"),
        ("+callbacks.best.save_top_k=-5", ">= -1"),
    ],
)
def test_key_is_named_and_nothing_left(lightconv, mistake, setting, words):
    message = mistake(lightconv, "train", *QUICK, setting, "hydra.run.dir=runs/deep/mine")
    # task.label_smoothing=2 reads "task.label_smoothing=2 is out of range"
    assert setting.lstrip("+").split("=")[0] + "=" in message
    assert words in message
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["optimizer=sgd", "optimizer.momentum=5"], "optimizer.momentum=5"),
        (["scheduler=step", "scheduler.step_size=0"], "scheduler.step_size=0"),
        (["scheduler=cosine", "+scheduler.T_max=0"], "scheduler.T_max=0"),
        (["scheduler=plateau", "scheduler.patience=abc"], "scheduler.patience=abc"),
        (["scheduler=plateau", "+scheduler.min_lr=[0.1,0.2]"], "scheduler.min_lr=[0.1, 0.2]"),
        (["optimizer._target_=torch.optim.SparseAdam", "~optimizer.weight_decay"], "SparseAdam cannot train"),
        (["+optimizer.fused=true", "+optimizer.foreach=true"], "optimizer.fused=True"),
        (["callbacks=early_stopping", "callbacks.early_stopping.patience=-1"], "callbacks.early_stopping.patience=-1"),
        (["callbacks=early_stopping", "trainer.limit_val_batches=0"], "turns validation off"),
        (["trainer.max_epochs=-1", "trainer.max_time=00:00:00:01"], "any number of steps"),
        (["trainer.max_steps=0"], "no steps"),
        (["model._target_=cli.test_refusals.Speechless"], "Speechless cannot train"),
        (["model._target_=cli.test_refusals.Frozen"], "empty parameter list"),
        (["data._target_=cli.test_refusals.Mislabelled"], "validation images have labels from 1 to 10"),
    ],
    ids=" ".join,
)
def test_other_refusals(lightconv, mistake, settings, words):
    assert words in mistake(lightconv, "train", *QUICK, *settings, "hydra.run.dir=runs/mine")
    assert not Path("runs").exists()


def test_other_directories_stay(lightconv, mistake):
    Path("runs/mine").mkdir(parents=True)
    mistake(lightconv, "train", *QUICK, "seed=abc", "hydra.run.dir=runs/mine")
    assert Path("runs/mine").is_dir()
    Path("runs/mine/notes.txt").touch()
    mistake(lightconv, "train", *QUICK, "seed=abc", "hydra.run.dir=runs/mine/inner")
    assert [path.name for path in Path("runs/mine").iterdir()] == ["notes.txt"]


def test_refused_evaluation_leaves_nothing(trained, mistake):
    mistake(trained, "evaluate", "run=runs/mine", "split=all")
    assert not Path("runs/mine/evaluations").exists()


def test_failed_job_of_a_sweep_keeps_its_settings(lightconv, mistake):
    mistake(lightconv, "train", *QUICK, "-m", "seed=abc,0", "hydra.sweep.dir=runs/sweep")
    assert "seed=abc" in json.loads(Path("runs/sweep/0/overrides.json").read_text())
    assert "seed=0" in json.loads(Path("runs/sweep/1/overrides.json").read_text())


def test_rehearsal_changes_no_number(lightconv, monkeypatch):
    network = ("model=pretrained", "model.backbone=timm/test_efficientnet", "model.weights=none", "model.image_size=32")
    lightconv("train", *QUICK, *network, "hydra.run.dir=runs/rehearsed")
    monkeypatch.setattr("lightconv.cli.train.rehearse", lambda *arguments: None)
    lightconv("train", *QUICK, *network, "hydra.run.dir=runs/plain")
    states = [torch.load(f"runs/{name}/weights.pt", weights_only=True) for name in ("rehearsed", "plain")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_lists_of_settings_resume(lightconv):
    lists = ("scheduler=plateau", "+scheduler.min_lr=[0.001]", "+optimizer.betas=[0.9,0.99]")
    lightconv("train", *QUICK, *lists, "hydra.run.dir=run")
    state = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert state["lr_schedulers"][0]["min_lrs"] == [0.001]
    lightconv("train", "resume=run", "trainer.max_epochs=2")
