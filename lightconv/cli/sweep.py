"""One table of all jobs at the end of a sweep."""

import json
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from lightconv.cli import tables

_COLUMNS = ("val/accuracy", "test/accuracy", "test/loss", "parameters", "seconds")
_last: Path | None = None


class SweepTable(Callback):
    """Hydra callback that remembers where the jobs of this sweep write.

    The table is not printed in ``on_multirun_end``, which Hydra skips when a job has failed: the other jobs' results
    are wanted all the more then.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note the sweep's directory."""
        global _last  # noqa: PLW0603
        _last = Path(config.hydra.sweep.dir)


def show_last() -> None:
    """Print the jobs of this process's sweep, if there was one, without the settings that they share."""
    if _last is not None and _last.is_dir() and (rows := read(_last)):
        tables.show_rows(f"all jobs of {_last}", [{k: v for k, v in row.items() if _varies(k, rows)} for row in rows])


def _varies(column: str, rows: list[dict[str, Any]]) -> bool:
    return column in _COLUMNS or len(rows) == 1 or len({str(row[column]) for row in rows if column in row}) > 1


def read(directory: Path) -> list[dict[str, Any]]:
    """One row a job: its overrides, then its final figures, or "failed"."""
    jobs = sorted((p for p in directory.iterdir() if p.is_dir() and p.name.isdigit()), key=lambda p: int(p.name))
    rows = []
    for job in jobs:
        row: dict[str, Any] = {"job": job.name}
        if (job / "overrides.json").is_file():
            row |= dict(
                o.lstrip("+").split("=", 1) for o in json.loads((job / "overrides.json").read_text()) if "=" in o
            )
        if (job / "metrics.json").is_file():
            metrics = json.loads((job / "metrics.json").read_text())
            row |= {name: metrics[name] for name in _COLUMNS if name in metrics}
        else:
            row["test/accuracy"] = "failed"
        rows.append(row)
    return rows
