"""Figures of a run over its epochs: metrics.csv with one row per epoch, and TensorBoard where it is installed."""

import csv
import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from lightconv.files import replacing

Row = dict[str, float]


class MetricsTable(Logger):
    """Logger of metrics.csv: one row per epoch, kept when a run resumes.

    Lightning's CSVLogger writes the training and validation figures of an epoch into different rows, deletes the file
    when a run continues in its directory, and writes all rows again for each. Here the last row is written in place,
    and the whole file only when a figure appears for the first time. Test figures are left out: they belong to no
    epoch.

    Args:
        directory: directory of metrics.csv.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from lightconv.runs import MetricsTable, read_metrics
        >>> with TemporaryDirectory() as directory:
        ...     table = MetricsTable(directory)
        ...     table.log_metrics({"epoch": 0, "val/loss": 2.1}, step=19)
        ...     table.log_metrics({"epoch": 0, "train/loss": 2.3}, step=19)
        ...     read_metrics(table.path)
        [{'epoch': 0, 'step': 19, 'val/loss': 2.1, 'train/loss': 2.3}]
    """

    def __init__(self, directory: str | Path) -> None:
        super().__init__()
        self.path = Path(directory) / "metrics.csv"
        self.rows = read_metrics(self.path)
        self._columns: list[str] = []  # of the file; empty until this logger has written it
        self._row_start = 0  # position of the last row in the file, in bytes

    @property
    def name(self) -> str:
        """The logger's name."""
        return "metrics"

    @property
    def version(self) -> str:
        """Empty: a run has a single version."""
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add figures to the row of their epoch and write it.

        Rows of later epochs are dropped: an earlier attempt wrote them before the run was resumed from here.
        """
        figures: Row = {}
        for name, value in metrics.items():
            if name != "epoch" and not name.startswith("test/"):
                figures[name] = float(value)
        if not figures or "epoch" not in metrics:
            return
        row = self._open_row(int(metrics["epoch"]))
        row |= figures
        row["step"] = 0 if step is None else step
        if self._columns and row.keys() <= set(self._columns) and self.path.is_file():
            self._write_row(row)
        else:
            self._write_file()

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Ignore hyper-parameters: the run's config.yaml holds them."""

    def _open_row(self, epoch: int) -> Row:
        """Return the row of an epoch as the last one."""
        if self.rows and self.rows[-1]["epoch"] > epoch:
            self.rows = [row for row in self.rows if row["epoch"] <= epoch]
            self._columns = []  # the file has the later rows still
        # Lightning logs training and validation figures of an epoch in separate calls
        if not self.rows or self.rows[-1]["epoch"] < epoch:
            self.rows.append({"epoch": epoch})
            if self._columns:
                self._row_start = self.path.stat().st_size
        return self.rows[-1]

    def _write_row(self, row: Row) -> None:
        """Write the last row over its former self: a kill loses no row before it."""
        with self.path.open("r+b") as file:
            file.seek(self._row_start)
            file.write(_format_rows([row], self._columns))
            file.truncate()

    def _write_file(self) -> None:
        # figures may appear later than the first epoch, so the header is the union of all rows
        columns: dict[str, None] = dict.fromkeys(["epoch", "step"])
        for row in self.rows:
            columns |= dict.fromkeys(row)
        self._columns = list(columns)
        header = ",".join(self._columns).encode() + b"\n"
        former = header + _format_rows(self.rows[:-1], self._columns)
        with replacing(self.path) as fresh:
            fresh.write_bytes(former + _format_rows(self.rows[-1:], self._columns))
        self._row_start = len(former)


def _format_rows(rows: Sequence[Row], columns: Sequence[str]) -> bytes:
    text = io.StringIO()
    csv.DictWriter(text, columns, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def read_metrics(path: str | Path) -> list[Row]:
    """Read metrics.csv.

    Args:
        path: file to read.

    Returns:
        One dictionary per epoch, without the figures missing in that epoch; empty if there is no such file.

    Example:
        >>> from lightconv.runs import read_metrics
        >>> read_metrics("no/such/metrics.csv")
        []
    """
    path = Path(path)
    if not path.is_file():
        return []
    # a last line without its end was cut off when the machine went down
    whole_lines = path.read_text().rpartition("\n")[0]
    return [_parse_row(row) for row in csv.DictReader(whole_lines.splitlines())]


def _parse_row(cells: dict[str, str]) -> Row:
    row: Row = {}
    for name, cell in cells.items():
        if cell == "":  # an epoch without validation has no val/loss, for example
            continue
        row[name] = int(cell) if name in {"epoch", "step"} else float(cell)
    return row


def best_validation(rows: Sequence[Row]) -> Row:
    """Return the validation figures of the epoch with the lowest validation loss.

    Args:
        rows: rows of metrics.csv.

    Returns:
        The figures named ``val/...``; empty if no epoch was validated.
    """
    validated = [row for row in rows if "val/loss" in row]
    if not validated:
        return {}
    return _validation_of(min(validated, key=lambda row: row["val/loss"]))


def last_validation(rows: Sequence[Row]) -> Row:
    """Return the figures named ``val/...`` of the last epoch that was validated; empty if none was."""
    validated = [row for row in rows if "val/loss" in row]
    return _validation_of(validated[-1]) if validated else {}


def _validation_of(row: Row) -> Row:
    return {name: value for name, value in row.items() if name.startswith("val/")}


def tensorboard_if_installed(save_dir: str | Path) -> TensorBoardLogger | None:
    """Return a TensorBoardLogger, or None if TensorBoard is not installed.

    Args:
        save_dir: directory of the run; events go into its folder ``tensorboard``.

    Example:
        >>> from lightconv.runs import tensorboard_if_installed
        >>> logger = tensorboard_if_installed("runs/mine")
        >>> logger is None or logger.log_dir == "runs/mine/tensorboard/"
        True
    """
    if importlib.util.find_spec("tensorboard") is None:
        return None
    return TensorBoardLogger(str(save_dir), name="tensorboard", version="")
