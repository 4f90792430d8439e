"""Figures of a run are those of the weights that were kept and tested."""

import json
from pathlib import Path

import pytest
import torch
from helpers.command_line import SMOKE, metrics

from lightconv.runs import read_metrics

SEVERAL = ("+trainer.val_check_interval=1", "optimizer=sgd", "optimizer.lr=0.5", "scheduler=none", "logger=metrics")


def kept(run):
    """Score for which best.ckpt was kept."""
    callbacks = torch.load(f"{run}/checkpoints/best.ckpt", weights_only=True)["callbacks"]
    return next(state["best_model_score"].item() for name, state in callbacks.items() if "'val" in name)


@pytest.mark.parametrize("callbacks", ["default", "ema"])
def test_several_validations_per_epoch(lightconv, callbacks):
    lightconv("train", *SMOKE, *SEVERAL, f"callbacks={callbacks}", "trainer.max_epochs=3", "hydra.run.dir=run")
    figures = metrics("run")
    assert figures["val/loss"] == pytest.approx(kept("run"), abs=1e-6)
    lightconv("evaluate", "run=run", "split=validation", "trainer.limit_test_batches=3")
    (evaluation,) = Path("run").glob("evaluations/*/metrics.json")
    evaluated = json.loads(evaluation.read_text())
    assert evaluated["validation/accuracy"] == pytest.approx(figures["val/accuracy"], abs=1e-6)


def test_best_by_another_figure(lightconv):
    best = ("callbacks.best.monitor=val/accuracy", "+callbacks.best.mode=max")
    lightconv("train", *SMOKE, *SEVERAL, *best, "trainer.max_epochs=3", "hydra.run.dir=run")
    assert metrics("run")["val/accuracy"] == pytest.approx(kept("run"), abs=1e-6)


def test_last_weights(lightconv):
    lightconv("train", *SMOKE, *SEVERAL, "callbacks.best=null", "trainer.max_epochs=3", "hydra.run.dir=run")
    assert metrics("run")["val/loss"] == pytest.approx(read_metrics("run/metrics.csv")[-1]["val/loss"], abs=1e-6)
