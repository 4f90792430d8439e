"""Runs: a run's directory, configuration, checkpoints and metrics, and the objects built from them."""

from lightconv.runs.metrics import MetricsTable, read_metrics, tensorboard_if_installed
from lightconv.runs.run import Run, open_run

__all__ = ["MetricsTable", "Run", "open_run", "read_metrics", "tensorboard_if_installed"]
