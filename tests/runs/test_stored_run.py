"""A run of an earlier revision (2 epochs of a narrow LeNet on digits) opens, resumes, evaluates and exports."""

import shutil
from pathlib import Path

import pytest
import torch
from helpers.command_line import metrics, weights

import lightconv as lc
from lightconv.runs import read_metrics

# its configuration names lightconv.loggers
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:hydra.*")

STORED = Path(__file__).parent / "stored"
# the same revision's figures of a third epoch, never interrupted
THIRD_EPOCH = {"train/loss": 1.6526, "val/loss": 1.3033, "val/accuracy": 0.5611, "lr": 0.002127}


@pytest.fixture
def stored(lightconv):
    """Copy the run to where it never was before; return the command line."""
    shutil.copytree(STORED, "runs/stored")
    return lightconv


@pytest.fixture
def digits(stored):
    """Test images of the run, (n, c, h, w), and their labels."""
    data = lc.open_run("runs/stored").data
    data.setup("test")
    return next(iter(data.test_dataloader()))


def test_opens(stored, digits):
    run = lc.open_run("runs/stored")
    images, labels = digits
    assert run.directory == Path("runs/stored")
    assert run.config.model.width == 0.2
    assert run.config.directory == str(Path("runs/stored").resolve())
    assert run.classes == tuple("0123456789")
    accuracy = (run.network(images).argmax(1) == labels).float().mean().item()
    assert accuracy == pytest.approx(run.figures["test/accuracy"], abs=0.01)
    assert accuracy == pytest.approx(0.5028, abs=0.01)


def test_evaluates(stored):
    stored("evaluate", "run=runs/stored")
    (evaluation,) = Path("runs/stored/evaluations").iterdir()
    assert metrics(evaluation)["test/accuracy"] == pytest.approx(metrics(STORED)["test/accuracy"], abs=0.01)


def test_exports(stored, digits):
    stored("export", "run=runs/stored", "formats=pt2")
    images, _ = digits
    exported = torch.export.load("runs/stored/model.pt2").module()
    torch.testing.assert_close(exported(images[:3]), lc.open_run("runs/stored").network(images[:3]))


def test_resumes(stored):
    stored("train", "resume=runs/stored", "trainer.max_epochs=3")
    *earlier, third = read_metrics("runs/stored/metrics.csv")
    assert earlier == read_metrics(STORED / "metrics.csv")
    for name, expected in THIRD_EPOCH.items():
        assert third[name] == pytest.approx(expected, rel=0.02)
    assert metrics("runs/stored")["epochs"] == 3
    changed, before = weights("runs/stored"), weights(STORED)
    assert not any(torch.equal(changed[name], before[name]) for name in before)


def test_best_weights_of_a_moved_run_are_kept(stored):
    stored("train", "resume=runs/stored")
    before, best = (
        torch.load(root / "checkpoints/best.ckpt", weights_only=True) for root in (STORED, Path("runs/stored"))
    )
    assert best["global_step"] == before["global_step"]
    (state,) = [entry for key, entry in best["callbacks"].items() if "'val/loss'" in key]
    assert state["dirpath"] == str(Path("runs/stored/checkpoints").resolve())
