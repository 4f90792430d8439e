"""Results of a run: figures, weights and pictures in its directory."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L

from lightconv import visualize
from lightconv.data import ImageData
from lightconv.runs.checkpoints import read_validation, save_weights
from lightconv.runs.directory import write_json
from lightconv.runs.metrics import best_validation, last_validation, read_metrics
from lightconv.tasks import Classification


def run_title(task: Classification, data: ImageData) -> str:
    """Return a title such as "LeNet on Digits"."""
    network = getattr(task.model, "name", type(task.model).__name__)
    return f"{network} on {type(data).__name__}"


def run_figures(trainer: L.Trainer, task: Classification, directory: Path) -> dict[str, float]:
    """Return the figures of a run just tested.

    Args:
        trainer: Trainer after its test.
        task: task that was trained.
        directory: directory of the run, with metrics.csv.

    Returns:
        ``val/...`` of the weights that were tested, ``test/...``, and the number of parameters and epochs.
    """
    figures = tested_validation(directory)
    for name, metric in trainer.callback_metrics.items():
        if name.startswith("test/"):
            figures[name] = metric.item()
    figures["parameters"] = sum(parameter.numel() for parameter in task.model.parameters())
    figures["epochs"] = trainer.current_epoch
    return figures


def tested_validation(directory: Path) -> dict[str, float]:
    """Return the validation figures of the weights that a run tests.

    An epoch may have several validations, and metrics.csv has a row per epoch: best.ckpt knows its own figures.
    """
    rows = read_metrics(directory / "metrics.csv")
    best = directory / "checkpoints" / "best.ckpt"
    if not best.is_file():
        return last_validation(rows)
    # a checkpoint of an earlier version has no figures
    return read_validation(best) or best_validation(rows)


def class_figures(task: Classification, classes: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return precision, recall and F1 per class from a task's last test; empty if it was not tested."""
    figures: dict[str, dict[str, float]] = {}
    if not task.class_results:
        return figures
    for index, name in enumerate(classes):
        figures[name] = {}
        for key in ("precision", "recall", "f1"):
            figures[name][key] = round(task.class_results[key][index].item(), 6)
    return figures


def write_results(directory: Path, task: Classification, data: ImageData, figures: Mapping[str, Any]) -> None:
    """Write weights.pt, learning_curve.png, confusion_matrix.png (after a test) and metrics.json.

    Args:
        directory: directory of the run.
        task: task that was trained.
        data: data it was trained on.
        figures: figures for metrics.json; those of each class are added.
    """
    save_weights(task.model, directory / "weights.pt")
    title = run_title(task, data)
    curve = visualize.learning_curve(read_metrics(directory / "metrics.csv"), title)
    curve.savefig(directory / "learning_curve.png", dpi=110)
    if task.class_results:  # empty if testing was turned off
        draw_confusion_matrix(directory, task, data, f"{title}, test")
    write_json(directory / "metrics.json", {**figures, "classes": class_figures(task, data.classes)})


def draw_confusion_matrix(directory: Path, task: Classification, data: ImageData, title: str) -> None:
    """Write confusion_matrix.png from a task's last test."""
    figure = visualize.confusion_matrix(task.class_results["confusion"], data.classes, title)
    figure.savefig(directory / "confusion_matrix.png", dpi=110)
