"""Measurements that others published, and what the model predicts for the same layer: how far it can be trusted.

Nobody has published times of lightconv's own kernels. Compared is a kernel of the same kind, by TileLang or Triton,
with the bound of lightconv's, and torch's operator with its roofline: the model is a lower bound, so it should fall
short, and by how much is its error on layers of that size.
"""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from lightconv.analysis import layers, prediction
from lightconv.analysis.compilation import compiled, training_step
from lightconv.analysis.gpus import GPUS
from lightconv.nn import Conv2d, MaxPool2d

_CONVOLUTIONS = "github.com/tile-ai/TileOPs/pull/656 (H200, torch 2.9; shapes from benchmarks/ops/bench_conv2d.py)"
_POOLINGS = "github.com/tile-ai/TileOPs/pull/2072 (H200; shapes from src/tileops/manifest/pool.yaml)"
_EAGER = "KernelBench results/timing/H100_modal (H100, torch eager, 100 trials)"


class Measurement(NamedTuple):
    """One published time of a forward pass.

    Attributes:
        gpu: a key of `GPUS`.
        images: shape.
        module: name in ``lightconv.nn``, and its arguments.
        dtype: of images and weights.
        channels_last: memory format.
        library: that was measured: "tilelang", "inductor" or "eager".
        microseconds: as published, or from the published rate.
        source: where.
    """

    gpu: str
    images: tuple[int, int, int, int]
    module: tuple[str, tuple[Any, ...], dict[str, Any]]
    dtype: torch.dtype
    channels_last: bool
    library: str
    microseconds: float
    source: str

    @property
    def circumstances(self) -> str:
        """What the layer's sizes do not say."""
        count = self.images[0]
        return f"{count} image{'s' if count > 1 else ''}, {str(self.dtype).removeprefix('torch.')}, {self.gpu.upper()}"


def _convolution(images: tuple[int, int, int, int], filters: int, size: int, stride: int, tflops: float) -> Measurement:
    n, c, h, w = images
    seconds = 2 * n * (h // stride) * (w // stride) * filters * c * size * size / (tflops * 1e12)
    return Measurement(
        "h200",
        images,
        ("Conv2d", (c, filters, size, stride, size // 2), {}),
        torch.float16,
        True,
        "tilelang",
        seconds * 1e6,
        _CONVOLUTIONS,
    )


def _pooling(images: tuple[int, int, int, int], window: tuple[int, ...], library: str, time: float) -> Measurement:
    return Measurement("h200", images, ("MaxPool2d", window, {}), torch.float16, False, library, time, _POOLINGS)


def _depthwise(images: tuple[int, int, int, int], size: int, time: float) -> Measurement:
    c = images[1]
    module = ("Conv2d", (c, c, size), {"groups": c, "bias": False})
    return Measurement("h100", images, module, torch.float32, False, "eager", time, _EAGER)


MEASUREMENTS = (
    _convolution((2, 64, 56, 56), 64, 3, 1, 51.79),
    _convolution((1, 3, 112, 112), 64, 3, 2, 1.37),
    _convolution((1, 128, 56, 56), 256, 3, 2, 37.53),
    _convolution((1, 256, 112, 112), 512, 3, 1, 458.53),
    _convolution((1, 64, 56, 56), 128, 5, 1, 96.25),
    _convolution((1, 128, 56, 56), 256, 5, 2, 54.91),
    _convolution((1, 128, 28, 28), 128, 3, 2, 5.28),
    _pooling((32, 64, 112, 112), (3, 2, 1), "tilelang", 47.969),
    _pooling((32, 64, 112, 112), (3, 2, 1), "inductor", 53.056),
    _pooling((32, 64, 112, 112), (3, 2, 1), "eager", 106.753),
    _pooling((16, 128, 56, 56), (2, 2, 0), "tilelang", 9.216),
    _pooling((16, 128, 56, 56), (2, 2, 0), "inductor", 9.600),
    _pooling((16, 128, 56, 56), (2, 2, 0), "eager", 21.665),
    _depthwise((16, 64, 512, 512), 3, 2540.0),
    _depthwise((64, 128, 256, 512), 3, 10100.0),
)


class Comparison(NamedTuple):
    """A measurement and what the model says: microseconds."""

    measurement: Measurement
    layer: str
    predicted: float
    bound: str

    @property
    def error(self) -> float:
        """Of the prediction: -0.2 is a fifth too short."""
        return self.predicted / self.measurement.microseconds - 1


def comparisons(measurements: Sequence[Measurement] = MEASUREMENTS) -> list[Comparison]:
    """Predict every measured forward pass: by lightconv's kernel, or by the roofline of torch's operator."""
    return [_compared(measurement) for measurement in measurements]


def _compared(measurement: Measurement) -> Comparison:
    gpu, (name, arguments, options) = GPUS[measurement.gpu], measurement.module
    with torch.device("meta"):
        module = {"Conv2d": Conv2d, "MaxPool2d": MaxPool2d}[name](*arguments, **options)
        images = torch.empty(measurement.images)
    memory_format = torch.channels_last if measurement.channels_last else torch.contiguous_format
    (layer,) = layers.found(*layers.formatted(nn.Sequential(module), images, measurement.dtype, memory_format))
    if measurement.library == "eager":
        seconds = prediction.by_eager_torch(layer, gpu).forward
        return Comparison(measurement, layer.sizes, seconds * 1e6, "roofline")
    (launch,) = training_step(layer.module, layer.images, gpu.architecture)[0].launches
    bounds = prediction.bounds(launch, compiled([launch])[0], gpu)
    return Comparison(measurement, layer.sizes, bounds.seconds * 1e6, bounds.name)


def median_error(compared: Sequence[Comparison]) -> float:
    """The median of the errors' sizes."""
    return statistics.median(abs(c.error) for c in compared)
