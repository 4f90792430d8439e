"""Layers of known networks, built from lightconv.nn and from torch.nn, checked for equality, and timed."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.nn import Module

from lightconv import nn
from lightconv.autotune.timing import PASSES, Run, by_torch_in_float64, forward_and_backward, integers, medians
from lightconv.cli.settings import tensor_format
from lightconv.operators.backend import BackendName, use_backend


class TorchBlock(torch.nn.Sequential):
    """Modules of torch.nn equal to lightconv.nn.ConvBlock.

    Args:
        in_channels: channels of the images.
        out_channels: number of filters.
        kernel_size: side of a filter, in pixels.
        activation: name of the activation; only "relu".
        pool: side of a pooling window, in pixels.
        options: keyword arguments of torch.nn.Conv2d.
    """

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
    """Modules of torch.nn under lightconv.nn's names."""

    Conv2d = torch.nn.Conv2d
    MaxPool2d = torch.nn.MaxPool2d
    ConvBlock = TorchBlock


class Layer(NamedTuple):
    """A layer of a known network.

    Attributes:
        name: name in the table.
        images: size of a batch, (n, c, h, w).
        build: function that builds the layer from ``lightconv.nn`` or `Torch`.
    """

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
    """A module to time.

    Attributes:
        backend: backend that runs it.
        module: a Module, or the result of torch.compile.
    """

    backend: BackendName
    module: Any


def build_sides(layer: Layer, config: DictConfig, device: str) -> tuple[Module, Module, Tensor]:
    """Build a layer from lightconv.nn and from torch.nn, and random images for both.

    Args:
        layer: layer to build.
        config: dtype and memory format.
        device: device of the modules and the images.
    """
    ours = layer.build(nn).to(device, **tensor_format(config))
    theirs = layer.build(Torch).to(device, **tensor_format(config))
    images = torch.randn(layer.images, device=device).to(**tensor_format(config))
    # up to 3 channels it is the first layer of a network, whose images need no gradient
    return ours, theirs, images.requires_grad_(layer.images[1] > 3)


def check(layer: Layer, config: DictConfig, device: str, backend: BackendName = "triton") -> None:
    """Check that lightconv's output and gradients equal torch's in float64 bit for bit, on small integers.

    Args:
        layer: layer to check.
        config: dtype and memory format.
        device: device of the modules and the images.
        backend: backend of lightconv's side.
    """
    ours, theirs, images = build_sides(layer, config, device)
    with torch.no_grad():
        for our_parameter, their_parameter in zip(ours.parameters(), theirs.parameters(), strict=True):
            our_parameter.copy_(integers(our_parameter))
            their_parameter.copy_(our_parameter)
        images.copy_(integers(images))
        grad_output = integers(theirs(images))
    with use_backend(backend):
        results = forward_and_backward(ours, images, grad_output)
    references = by_torch_in_float64(forward_and_backward, theirs, images, grad_output)
    for actual, expected in zip(results, references, strict=True):
        torch.testing.assert_close(
            actual, expected.to(actual.dtype), rtol=0, atol=0, msg=lambda text: f"{layer.name}: {text}"
        )


def time_passes(
    contenders: Mapping[str, Contender],
    images: Tensor,
    milliseconds: Callable[[Callable[[], Any]], float],
    rounds: int,
) -> dict[str, dict[str, float]]:
    """Time the forward pass, and the forward and backward pass.

    Args:
        contenders: modules to time, keyed by name.
        images: input of every module, (n, c, h, w).
        milliseconds: clock of a step.
        rounds: measurements of each contender, taken in turns.

    Returns:
        Median of each contender, keyed by pass and by name.
    """
    first = next(iter(contenders.values()))
    grad_output = torch.randn_like(first.module(images))

    def measure(run: Run, contender: Contender) -> float:
        with use_backend(contender.backend):
            return milliseconds(partial(run, contender.module, images, grad_output))

    times = {}
    for name, run in PASSES.items():
        measurements = {library: partial(measure, run, contender) for library, contender in contenders.items()}
        times[name] = medians(measurements, rounds)
    return times
