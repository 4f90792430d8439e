"""what=pipeline: time of an epoch of loading and of training, by lightconv and by hand, on any machine."""

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
    "Timed in training: order of the images, batches, forward, backward, optimizer step and, in Lightning, the mean "
    "loss (with DataLoader also the accuracy). Timed in loading: order and batches. Networks are torch.nn's; those of "
    "lightconv and of the last loop are lightconv.nn's. The loops find their images normalised in memory. Not timed: "
    "reading the data, building network, optimizer and Trainer, and a first epoch of each. No side augments images, "
    "validates, writes logs or checkpoints, or draws a progress bar."
)


def pipeline(config: DictConfig) -> Report:
    """Time epochs of training, and epochs of loading alone.

    Args:
        config: settings of conf/bench.yaml.

    Raises:
        InputError: If the dtype is not float32, images are augmented, or the data do not fit the network.
    """
    if config.dtype != "float32" or config.data.augmentation is not None:
        raise InputError("what=pipeline trains in float32 and without augmentation: not every side has another way")
    quiet()  # once more, because this module has imported Lightning
    task = build_task(config)
    source = build_data(config, task)
    source.prepare_data()
    source.setup("fit")
    task.check_fit(source)
    available = len(source.split("train")[1])
    data = Sized(source, available if config.images is None else config.images)
    check(config, data)
    rows = [
        *_rows("training", TRAININGS, partial(training_seconds, config=config, data=data), config.rounds, data.count),
        *_rows("loading", LOADERS, partial(loading_seconds, config=config, data=data), config.rounds, data.count),
    ]
    return Report({_title(config, data, available): rows}, _NOTE)


def check(config: DictConfig, data: Sized) -> None:
    """Compare the networks after each side's training.

    All images form one batch, so the order of batches cannot differ.

    Args:
        config: settings of conf/bench.yaml.
        data: training images.
    """
    single = Sized(data.data, min(data.count, data.batch_size))
    probe = single.normalize(single.split("train")[0][:].float() / 255)
    with torch.no_grad():
        logits = {name: train(config, single).model.cpu()(probe) for name, train in TRAININGS.items()}
    expected = logits["lightconv"]
    for name, actual in logits.items():
        message = f"{name} trains another network than lightconv"
        torch.testing.assert_close(actual, expected, rtol=0.01, atol=0.01, msg=lambda text, by=message: f"{by}: {text}")


def _rows(
    part: str,
    names: Iterable[str],
    seconds: Callable[[str], float],
    rounds: int,
    images: int,
) -> list[dict[str, Any]]:
    times = medians({name: partial(seconds, name) for name in names}, rounds)
    ours = next(iter(times.values()))  # lightconv's is the first
    rows = []
    for name, time in times.items():
        row = {
            "epoch of": part,
            "by": name,
            "seconds": time,
            "images/s": round(images / time),
            "/ lightconv": time / ours,
        }
        rows.append(row)
    return rows


def _title(config: DictConfig, data: Sized, available: int) -> str:
    model = config.model._target_.rpartition(".")[2]
    optimizer = config.optimizer._target_.rpartition(".")[2]
    images = f"{data.count:,} images from {available:,} of {type(data.data).__name__}"
    depends_on = circumstances(config, device(), "torch", "torchvision", "lightning")
    return f"{model}, {images}, {data.batch_size} a batch, {optimizer}, num_workers={config.num_workers}: {depends_on}"
