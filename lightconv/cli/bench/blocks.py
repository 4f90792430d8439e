"""what=blocks: lightconv.nn.ConvBlock against nn.Sequential(Conv2d, ReLU, MaxPool2d), in time on any machine."""

import math
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from lightconv.autotune.timing import milliseconds
from lightconv.cli.bench.layers import BLOCKS, Contender, Layer, check, sides, timed
from lightconv.cli.bench.report import Report, circumstances
from lightconv.errors import InputError

_LARGEST_ON_CPU = 2**19  # elements of a batch: LeNet's 256 images, and a few of VGG16's, which take a CPU long enough


def blocks(config: DictConfig) -> Report:
    """Time the blocks of known networks in both memory formats, as lightconv serves them by itself ("auto").

    Raises:
        InputError: for half precision on a CPU.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and config.dtype != "float32":
        # many CPUs have torch sum in the dtype itself, so that not even small integers come out exact
        raise InputError(f"dtype={config.dtype}: on a CPU what=blocks measures float32, where results can be checked")
    layers = BLOCKS if device.type == "cuda" else [for_cpu(layer) for layer in BLOCKS]
    tables = {}
    for channels_last in (False, True):
        settings = OmegaConf.create({**config, "channels_last": channels_last})
        title = "milliseconds of ConvBlock and of nn.Sequential(Conv2d, ReLU, MaxPool2d)"
        rows = [row for layer in layers for row in measure(layer, settings, device.type)]
        tables[f"{title}: {circumstances(settings, device, 'torch')}"] = rows
    return Report(tables)


def for_cpu(layer: Layer) -> Layer:
    """The layer with a batch that a CPU gets through."""
    count, *shape = layer.images
    count = min(count, max(1, _LARGEST_ON_CPU // math.prod(shape)))
    return layer._replace(images=(count, *layer.images[1:]))


def measure(layer: Layer, config: DictConfig, device: str) -> list[dict[str, Any]]:
    """Time a block by lightconv and by torch, once they are known to compute the same.

    Returns:
        A table row for the forward pass and one for forward and backward.
    """
    check(layer, config, device, backend="auto")
    ours, theirs, images = sides(layer, config, device)
    contenders = {"lightconv": Contender("auto", ours), "torch": Contender("reference", theirs)}
    described = {"layer": layer.name, "images": layer.images[0]}
    return [
        {**described, "pass": name, **times, "/ lightconv": times["torch"] / times["lightconv"]}
        for name, times in timed(contenders, images, milliseconds, config.rounds).items()
    ]
