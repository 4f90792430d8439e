"""Figures that callbacks and sweepers follow, checked before the run: Lightning looks for them after an epoch."""

import difflib
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping
from omegaconf import DictConfig

from lightconv.errors import InputError
from lightconv.tasks import Classification

# callbacks of other packages may log figures of their own
_SILENT_PACKAGES = ("lightconv.", "lightning.")


def check_monitors(config: DictConfig, trainer: L.Trainer, task: Classification) -> None:
    """Check that the task logs every figure that a callback monitors.

    Args:
        config: configuration of the run.
        trainer: Trainer with the callbacks.
        task: task of the run.

    Raises:
        InputError: If a figure is unknown, or if early stopping follows the validation and there is none.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    if not all(type(callback).__module__.startswith(_SILENT_PACKAGES) for callback in callbacks):
        return
    for callback in callbacks:
        figure = getattr(callback, "monitor", None)
        # None: a checkpoint of the last weights
        if figure is None or not getattr(callback, "strict", True):
            continue
        key = find_key(config, figure)
        if figure not in task.figures:
            close = difflib.get_close_matches(figure, task.figures, n=3, cutoff=0.3) or task.figures
            raise InputError(f"{key}={figure}: the run logs no such figure. Choose {', '.join(close)}")
        if isinstance(callback, EarlyStopping) and figure.startswith("val/") and trainer.limit_val_batches == 0:
            raise InputError(
                f"{key}={figure}: trainer.limit_val_batches=0 turns validation off. Choose train/loss, or "
                "leave trainer.limit_val_batches out"
            )


def check_objective(objective: str, task: Classification) -> None:
    """Check that the run will have the figure that sweepers optimize.

    Raises:
        InputError: If there is no such figure.
    """
    validated = [figure for figure in task.figures if figure.startswith("val/")]
    tested = [figure.replace("val/", "test/") for figure in validated]
    known = [*validated, *tested, "parameters", "epochs", "seconds", "seed"]
    if objective not in known:
        raise InputError(f"objective={objective}: choose one of {', '.join(known)}")


def find_key(config: DictConfig, figure: str) -> str:
    """Return the key of the setting that names a figure to monitor."""
    for name, callback in config.callbacks.items():
        if callback and callback.get("monitor") == figure:
            return f"callbacks.{name}.monitor"
    return "monitor"
