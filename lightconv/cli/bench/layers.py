"""Layers of known networks, built of lightconv.nn and of torch.nn: found equal, then timed."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.nn import Module

from lightconv import nn
from lightconv.autotune.timing import PASSES, by_torch_in_float64, forward_and_backward, integers, medians
from lightconv.cli.settings import tensor_format
from lightconv.operators.backend import BackendName, use_backend


class TorchBlock(torch.nn.Sequential):
    """lightconv.nn.ConvBlock as it is written without lightconv."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        activation: Literal["relu"] = "relu",
        pool: int,
        **options: Any,
    ) -> None:
        convolution = torch.nn.Conv2d(in_channels, out_channels, kernel_size, **options)
        super().__init__(convolution, torch.nn.ReLU(), torch.nn.MaxPool2d(pool))


class Torch:
    """torch's modules under the names that lightconv.nn gives its own."""

    Conv2d, MaxPool2d, ConvBlock = torch.nn.Conv2d, torch.nn.MaxPool2d, TorchBlock


class Layer(NamedTuple):
    """A layer of a known network, built of ``lightconv.nn`` or of `Torch`."""

    name: str
    images: tuple[int, int, int, int]
    build: Callable[[Any], Module]


BLOCKS = (
    Layer("LeNet conv1", (256, 1, 28, 28), lambda nn: nn.ConvBlock(1, 6, 5, padding=2, pool=2)),
    Layer("LeNet conv2", (256, 6, 14, 14), lambda nn: nn.ConvBlock(6, 16, 5, pool=2)),
    Layer("VGG16 conv1_2", (32, 64, 224, 224), lambda nn: nn.ConvBlock(64, 64, 3, padding=1, pool=2)),
    Layer("VGG16 conv5_3", (32, 512, 14, 14), lambda nn: nn.ConvBlock(512, 512, 3, padding=1, pool=2)),
)
LAYERS = (
    *BLOCKS,
    Layer("VGG16 conv3_2", (32, 256, 56, 56), lambda nn: nn.Conv2d(256, 256, 3, padding=1)),
    Layer("ResNet-50 conv1", (32, 3, 224, 224), lambda nn: nn.Conv2d(3, 64, 7, 2, 3, bias=False)),
    Layer("ResNet-50 maxpool", (32, 64, 112, 112), lambda nn: nn.MaxPool2d(3, 2, 1)),
    Layer("ResNet-50 layer1 3x3", (32, 64, 56, 56), lambda nn: nn.Conv2d(64, 64, 3, padding=1, bias=False)),
    Layer("ResNet-50 layer3 1x1", (32, 1024, 14, 14), lambda nn: nn.Conv2d(1024, 256, 1, bias=False)),
    Layer(
        "MobileNetV2 112x112 depthwise",
        (32, 32, 112, 112),
        lambda nn: nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False),
    ),
    Layer(
        "MobileNetV2 56x56 depthwise, stride 2",
        (32, 144, 56, 56),
        lambda nn: nn.Conv2d(144, 144, 3, 2, 1, groups=144, bias=False),
    ),
    Layer(
        "MobileNetV2 14x14 depthwise",
        (32, 384, 14, 14),
        lambda nn: nn.Conv2d(384, 384, 3, padding=1, groups=384, bias=False),
    ),
)


class Contender(NamedTuple):
    """A module and the backend under which it runs."""

    backend: BackendName
    module: Any  # a Module, or what torch.compile makes of one


def sides(layer: Layer, config: DictConfig, device: str) -> tuple[Module, Module, Tensor]:
    """The layer of lightconv.nn and of torch.nn, and images for it."""
    ours, theirs = (layer.build(library).to(device, **tensor_format(config)) for library in (nn, Torch))
    images = torch.randn(layer.images, device=device).to(**tensor_format(config))
    return ours, theirs, images.requires_grad_(layer.images[1] > 3)  # a first layer's images need no gradient


def check(layer: Layer, config: DictConfig, device: str, backend: BackendName = "triton") -> None:
    """Make sure that lightconv's result and gradients are torch's in float64: on small integers, to the last bit."""
    ours, theirs, images = sides(layer, config, device)
    with torch.no_grad():
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            other.copy_(mine.copy_(integers(mine)))
        images.copy_(integers(images))
        cotangent = integers(theirs(images))
    with use_backend(backend):
        actual = forward_and_backward(ours, images, cotangent)
    expected = by_torch_in_float64(forward_and_backward, theirs, images, cotangent)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e.to(a.dtype), rtol=0, atol=0, msg=lambda text: f"{layer.name}: {text}")


def timed(
    contenders: Mapping[str, Contender],
    images: Tensor,
    milliseconds: Callable[[Callable[[], Any]], float],
    rounds: int,
) -> dict[str, dict[str, float]]:
    """Time the forward pass, and forward and backward together.

    Args:
        contenders: by name.
        images: that each is called with.
        milliseconds: measures a step.
        rounds: turns that are taken.

    Returns:
        The contenders' medians for each pass.
    """
    cotangent = torch.randn_like(next(iter(contenders.values())).module(images))

    def measure(step: Callable[..., Any], backend: BackendName, module: Module) -> float:
        with use_backend(backend):
            return milliseconds(partial(step, module, images, cotangent))

    return {
        name: medians(
            {library: partial(measure, step, *contender) for library, contender in contenders.items()}, rounds
        )
        for name, step in PASSES.items()
    }
