"""what=features: an epoch of training the head of a frozen network on cached features, and on images."""

from statistics import mean, median
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig

from lightconv.callbacks import FineTuning
from lightconv.cli.application import quiet
from lightconv.cli.bench.report import Report, circumstances, clock
from lightconv.cli.settings import check_integer
from lightconv.errors import InputError
from lightconv.models import Pretrained
from lightconv.runs.build import build_data, build_task
from lightconv.runs.results import run_title

_SIDES = {"features": "memory", "images": None}
_NOTE = (
    "Both train the same head for the same epochs from the same seed, round by round from another one. Not timed: "
    "computing the features, once, in about the time of an epoch on images; validation and testing."
)


def features(config: DictConfig) -> Report:
    """Time epochs of both, and test what they have learned.

    Raises:
        InputError: for a network that is not pretrained, or images that vary from epoch to epoch.
    """
    check_integer(config.features, "epochs")
    if config.dtype != "float32" or config.data.augmentation is not None:
        raise InputError("what=features trains in float32, on images that stay the same: leave augmentation out")
    quiet()  # again: Lightning has not been imported before this file was
    seconds: dict[str, list[float]] = {side: [] for side in _SIDES}
    accuracies: dict[str, list[float]] = {side: [] for side in _SIDES}
    for seed in range(config.seed, config.seed + config.rounds):
        for side, cache in _SIDES.items():
            title, taken, accuracy = train(config, cache, seed)
            seconds[side] += taken
            accuracies[side].append(accuracy)
    rows = [
        {
            "the head sees": side,
            "seconds": median(seconds[side]),
            "images / features": median(seconds["images"]) / median(seconds[side]),
            "test accuracy": mean(accuracies[side]),
        }
        for side in _SIDES
    ]
    depends_on = circumstances(config, torch.empty(0).device, "torch", "lightning")
    return Report({f"seconds of an epoch, {config.features.epochs} of {title}: {depends_on}": rows}, _NOTE)


def train(config: DictConfig, cache: str | None, seed: int) -> tuple[str, list[float], float]:
    """Train a head.

    Returns:
        What was trained on what, the seconds of each epoch, and the test accuracy.
    """
    L.seed_everything(seed, verbose=False)
    task = build_task(config)
    if not isinstance(task.model, Pretrained):
        raise InputError("what=features: choose model=efficientnet_lite0, or model=pretrained and its backbone")
    data = build_data(config, task)
    epochs = Epochs()
    trainer = L.Trainer(
        max_epochs=config.features.epochs,
        accelerator="cpu",
        callbacks=[FineTuning([{"epoch": 0, "train": "head"}], cache=cache), epochs],
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, datamodule=data)
    (figures,) = trainer.test(task, datamodule=data, verbose=False)
    return run_title(task, data), epochs.seconds, figures["test/accuracy"]


class Epochs(L.Callback):
    """Takes the time of each."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._started = 0.0

    def on_train_epoch_start(self, *args: Any) -> None:
        """Start the clock."""
        self._started = clock()

    def on_train_epoch_end(self, *args: Any) -> None:
        """Stop it."""
        self.seconds.append(clock() - self._started)
