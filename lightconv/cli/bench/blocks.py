"""what=blocks: time of lightconv.nn.ConvBlock and of nn.Sequential(Conv2d, ReLU, MaxPool2d), on any machine."""

import math
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from lightconv.autotune.timing import milliseconds
from lightconv.cli.bench.layers import BLOCKS, Contender, Layer, build_sides, check, time_passes
from lightconv.cli.bench.report import Report, circumstances
from lightconv.errors import InputError

_LARGEST_ON_CPU = 2**19  # elements of a batch: LeNet's 256 images; a few of VGG16's images take a CPU long enough


def blocks(config: DictConfig) -> Report:
    """Time the blocks of known networks in both memory formats with backend "auto".

    Args:
        config: settings of conf/bench.yaml.

    Raises:
        InputError: If the dtype is half precision on a CPU.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and config.dtype != "float32":
        # many CPUs sum in half precision, and then even sums of small integers are not exact
        raise InputError(f"dtype={config.dtype}: on a CPU what=blocks measures float32, where results can be checked")
    # a CPU takes minutes for 32 images of VGG16
    layers = BLOCKS if device.type == "cuda" else [for_cpu(layer) for layer in BLOCKS]
    # the faster memory format differs from layer to layer
    tables = {}
    for channels_last in (False, True):
        settings = OmegaConf.create({**config, "channels_last": channels_last})
        rows: list[dict[str, Any]] = []
        for layer in layers:
            rows += measure(layer, settings, device.type)
        title = "milliseconds of ConvBlock and of nn.Sequential(Conv2d, ReLU, MaxPool2d)"
        tables[f"{title}: {circumstances(settings, device, 'torch')}"] = rows
    return Report(tables)


def for_cpu(layer: Layer) -> Layer:
    """Return the layer with a batch small enough for a CPU."""
    images, *shape = layer.images
    largest = max(1, _LARGEST_ON_CPU // math.prod(shape))
    return layer._replace(images=(min(images, largest), *layer.images[1:]))


def measure(layer: Layer, config: DictConfig, device: str) -> list[dict[str, Any]]:
    """Compare the results of lightconv and torch, then time both.

    Args:
        layer: block to time.
        config: dtype, memory format and rounds.
        device: "cpu" or "cuda".

    Returns:
        A table row for the forward pass, and one for the forward and backward pass.
    """
    check(layer, config, device, backend="auto")
    ours, theirs, images = build_sides(layer, config, device)
    contenders = {"lightconv": Contender("auto", ours), "torch": Contender("reference", theirs)}
    rows = []
    for name, times in time_passes(contenders, images, milliseconds, config.rounds).items():
        ratio = times["torch"] / times["lightconv"]
        rows.append({"layer": layer.name, "images": layer.images[0], "pass": name, **times, "/ lightconv": ratio})
    return rows
