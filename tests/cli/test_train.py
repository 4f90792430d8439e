import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.command_line import SMOKE, metrics, runs
from models.test_lenet import PlainLeNet
from omegaconf import OmegaConf
from rich import get_console

from lightconv.errors import InputWarning
from lightconv.runs import read_metrics


def test_files_of_a_run(lightconv, capsys):
    lightconv("train", *SMOKE, "trainer.max_epochs=2")
    (run,) = runs()
    files = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    assert files >= {
        "config.yaml", "environment.json", "metrics.csv", "metrics.json", "weights.pt", "learning_curve.png",
        "confusion_matrix.png", "checkpoints/best.ckpt", "checkpoints/last.ckpt",
    }  # fmt: skip
    figures = metrics(run)
    assert figures["parameters"] == 61_706
    assert {"test/accuracy", "test/loss", "val/accuracy", "seconds", "seed", "epochs"} <= figures.keys()
    assert figures["classes"]["3"].keys() == {"precision", "recall", "f1"}
    assert not OmegaConf.is_missing(OmegaConf.load(run / "config.yaml"), "seed")
    assert "${" not in (run / "config.yaml").read_text()
    environment = json.loads((run / "environment.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__.split("+")[0]
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert all(float(row[name]) > 0 for row in rows for name in ("train/loss", "val/loss", "lr"))
    for picture in ("learning_curve.png", "confusion_matrix.png"):
        assert (run / picture).read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "Served by" not in printed
    assert "test/accuracy" in printed
    assert "61,706" in printed


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_model_summary(lightconv, capsys, monkeypatch, precision):
    monkeypatch.setattr(get_console(), "width", 300)
    lightconv("train", *SMOKE, f"trainer.precision={precision}", "trainer.enable_model_summary=true")
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("Served by") == printed.count("Trainable params") + 1 == 1
    assert "model.conv1 ConvBlock 156 train 15.1 M [64, 1, 28, 28] [64, 6, 14, 14] torch (1)" in printed
    assert " (1) " in printed


def test_weights_load_into_plain_torch(lightconv):
    lightconv("train", *SMOKE)
    (run,) = runs()
    plain = PlainLeNet()
    plain.load_state_dict(torch.load(run / "weights.pt", weights_only=True))
    for name in ("best", "last"):
        state = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]
        plain.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})


def test_same_seed_same_figures(lightconv):
    for number, seed in enumerate((0, 0, 1)):
        lightconv("train", *SMOKE, f"seed={seed}", f"hydra.run.dir=runs/{number}")
    same, again, other = ({k: v for k, v in metrics(Path(f"runs/{i}")).items() if k != "seconds"} for i in range(3))
    assert same == again
    assert same != other
    assert same["seed"] == 0


def test_overrides_are_those_of_the_run(lightconv):
    # left by a job that failed
    Path("runs/mine").mkdir(parents=True)
    Path("runs/mine/overrides.json").write_text('["seed=7"]')
    lightconv("train", *SMOKE, "seed=1", "hydra.run.dir=runs/mine")
    assert json.loads(Path("runs/mine/overrides.json").read_text()) == [*SMOKE, "seed=1"]
    lightconv("train", "resume=runs/mine", "seed=1", "task.label_smoothing=0")
    lightconv("train", "resume=runs/mine", "task.label_smoothing=0.1")
    expected = [*SMOKE, "seed=1", "task.label_smoothing=0.1"]
    assert json.loads(Path("runs/mine/overrides.json").read_text()) == expected


def test_existing_run_is_not_overwritten(lightconv, capsys):
    lightconv("train", *SMOKE, "hydra.run.dir=runs/mine")
    before = metrics(Path("runs/mine"))
    with pytest.raises(SystemExit, match="2"):
        lightconv("train", *SMOKE, "seed=1", "hydra.run.dir=runs/mine")
    assert "already holds a run" in capsys.readouterr().err
    assert metrics(Path("runs/mine")) == before


def test_moved_run_resumes(lightconv):
    lightconv("train", *SMOKE, "trainer.max_epochs=4", "hydra.run.dir=runs/whole")
    lightconv("train", *SMOKE, "trainer.max_epochs=2", "+scheduler.total_steps=12", "hydra.run.dir=runs/half")
    Path("runs/half").rename("runs/moved")
    lightconv("train", "resume=runs/moved", "trainer.max_epochs=4")
    whole, resumed = (torch.load(f"runs/{name}/weights.pt", weights_only=True) for name in ("whole", "moved"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert Path("runs/whole/metrics.csv").read_text() == Path("runs/moved/metrics.csv").read_text()
    assert not Path("runs/half").exists()


def test_resumed_run_cannot_go_back(lightconv, capsys):
    lightconv("train", *SMOKE, "trainer.max_epochs=3", "hydra.run.dir=runs/mine")
    with pytest.raises(SystemExit, match="2"):
        lightconv("train", "resume=runs/mine", "trainer.max_epochs=1")
    assert "is in epoch 3 already" in capsys.readouterr().err
    path = Path("runs/mine/checkpoints/last.ckpt")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.warns(InputWarning, match=r"last.ckpt is damaged: its end is missing. The run goes on from previous"):
        lightconv("train", "resume=runs/mine")
    assert metrics(Path("runs/mine"))["epochs"] == 3


@pytest.mark.parametrize("weights", ["balanced", [1, 1, 1, 1, 1, 2, 2, 2, 2, 2.5]], ids=str)
def test_class_weights(lightconv, weights):
    lightconv("train", *SMOKE, "hydra.run.dir=runs/plain")
    lightconv("train", *SMOKE, f"task.class_weights={weights}", "hydra.run.dir=runs/weighted")
    assert OmegaConf.load("runs/weighted/config.yaml").task.class_weights == weights
    plain, weighted = metrics(Path("runs/plain")), metrics(Path("runs/weighted"))
    assert plain["val/loss"] != weighted["val/loss"]
    assert weighted["test/balanced_accuracy"] > 0


def test_averaged_weights_resume(lightconv):
    average = (*SMOKE, "callbacks=ema", "+scheduler.total_steps=12")
    lightconv("train", *average, "trainer.max_epochs=4", "hydra.run.dir=runs/whole")
    lightconv("train", *average, "trainer.max_epochs=2", "hydra.run.dir=runs/half")
    lightconv("train", "resume=runs/half", "trainer.max_epochs=4")
    whole, resumed = (torch.load(f"runs/{name}/weights.pt", weights_only=True) for name in ("whole", "half"))
    best = torch.load("runs/whole/checkpoints/best.ckpt", weights_only=True)
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name])
        assert torch.equal(tensor, best["state_dict"][f"model.{name}"])
        assert not torch.equal(tensor, best["current_model_state"][f"model.{name}"])


def test_early_stopping_stops_for_good(lightconv):
    patience = ("callbacks=[early_stopping,ema]", "callbacks.early_stopping.patience=2", "optimizer.lr=0")
    lightconv("train", *SMOKE, *patience, "trainer.max_epochs=9", "hydra.run.dir=runs/mine")
    assert metrics(Path("runs/mine"))["epochs"] == 3
    lightconv("train", "resume=runs/mine")
    assert metrics(Path("runs/mine"))["epochs"] == 3
    lightconv("train", "resume=runs/mine", "+callbacks.early_stopping.patience=4")
    assert metrics(Path("runs/mine"))["epochs"] == 5


@pytest.mark.parametrize("setting", ["+trainer.gradient_clip_algorithm=value", "trainer.precision=bf16-mixed"])
def test_clipped_and_mixed_precision_runs_resume(lightconv, setting):
    changed = (*SMOKE, "+scheduler.total_steps=6", "trainer.gradient_clip_val=0.0001", setting)
    lightconv("train", *SMOKE, "+scheduler.total_steps=6", "trainer.max_epochs=2", "hydra.run.dir=runs/plain")
    lightconv("train", *changed, "trainer.max_epochs=2", "hydra.run.dir=runs/whole")
    lightconv("train", *changed, "hydra.run.dir=runs/half")
    lightconv("train", "resume=runs/half", "trainer.max_epochs=2")
    plain, whole, resumed = (torch.load(f"runs/{n}/weights.pt", weights_only=True) for n in ("plain", "whole", "half"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not any(torch.equal(whole[name], plain[name]) for name in whole)


def test_found_learning_rate_equals_a_given_one(lightconv, mistake, capsys):
    short = (*SMOKE, "trainer.max_epochs=2", "+scheduler.total_steps=9")
    lightconv("train", *short, "find_lr=true", "hydra.run.dir=runs/found")
    rate = OmegaConf.load("runs/found/config.yaml").optimizer.lr
    assert f"learning rate found: {rate}" in capsys.readouterr().out
    assert OmegaConf.load("runs/found/config.yaml").scheduler.max_lr == rate
    assert Path("runs/found/lr_finder.png").read_bytes().startswith(b"\x89PNG")
    assert not list(Path("runs/found").glob("**/.lr_find*"))
    lightconv("train", *short, f"optimizer.lr={rate}", "hydra.run.dir=runs/given")
    found, given = (torch.load(f"runs/{name}/weights.pt", weights_only=True) for name in ("found", "given"))
    assert all(torch.equal(found[name], given[name]) for name in found)
    assert Path("runs/found/metrics.csv").read_text() == Path("runs/given/metrics.csv").read_text()
    lightconv("train", "resume=runs/found", "trainer.max_epochs=3", "find_lr=true")  # as the run was started
    assert "learning rate found" not in capsys.readouterr().out
    assert "keeps its learning rate" in mistake(lightconv, "train", "resume=runs/given", "find_lr=true")


def test_no_learning_rate_found(lightconv, mistake):
    frozen = ("optimizer=sgd", "optimizer.momentum=0", "optimizer.nesterov=false", "trainer.gradient_clip_val=1e-30")
    message = mistake(
        lightconv, "train", "find_lr=true", "trainer.overfit_batches=1", "data.augmentation=null", *frozen
    )
    assert "set optimizer.lr by hand" in message
    assert runs() == []


def test_testing_turned_off(lightconv):
    lightconv("train", *SMOKE, "trainer.limit_test_batches=0", "hydra.run.dir=runs/mine")
    assert Path("runs/mine/weights.pt").is_file()
    assert "test/accuracy" not in metrics(Path("runs/mine"))


def test_overfitting_one_batch(lightconv):
    lightconv("train", "debug=overfit", "trainer.enable_progress_bar=false", "hydra.run.dir=runs/mine")
    assert read_metrics("runs/mine/metrics.csv")[-1]["train/loss"] < 0.01


def test_multirun_cannot_resume(lightconv, mistake):
    lightconv("train", *SMOKE, "hydra.run.dir=runs/first")
    assert "leave -m (--multirun) out" in mistake(lightconv, "train", "-m", "resume=runs/first", "seed=0,1")


def test_resumed_run_keeps_its_groups(lightconv, capsys):
    lightconv("train", *SMOKE, "hydra.run.dir=runs/mine")
    with pytest.raises(SystemExit, match="2"):
        lightconv("train", "resume=runs/mine", "optimizer=sgd")
    assert "keeps its optimizer=sgd" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        lightconv("train", "resume=runs/nowhere")
    assert "is not a run" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 1)])
def test_stopped_run_resumes(lightconv, tmp_path, number, status):
    command = [sys.executable, "-c", "from lightconv.cli import main; main()", "train"]
    arguments = ["hydra.run.dir=runs/mine", "scheduler=none", "trainer.max_epochs=1000"]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    process = subprocess.Popen([*command, *arguments], env=environment, stdout=subprocess.PIPE, text=True)
    table = Path("runs/mine/metrics.csv")
    deadline = time.monotonic() + 120
    while not (table.is_file() and len(table.read_text().splitlines()) > 2) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == status
    assert "lightconv train resume=" in printed
    done = torch.load("runs/mine/checkpoints/last.ckpt", weights_only=True)["epoch"]
    lightconv("train", "resume=runs/mine", f"trainer.max_epochs={done + 2}")
    assert metrics(Path("runs/mine"))["epochs"] == done + 2
    rows = read_metrics("runs/mine/metrics.csv")
    assert [row["step"] for row in rows] == [20 * (row["epoch"] + 1) - 1 for row in rows]  # no step was lost
    assert all({"train/loss", "val/loss", "val/accuracy"} <= row.keys() for row in rows)


def test_sweep_prints_one_table(lightconv, capsys):
    lightconv("train", *SMOKE, "-m", "seed=0,1", "model.width=0.5,1", "hydra.sweep.dir=runs/sweep")
    printed = capsys.readouterr().out
    table = printed[printed.rindex("all jobs of runs/sweep") :]
    assert table.count("\n│") == 4
    assert {metrics(Path(f"runs/sweep/{job}"))["parameters"] for job in range(4)} == {61_706, 15_738}


def test_sweep_with_a_failed_job(lightconv, capsys):
    with pytest.raises(SystemExit, match="2"):
        lightconv("train", *SMOKE, "-m", "model.width=0.01,1", "hydra.sweep.dir=runs/sweep")
    printed = capsys.readouterr()
    assert "failed" in printed.out
    assert "61,706" in printed.out
    assert "width=0.01" in printed.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["model=alexnet"], ["model=alexnet: there is no such choice", "lenet"]),
        (["experiment=nothing"], ["experiment=nothing", "lenet_fashion_mnist"]),
        (["modle=lenet"], ["modle", "known here", "model"]),
        (["model.widht=2"], ["widht", "known here", "width", "image_size"]),
        (["backend=cudnn"], ["unknown backend 'cudnn'", "auto, reference, triton"]),
        (["model.image_size=8"], ["at least 12x12"]),
        (["model.channels=3"], ["LeNet cannot take Digits's images of 1 x 28 x 28"]),
        (["model.classes=7"], ["Digits has 10 classes", "model.classes=10"]),
        (["data=fashion_mnist", "data.root=nowhere"], ["nowhere", "data.download=true"]),
        (["optimizer.lr=fast"], ["optimizer.lr=fast", "a number"]),
        (["scheduler=step", "~scheduler.step_size"], ["torch rejects", "step_size"]),
        (["optimizer._target_=torch.optim.Adamm"], ["torch.optim.Adamm"]),
        (["data.batch_size=0"], ["batch_size=0"]),
        (["task.class_weights=[1,2]"], ["class_weights=[1, 2]", "10 numbers"]),
        (["seed=-1"], ["seed=-1", "from 0"]),
        (["seed=abc"], ["seed=abc"]),
        (["trainer.devices=2"], ["one process"]),
        (["trainer.max_epochs"], ["trainer.max_epochs"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and "=" in value[0] else "",
)
def test_mistakes(lightconv, mistake, arguments, words):
    message = mistake(lightconv, "train", *SMOKE, *arguments)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    "flag", [["--config-dir", "my_conf"], ["--config-dir=my_conf"], ["-cd", "my_conf"], ["-cd=my_conf"]]
)
def test_user_configs_go_first(lightconv, capsys, flag):
    for name, content in {
        "model/lenet.yaml": "_target_: lightconv.models.LeNet\nclasses: 10\nwidth: 2\n",
        "experiment/mine.yaml": "# @package _global_\nseed: 7\n",
    }.items():
        path = Path("my_conf", name)
        path.parent.mkdir(parents=True)
        path.write_text(content)
    lightconv("train", *flag, "experiment=mine", "--cfg", "job")
    config = OmegaConf.create(capsys.readouterr().out)
    assert config.seed == 7
    assert config.model == {"_target_": "lightconv.models.LeNet", "classes": 10, "width": 2}


def test_kernels_train_with_the_losses_of_the_reference(lightconv):
    for name in ("reference", "triton"):
        lightconv(
            "train", *SMOKE, f"backend={name}", "data.batch_size=8", "trainer.limit_val_batches=0",
            "trainer.limit_test_batches=1", "callbacks.best=null", f"hydra.run.dir=runs/{name}",
            "objective=test/accuracy", "model.width=0.5",
        )  # fmt: skip
    losses = [float(read_metrics(f"runs/{name}/metrics.csv")[0]["train/loss"]) for name in ("reference", "triton")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
