"""what=fused: time of torchvision's networks after `lightconv.fuse` and before, on any machine."""

import copy
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.nn import Module

from lightconv.analysis.layers import build_network
from lightconv.autotune.timing import milliseconds, sample_in_turns
from lightconv.cli.bench.report import Report, circumstances
from lightconv.cli.settings import as_list, check_integer, tensor_format
from lightconv.surgery.fuse import fuse, unfuse


def fused(config: DictConfig) -> Report:
    """Time networks in evaluation mode with backend "auto".

    Args:
        config: settings of conf/bench.yaml.

    Raises:
        InputError: If a network is unknown, or has nothing to fuse.
    """
    check_integer(config.fused, "batch_size")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # build all networks first, so that a misspelt name fails before anything is measured
    networks = {name: build_network(name) for name in as_list(config.fused.networks)}
    rows = [measure(name, network, size, config, device) for name, (network, size) in networks.items()]
    depends_on = circumstances(config, device, "torch", "torchvision")
    return Report({f"milliseconds of {config.fused.batch_size} images in evaluation: {depends_on}": rows})


@torch.inference_mode()
def measure(
    name: str,
    network: Module,
    size: tuple[int, int, int],
    config: DictConfig,
    device: torch.device,
) -> dict[str, Any]:
    """Compare the results of a network fused and unfused, then time both.

    Both sides are the same modules, fused and unfused in turns. Neither has a better place in memory.

    Args:
        name: name of the network in the table.
        network: network to time.
        size: size of an image, (c, h, w).
        config: dtype, memory format, rounds and batch size.
        device: device that runs the network.

    Returns:
        A table row.
    """
    network.to(device)
    # a training step, so that BatchNorm's statistics differ from their initial values
    network.train()(torch.randn(2, *size, device=device))
    images = torch.randn(config.fused.batch_size, *size, device=device)
    check(network.eval(), images)
    network = network.to(**tensor_format(config))
    images = images.to(**tensor_format(config))
    contenders = {
        "fused": partial(_change_and_time, fuse, network, images),
        "unfused": partial(_change_and_time, unfuse, network, images),
    }
    samples = sample_in_turns(contenders, config.rounds)
    # ratios per round: load from other programs changes between rounds
    ratios = [ours / theirs for ours, theirs in zip(samples["fused"], samples["unfused"], strict=True)]
    return {
        "network": name,
        "convolutions fused": len(fuse(network).fused),
        "fused": median(samples["fused"]),
        "unfused": median(samples["unfused"]),
        "fused / unfused": median(ratios),
    }


def check(network: Module, images: Tensor) -> None:
    """Compare results in float64: fusing may change rounding, but nine digits agree."""
    exact = copy.deepcopy(network).double()
    images = images.double()
    expected = exact(images)
    fuse(exact)
    torch.testing.assert_close(exact(images), expected, rtol=0, atol=1e-9 * expected.abs().max().item())


def _change_and_time(change: Callable[[Module], Any], network: Module, images: Tensor) -> float:
    change(network)
    return milliseconds(partial(network, images))
