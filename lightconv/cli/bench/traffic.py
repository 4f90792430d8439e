"""what=traffic: bytes and kernel launches of a training step, counted on any machine."""

import torch
from omegaconf import DictConfig
from torch.nn import Module

from lightconv import nn
from lightconv.analysis import Traffic, compare
from lightconv.cli.bench.layers import TorchBlock
from lightconv.cli.bench.report import Report, memory_format
from lightconv.cli.settings import tensor_format
from lightconv.errors import InputError
from lightconv.runs.build import instantiate

_MB = 1e6


def traffic(config: DictConfig) -> Report:
    """Count the bytes that a training step moves through memory, by lightconv's blocks and by torch's.

    Args:
        config: settings of conf/bench.yaml.

    Raises:
        InputError: If a layer does not exist, or the layers cannot follow each other.
    """
    side = config.model.image_size
    shape = (config.batch_size, config.model.channels, side, side)
    images = torch.empty(shape, device="meta").to(**tensor_format(config))
    ours = _network(config, nn.ConvBlock)
    theirs = _network(config, TorchBlock)
    try:
        # torch's modules word the error if sizes do not fit
        theirs(images)
    except RuntimeError as error:
        raise InputError(f"layers={config.layers} cannot follow each other from the images on: {error}") from error
    our_figures, their_figures = map(_figures, compare(ours, theirs, images))
    ratios = {name: our_figures[name] / their_figures[name] for name in our_figures}
    rows = [{"": "lightconv", **our_figures}, {"": "torch", **their_figures}, {"": "ratio", **ratios}]
    parts = "" if config.layers is None else f" {', '.join(config.layers)}"
    title = f"{config.model._target_.split('.')[-1]}{parts}: forward and backward of {config.batch_size} images"
    return Report({f"{title}, {config.dtype}, {memory_format(config)}, in MB": rows})


def _network(config: DictConfig, block: type[Module]) -> Module:
    with torch.device("meta"):
        model: Module = instantiate(config.model, block=block).to(**tensor_format(config))
    if config.layers is None:
        return model
    try:
        return torch.nn.Sequential(*(model.get_submodule(name) for name in config.layers))
    except AttributeError as error:
        known = ", ".join(name for name, _ in model.named_children())
        raise InputError(f"layers={config.layers}: list some of {known}, or give null for all") from error


def _figures(traffic: Traffic) -> dict[str, float]:
    return {
        "launches": traffic.launches,
        "operators": traffic.operators,
        "read": traffic.read / _MB,
        "written": traffic.written / _MB,
        "read + written": (traffic.read + traffic.written) / _MB,
        "saved for backward": traffic.saved / _MB,
    }
