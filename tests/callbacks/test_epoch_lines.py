import csv
import re
from pathlib import Path

SHORT = ("debug=smoke", "hydra.run.dir=runs/mine")


def test_a_line_per_epoch(lightconv, capsys):
    lightconv("train", "trainer.max_epochs=2", "trainer.limit_train_batches=2", "hydra.run.dir=runs/mine")
    printed = capsys.readouterr().out
    lines = re.findall(r"^epoch (\S+)  train/loss (\S+)  val/loss \S+  val/accuracy \S+  \S+ s$", printed, re.MULTILINE)
    assert [epoch for epoch, _ in lines] == ["1/2", "2/2"]
    rows = csv.DictReader(next(Path("runs/mine").rglob("metrics.csv")).open())
    losses = [f"{float(row['train/loss']):.3f}" for row in rows if row.get("train/loss")]
    assert [loss for _, loss in lines] == losses
    # whole, so that it can be copied
    assert f"\ndirectory: {Path('runs/mine').resolve()}\n" in printed


def test_no_line_without_progress(lightconv, capsys):
    lightconv("train", *SHORT, "trainer.enable_progress_bar=false")
    assert "epoch 1" not in capsys.readouterr().out


def test_early_stop_is_said(lightconv, capsys):
    # no rate, no progress
    lightconv(
        "train", "callbacks=early_stopping", "callbacks.early_stopping.patience=1", "optimizer.lr=0", "scheduler=none",
        "trainer.limit_train_batches=1", "trainer.max_epochs=9", "hydra.run.dir=runs/mine",
    )  # fmt: skip
    reason = "stopped after epoch 2: Monitored metric val/accuracy did not improve in the last 1 records."
    assert reason in capsys.readouterr().out
    lightconv("train", "resume=runs/mine")  # no patience is left
    assert reason in capsys.readouterr().out
    lightconv("train", "resume=runs/mine", "+callbacks.early_stopping.patience=5", "trainer.max_epochs=3")
    assert "stopped after" not in capsys.readouterr().out


def test_stop_at_a_threshold_is_said(lightconv, capsys):
    lightconv(
        "train", "callbacks=early_stopping", "+callbacks.early_stopping.stopping_threshold=0.01",
        "trainer.limit_train_batches=1", "trainer.max_epochs=9", "hydra.run.dir=runs/mine",
    )  # fmt: skip
    assert "stopped after epoch 1: Stopping threshold reached: val/accuracy" in capsys.readouterr().out
