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
    """Print the jobs of this process's sweep, if there was one, and write them to sweep.csv beside them."""
    if _last is not None and (rows := read(_last)):
        tables.show_rows(str(_last), rows)


def read(directory: Path) -> list[dict[str, Any]]:
    """One row a job: its overrides, then its final figures, or "failed"."""
    jobs = sorted((p for p in directory.iterdir() if p.is_dir() and p.name.isdigit()), key=lambda p: int(p.name))
    rows = []
    for job in jobs:
        row: dict[str, Any] = {"job": job.name}
        if (job / "overrides.json").is_file():
            row |= dict(o.lstrip("+").split("=", 1) for o in json.loads((job / "overrides.json").read_text()))
        if (job / "metrics.json").is_file():
            metrics = json.loads((job / "metrics.json").read_text())
            row |= {name: metrics[name] for name in _COLUMNS if name in metrics}
        else:
            row["val/accuracy"] = "failed"
        rows.append(row)
    return rows
