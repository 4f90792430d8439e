"""Table of all jobs at the end of a sweep."""

import json
from pathlib import Path
from typing import Any, ClassVar

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from lightconv.cli import tables

_FIGURES = ("val/accuracy", "test/accuracy", "test/loss", "parameters", "seconds")

Row = dict[str, Any]


class SweepTable(Callback):
    """Hydra callback to remember the directory of a sweep for ``show_last``.

    The table is not printed in ``on_multirun_end``: Hydra skips that after a failed job, and then the other jobs'
    results matter most.
    """

    directory: ClassVar[Path | None] = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Remember the directory of the sweep."""
        SweepTable.directory = Path(config.hydra.sweep.dir)


def show_last() -> None:
    """Print the jobs of this process's last sweep, if there was one, without the settings they share."""
    directory, SweepTable.directory = SweepTable.directory, None
    if directory is None or not directory.is_dir():
        return
    rows = read(directory)
    shown = [{column: value for column, value in row.items() if _is_shown(column, rows)} for row in rows]
    if shown:
        tables.show_rows(f"all jobs of {directory}", shown)


def _is_shown(column: str, rows: list[Row]) -> bool:
    """Return True for figures, and for settings with several values."""
    if column in _FIGURES or len(rows) == 1:
        return True
    values = {str(row[column]) for row in rows if column in row}
    return len(values) > 1


def read(directory: Path) -> list[Row]:
    """Read the results of a sweep.

    Args:
        directory: directory of the sweep, with one numbered folder per job.

    Returns:
        One row per job: its overrides, then its final figures, or "failed".
    """
    jobs = [path for path in directory.iterdir() if path.is_dir() and path.name.isdigit()]
    jobs.sort(key=lambda job: int(job.name))  # 2 before 10
    return [_read_job(job) for job in jobs]


def _read_job(job: Path) -> Row:
    row: Row = {"job": job.name}
    overrides, metrics = job / "overrides.json", job / "metrics.json"
    if overrides.is_file():
        # +a.b=c adds a setting, ~a.b removes one and has no value
        for override in json.loads(overrides.read_text()):
            name, equals, value = override.lstrip("+").partition("=")
            if equals:
                row[name] = value
    if metrics.is_file():
        figures = json.loads(metrics.read_text())
        for name in _FIGURES:
            if name in figures:
                row[name] = figures[name]
        if "stopped" in figures and "test/accuracy" not in figures:
            # a loss of NaN before any checkpoint
            row["test/accuracy"] = "failed"
    else:
        # metrics.json is the last file of a run: without it the job failed or was stopped
        row["test/accuracy"] = "failed"
    return row
