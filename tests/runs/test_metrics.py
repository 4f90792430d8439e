import pytest

from lightconv.runs import MetricsTable, read_metrics
from lightconv.runs.metrics import best_validation


def test_one_row_per_epoch(tmp_path):
    table = MetricsTable(tmp_path)
    for epoch in range(2):
        table.log_metrics({"epoch": epoch, "val/loss": 2.0 - epoch}, step=10 * epoch)
        table.log_metrics({"epoch": epoch, "train/loss": 3.0}, step=10 * epoch)
    table.log_metrics({"epoch": 2, "test/loss": 1.0}, step=20)
    table.log_metrics({"lr": 1.0}, step=20)
    assert read_metrics(table.path) == [
        {"epoch": 0, "step": 0, "val/loss": 2.0, "train/loss": 3.0},
        {"epoch": 1, "step": 10, "val/loss": 1.0, "train/loss": 3.0},
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_resumed_run_keeps_rows_and_drops_later_ones(tmp_path):
    first = MetricsTable(tmp_path)
    for epoch in range(3):
        first.log_metrics({"epoch": epoch, "train/loss": 1.0}, step=epoch)
    MetricsTable(tmp_path).log_metrics({"epoch": 1, "val/loss": 0.5}, step=7)
    assert read_metrics(tmp_path / "metrics.csv") == [
        {"epoch": 0, "step": 0, "train/loss": 1.0},
        {"epoch": 1, "step": 7, "train/loss": 1.0, "val/loss": 0.5},
    ]


def test_best_validation():
    rows = [
        {"epoch": 0, "val/loss": 2.0, "val/accuracy": 0.9},
        {"epoch": 1, "val/loss": 1.0, "val/accuracy": 0.8, "train/loss": 1.0},
        {"epoch": 2, "train/loss": 0.5},
    ]
    assert best_validation(rows) == {"val/loss": 1.0, "val/accuracy": 0.8}
    assert best_validation(rows[2:]) == {}


@pytest.mark.parametrize("name", ["MetricsTable", "read_metrics", "tensorboard_if_installed"])
def test_old_place_still_works(name):
    import lightconv.loggers
    import lightconv.runs

    with pytest.warns(DeprecationWarning, match=f"import {name} from lightconv.runs"):
        assert getattr(lightconv.loggers, name) is getattr(lightconv.runs, name)
