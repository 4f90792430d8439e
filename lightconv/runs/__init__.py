"""Runs: a run's directory, configuration, checkpoints and metrics, and the objects built from them."""

from lightconv.runs.checkpoints import VerifiedCheckpoints
from lightconv.runs.metrics import MetricsTable, read_metrics, tensorboard_if_installed
from lightconv.runs.run import Run, open_run

__all__ = ["MetricsTable", "Run", "VerifiedCheckpoints", "open_run", "read_metrics", "tensorboard_if_installed"]
