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


def test_rows_are_appended(tmp_path, monkeypatch):
    table = MetricsTable(tmp_path)
    table.log_metrics({"epoch": 0, "train/loss": 1.0, "val/loss": 1.0}, step=0)
    monkeypatch.setattr("lightconv.runs.metrics.replacing", None)  # writes the whole file
    inode = table.path.stat().st_ino
    for epoch in range(1, 5):
        table.log_metrics({"epoch": epoch, "val/loss": 1 / (epoch + 1)}, step=epoch)
        table.log_metrics({"epoch": epoch, "train/loss": 0.123456789}, step=epoch)
        table.log_metrics({"epoch": epoch, "train/loss": 0.5}, step=epoch)  # shorter than before
        assert read_metrics(table.path) == table.rows
    assert table.path.stat().st_ino == inode
    assert table.path.read_text().splitlines()[-1] == "4,4,0.5,0.2"


def test_figure_that_appears_late_gets_a_column(tmp_path):
    table = MetricsTable(tmp_path)
    table.log_metrics({"epoch": 0, "train/loss": 1.0}, step=0)
    table.log_metrics({"epoch": 1, "train/loss": 0.5}, step=1)
    table.log_metrics({"epoch": 1, "val/loss": 0.25}, step=1)
    table.log_metrics({"epoch": 2, "val/loss": 0.125}, step=2)
    assert table.path.read_text() == "epoch,step,train/loss,val/loss\n0,0,1.0,\n1,1,0.5,0.25\n2,2,,0.125\n"


def test_deleted_file_is_written_again(tmp_path):
    table = MetricsTable(tmp_path)
    table.log_metrics({"epoch": 0, "train/loss": 1.0}, step=0)
    table.path.unlink()
    table.log_metrics({"epoch": 0, "train/loss": 0.5}, step=0)
    assert read_metrics(table.path) == [{"epoch": 0, "step": 0, "train/loss": 0.5}]


def test_last_line_that_was_cut_off_is_left_out(tmp_path):
    table = MetricsTable(tmp_path)
    for epoch in range(2):
        table.log_metrics({"epoch": epoch, "train/loss": 0.125}, step=epoch)
    content = table.path.read_bytes()
    for length in range(content.index(b"\n1,") + 1, len(content)):
        table.path.write_bytes(content[:length])
        assert read_metrics(table.path) == [{"epoch": 0, "step": 0, "train/loss": 0.125}]
    again = MetricsTable(tmp_path)
    again.log_metrics({"epoch": 1, "train/loss": 0.125}, step=1)
    assert table.path.read_bytes() == content


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
