"""Runs whose loss becomes NaN or infinite."""

import json
from pathlib import Path

import pytest
import torch
from helpers.command_line import SMOKE, metrics

from lightconv.errors import InputWarning

# the loss is finite in the first step alone
DIVERGING = (*SMOKE, "logger=metrics", "optimizer=sgd", "optimizer.lr=1e30", "scheduler=none")


def strict(path):
    return json.loads(Path(path).read_text(), parse_constant=pytest.fail)


def test_stops_with_the_step(lightconv, capsys):
    with pytest.raises(SystemExit, match="1"):
        lightconv("train", *DIVERGING, "hydra.run.dir=runs/mine")
    message = capsys.readouterr().err
    assert "error: the training loss is NaN or infinite since step 2 (epoch 1, batch 2)" in message
    assert "Traceback" not in message
    assert "since step 2" in strict("runs/mine/metrics.json")["stopped"]
    assert not Path("runs/mine/checkpoints/last.ckpt").exists()


def test_best_weights_are_tested(lightconv, capsys):
    lightconv("train", *SMOKE, "trainer.max_epochs=1", "scheduler=none", "hydra.run.dir=runs/mine")
    good = torch.load("runs/mine/checkpoints/last.ckpt", weights_only=True)
    with pytest.raises(SystemExit, match="1"):
        # the moments of Adam are finite, the rate is not kind
        lightconv(
            "train", "resume=runs/mine", "trainer.max_epochs=3", "+task.class_weights=[3e38,3e38,1,1,1,1,1,1,1,1]"
        )
    assert "The last good checkpoint is" in capsys.readouterr().err
    last = torch.load("runs/mine/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == good["global_step"]
    figures = strict("runs/mine/metrics.json")
    assert figures["test/accuracy"] > 0
    assert "stopped" in figures


def test_goes_on_if_told_to(lightconv):
    with pytest.warns(InputWarning, match="the training loss is NaN"):
        lightconv("train", *DIVERGING, "on_nan=warn", "hydra.run.dir=runs/mine")
    assert strict("runs/mine/metrics.json")["test/loss"] is None


def test_other_jobs_of_a_sweep_go_on(lightconv, capsys):
    with pytest.raises(SystemExit, match="1"):
        lightconv("train", *DIVERGING, "-m", "optimizer.lr=1e30,0.01", "hydra.sweep.dir=runs/sweep")
    assert "failed" in capsys.readouterr().out
    assert metrics("runs/sweep/1")["test/accuracy"] > 0


def test_choices(lightconv, mistake):
    assert "on_nan=maybe: set stop or warn" in mistake(lightconv, "train", *SMOKE, "on_nan=maybe")
