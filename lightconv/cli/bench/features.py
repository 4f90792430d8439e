"""what=features: time of an epoch of training a frozen network's head, on cached features and on images."""

from statistics import mean, median
from typing import Any, NamedTuple

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

_CACHES = {"features": "memory", "images": None}  # input of the head -> cache of FineTuning
_NOTE = (
    "Both train the same head for the same epochs. Both use the same seed; it changes from round to round. Not timed: "
    "computing the features once, in about the time of an epoch on images; validation and testing."
)


class TrainedHead(NamedTuple):
    """A head after its training.

    Attributes:
        title: network and data.
        seconds: time of each epoch.
        accuracy: share of correct test images.
    """

    title: str
    seconds: list[float]
    accuracy: float


def features(config: DictConfig) -> Report:
    """Time epochs on features and on images, and test both heads.

    Args:
        config: settings of conf/bench.yaml.

    Raises:
        InputError: If the network is not pretrained, or images change from epoch to epoch.
    """
    check_integer(config.features, "epochs")
    if config.dtype != "float32" or config.data.augmentation is not None:
        raise InputError("what=features trains in float32, on images that stay the same: leave augmentation out")
    quiet()  # once more, because this module has imported Lightning
    seconds: dict[str, list[float]] = {side: [] for side in _CACHES}
    accuracies: dict[str, list[float]] = {side: [] for side in _CACHES}
    # both sides in turns, so that a drifting clock slows both
    for seed in range(config.seed, config.seed + config.rounds):
        for side, cache in _CACHES.items():
            trained = train(config, cache, seed)
            seconds[side] += trained.seconds
            accuracies[side].append(trained.accuracy)
    rows = []
    for side in _CACHES:
        row = {
            "the head sees": side,
            "seconds": median(seconds[side]),
            "images / features": median(seconds["images"]) / median(seconds[side]),
            "test accuracy": mean(accuracies[side]),
        }
        rows.append(row)
    depends_on = circumstances(config, torch.empty(0).device, "torch", "lightning")
    title = f"seconds of an epoch, {config.features.epochs} of {trained.title}: {depends_on}"
    return Report({title: rows}, _NOTE)


def train(config: DictConfig, cache: str | None, seed: int) -> TrainedHead:
    """Train and test a head.

    Args:
        config: settings of conf/bench.yaml.
        cache: "memory" to train on cached features, None to train on images.
        seed: seed of all random numbers.

    Raises:
        InputError: If the network is not pretrained.
    """
    L.seed_everything(seed, verbose=False)
    task = build_task(config)
    if not isinstance(task.model, Pretrained):
        raise InputError("what=features: choose model=efficientnet_lite0, or model=pretrained and its backbone")
    data = build_data(config, task)
    timer = EpochTimer()
    trainer = L.Trainer(
        max_epochs=config.features.epochs,
        accelerator="cpu",
        # one stage: the head alone trains from the first epoch on
        callbacks=[FineTuning([{"epoch": 0, "train": "head"}], cache=cache), timer],
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, datamodule=data)
    (figures,) = trainer.test(task, datamodule=data, verbose=False)
    return TrainedHead(run_title(task, data), timer.seconds, figures["test/accuracy"])


class EpochTimer(L.Callback):
    """Callback with the time of each epoch, in seconds."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0

    def on_train_epoch_start(self, *args: Any) -> None:
        """Start the clock."""
        self._start = clock()

    def on_train_epoch_end(self, *args: Any) -> None:
        """Stop the clock."""
        self.seconds.append(clock() - self._start)
