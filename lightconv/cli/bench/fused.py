"""what=fused: whole networks of torchvision after `lightconv.fuse` and before, in time on any machine."""

import copy
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
    """Time networks in evaluation, as lightconv serves them by itself ("auto").

    Raises:
        InputError: for an unknown network, or one in which there is nothing to fuse.
    """
    check_integer(config.fused, "batch_size")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    known = {name: build_network(name) for name in as_list(config.fused.networks)}  # a misspelt one costs no time
    rows = [measure(name, *network, config, device) for name, network in known.items()]
    depends_on = circumstances(config, device, "torch", "torchvision")
    return Report({f"milliseconds of {config.fused.batch_size} images in evaluation: {depends_on}": rows})


@torch.inference_mode()
def measure(
    name: str, network: Module, size: tuple[int, int, int], config: DictConfig, device: torch.device
) -> dict[str, Any]:
    """Time a network fused and unfused, once it is known to compute the same.

    Both are the same modules, so that neither has the better place in memory: it is fused and unfused in turns.
    """
    network.to(device).train()(torch.randn(2, *size, device=device))  # for statistics that are not those of the start
    images = torch.randn(config.fused.batch_size, *size, device=device)
    check(network.eval(), images)
    network, images = network.to(**tensor_format(config)), images.to(**tensor_format(config))
    contenders = {"fused": partial(_after, fuse, network, images), "unfused": partial(_after, unfuse, network, images)}
    taken = sample_in_turns(contenders, config.rounds)
    ratios = [ours / theirs for ours, theirs in zip(*taken.values(), strict=True)]  # of a round: others may come and go
    return {
        "network": name,
        "convolutions fused": len(fuse(network).fused),
        **{side: median(values) for side, values in taken.items()},
        "fused / unfused": median(ratios),
    }


def check(network: Module, images: Tensor) -> None:
    """Make sure that fusing changes nothing but rounding: in float64 to nine digits."""
    exact, images = copy.deepcopy(network).double(), images.double()
    expected = exact(images)
    fuse(exact)
    torch.testing.assert_close(exact(images), expected, rtol=0, atol=1e-9 * expected.abs().max().item())


def _after(change: Any, network: Module, images: Tensor) -> float:
    change(network)
    return milliseconds(partial(network, images))
