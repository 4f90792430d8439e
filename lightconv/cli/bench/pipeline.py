"""what=pipeline: an epoch of lightconv's data pipeline and training loop, in time on any machine."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig

from lightconv.autotune.timing import medians
from lightconv.cli.application import quiet
from lightconv.cli.bench.epochs import LOADERS, TRAININGS, Sized, device, loading_seconds, training_seconds
from lightconv.cli.bench.report import Report, circumstances
from lightconv.errors import InputError
from lightconv.runs.build import build_data, build_task

_NOTE = (
    "Timed: in training, an epoch's order, batches, forward, backward, optimizer step and, in Lightning, mean loss "
    "(with DataLoader also accuracy); in loading, order and batches. Networks are torch.nn's; lightconv's and the last "
    "loop's are lightconv.nn's. The loops find their images normalised in memory. Not timed: reading the set, building "
    "network, optimizer and Trainer, and a first epoch of each. Nobody augments, validates, writes logs or "
    "checkpoints, or draws a progress bar."
)


def pipeline(config: DictConfig) -> Report:
    """Time epochs of training and of loading alone.

    Raises:
        InputError: for what not every side can do, or a set that does not fit the network.
    """
    if config.dtype != "float32" or config.data.augmentation is not None:
        raise InputError("what=pipeline trains in float32 and without augmentation: not every side has another way")
    quiet()  # again: Lightning has not been imported before this file was
    task = build_task(config)
    whole = build_data(config, task)
    whole.prepare_data()
    whole.setup("fit")
    task.check_fit(whole)
    available = len(whole.split("train")[1])
    data = Sized(whole, available if config.images is None else config.images)
    check(config, data)
    rows = [
        *_rows("training", TRAININGS, partial(training_seconds, config=config, data=data), config.rounds, data.count),
        *_rows("loading", LOADERS, partial(loading_seconds, config=config, data=data), config.rounds, data.count),
    ]
    return Report({_title(config, data, available): rows}, _NOTE)


def check(config: DictConfig, data: Sized) -> None:
    """Make sure that all sides train alike: where one batch has all images, there is no order that could differ."""
    single = Sized(data.data, min(data.count, data.batch_size))
    probe = single.normalize(single.split("train")[0][:].float() / 255)
    with torch.no_grad():
        answers = {name: train(config, single).model.cpu()(probe) for name, train in TRAININGS.items()}
    expected = answers["lightconv"]
    for name, actual in answers.items():
        message = f"{name} trains another network than lightconv"
        torch.testing.assert_close(actual, expected, rtol=0.01, atol=0.01, msg=lambda text, by=message: f"{by}: {text}")


def _rows(
    part: str, names: Iterable[str], seconds: Callable[[str], float], rounds: int, count: int
) -> list[dict[str, Any]]:
    taken = medians({name: partial(seconds, name) for name in names}, rounds)
    ours, *_ = taken.values()
    return [
        {"epoch of": part, "by": name, "seconds": s, "images/s": round(count / s), "/ lightconv": s / ours}
        for name, s in taken.items()
    ]


def _title(config: DictConfig, data: Sized, available: int) -> str:
    model, optimizer = (config[part]._target_.rpartition(".")[2] for part in ("model", "optimizer"))
    images = f"{data.count:,} images from {available:,} of {type(data.data).__name__}"
    depends_on = circumstances(config, device(), "torch", "torchvision", "lightning")
    return f"{model}, {images}, {data.batch_size} a batch, {optimizer}, num_workers={config.num_workers}: {depends_on}"
