"""Loggers for Lightning's Trainer: one table row an epoch, and TensorBoard where it is installed."""

import csv
import importlib.util
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only


class MetricsTable(Logger):
    """metrics.csv with one row an epoch, kept when a run resumes.

    Lightning's CSVLogger writes training and validation figures of an epoch into different rows and deletes the file
    when a run continues in its directory. Test figures are final, not part of the course: they are left out.

    Args:
        directory: where metrics.csv is written.
    """

    def __init__(self, directory: str | Path) -> None:
        super().__init__()
        self.path = Path(directory) / "metrics.csv"
        self.rows = read_metrics(self.path)

    @property
    def name(self) -> str:
        """The logger's name."""
        return "metrics"

    @property
    def version(self) -> str:
        """There is one version only."""
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Put the figures into their epoch's row; later epochs of an earlier attempt are dropped."""
        figures = {k: float(v) for k, v in metrics.items() if k != "epoch" and not k.startswith("test/")}
        if not figures or "epoch" not in metrics:
            return
        epoch = int(metrics["epoch"])
        row = next((r for r in self.rows if r["epoch"] == epoch), {"epoch": epoch})
        row |= figures | {"step": step if step is not None else 0}
        self.rows = [r for r in self.rows if r["epoch"] < epoch] + [row]
        self._write()

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run's config.yaml has them."""

    def _write(self) -> None:
        columns = list(dict.fromkeys(["epoch", "step", *(name for row in self.rows for name in row)]))
        fresh = self.path.with_suffix(".new")
        with fresh.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)
        fresh.replace(self.path)  # a run may be killed at any moment


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """Read metrics.csv: one dictionary an epoch, without the figures that an epoch lacks; empty without a file."""
    path = Path(path)
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [
            {name: int(v) if name in {"epoch", "step"} else float(v) for name, v in row.items() if v != ""}
            for row in csv.DictReader(file)
        ]


def tensorboard_if_installed(save_dir: str | Path) -> TensorBoardLogger | None:
    """Return a TensorBoardLogger that writes into ``save_dir``/tensorboard, or None without TensorBoard."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    return TensorBoardLogger(str(save_dir), name="tensorboard", version="")
