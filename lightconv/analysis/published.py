"""Published measurements, and the model's prediction for the same layers.

Nobody has published times of lightconv's own kernels. A published kernel of the same kind, by TileLang or Triton, is
compared with the bounds of lightconv's kernel. Torch's operators are compared with their rooflines. The model is a
lower bound, so it should fall short. The shortfall is its error on layers of that size.
"""

import statistics
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from lightconv.analysis import layers, prediction
from lightconv.analysis.compilation import compile_kernels, training_step
from lightconv.analysis.gpus import GPUS
from lightconv.nn import Conv2d, MaxPool2d

Library = Literal["tilelang", "inductor", "eager"]
ImageShape = tuple[int, int, int, int]

_CONVOLUTIONS = "github.com/tile-ai/TileOPs/pull/656 (H200, torch 2.9; shapes from benchmarks/ops/bench_conv2d.py)"
_POOLINGS = "github.com/tile-ai/TileOPs/pull/2072 (H200; shapes from src/tileops/manifest/pool.yaml)"
_EAGER = "KernelBench results/timing/H100_modal (H100, torch eager, 100 trials)"


class Measurement(NamedTuple):
    """One published time of a forward pass.

    Attributes:
        gpu: key of `GPUS`.
        images: input shape, (n, c, h, w).
        module: class name in ``lightconv.nn``, its positional arguments, and its keyword arguments.
        dtype: dtype of images and weights.
        channels_last: True for channels_last images and filters.
        library: library measured.
        microseconds: time in microseconds, as published or computed from the published rate.
        source: publication.
    """

    gpu: str
    images: ImageShape
    module: tuple[str, tuple[Any, ...], dict[str, Any]]
    dtype: torch.dtype
    channels_last: bool
    library: Library
    microseconds: float
    source: str

    @property
    def circumstances(self) -> str:
        """Batch size, dtype and GPU in words: "32 images, float16, H200"."""
        count = self.images[0]
        images = "1 image" if count == 1 else f"{count} images"
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{images}, {dtype}, {self.gpu.upper()}"


def _convolution(images: ImageShape, filters: int, size: int, stride: int, tflops: float) -> Measurement:
    n, c, h, w = images
    operations = 2 * n * (h // stride) * (w // stride) * filters * c * size * size
    seconds = operations / (tflops * 1e12)
    return Measurement(
        gpu="h200",
        images=images,
        module=("Conv2d", (c, filters, size, stride, size // 2), {}),
        dtype=torch.float16,
        channels_last=True,
        library="tilelang",
        microseconds=seconds * 1e6,
        source=_CONVOLUTIONS,
    )


def _pooling(images: ImageShape, window: tuple[int, ...], library: Library, microseconds: float) -> Measurement:
    return Measurement(
        gpu="h200",
        images=images,
        module=("MaxPool2d", window, {}),
        dtype=torch.float16,
        channels_last=False,
        library=library,
        microseconds=microseconds,
        source=_POOLINGS,
    )


def _depthwise(images: ImageShape, size: int, microseconds: float) -> Measurement:
    c = images[1]
    return Measurement(
        gpu="h100",
        images=images,
        module=("Conv2d", (c, c, size), {"groups": c, "bias": False}),
        dtype=torch.float32,
        channels_last=False,
        library="eager",
        microseconds=microseconds,
        source=_EAGER,
    )


MEASUREMENTS = (
    # shape of the images; filters; size; stride; TFLOPS
    _convolution((2, 64, 56, 56), 64, 3, 1, 51.79),
    _convolution((1, 3, 112, 112), 64, 3, 2, 1.37),
    _convolution((1, 128, 56, 56), 256, 3, 2, 37.53),
    _convolution((1, 256, 112, 112), 512, 3, 1, 458.53),
    _convolution((1, 64, 56, 56), 128, 5, 1, 96.25),
    _convolution((1, 128, 56, 56), 256, 5, 2, 54.91),
    _convolution((1, 128, 28, 28), 128, 3, 2, 5.28),
    # shape of the images; window's size, stride and padding; library; microseconds
    _pooling((32, 64, 112, 112), (3, 2, 1), "tilelang", 47.969),
    _pooling((32, 64, 112, 112), (3, 2, 1), "inductor", 53.056),
    _pooling((32, 64, 112, 112), (3, 2, 1), "eager", 106.753),
    _pooling((16, 128, 56, 56), (2, 2, 0), "tilelang", 9.216),
    _pooling((16, 128, 56, 56), (2, 2, 0), "inductor", 9.600),
    _pooling((16, 128, 56, 56), (2, 2, 0), "eager", 21.665),
    # shape of the images; size; microseconds
    _depthwise((16, 64, 512, 512), 3, 2540.0),
    _depthwise((64, 128, 256, 512), 3, 10100.0),
)


class Comparison(NamedTuple):
    """A measurement and its prediction.

    Attributes:
        measurement: published time.
        layer: sizes of the layer in words.
        predicted: predicted time, in microseconds.
        bound: name of the largest bound, or "roofline" for torch's operators.
    """

    measurement: Measurement
    layer: str
    predicted: float
    bound: str

    @property
    def error(self) -> float:
        """Relative error of the prediction: -0.2 is a fifth too short."""
        return self.predicted / self.measurement.microseconds - 1


def comparisons(measurements: Sequence[Measurement] = MEASUREMENTS) -> list[Comparison]:
    """Predict measured forward passes: by lightconv's kernel, or by the roofline of torch's operator.

    Args:
        measurements: published times.

    Raises:
        InputError: If this process interprets kernels.
    """
    return [compare_measurement(measurement) for measurement in measurements]


def compare_measurement(measurement: Measurement) -> Comparison:
    """Predict one measured forward pass."""
    gpu = GPUS[measurement.gpu]
    name, arguments, options = measurement.module
    module_class = {"Conv2d": Conv2d, "MaxPool2d": MaxPool2d}[name]
    with torch.device("meta"):
        module = nn.Sequential(module_class(*arguments, **options))
        images = torch.empty(measurement.images)
    memory_format = torch.channels_last if measurement.channels_last else torch.contiguous_format
    (layer,) = layers.find_layers(*layers.convert(module, images, measurement.dtype, memory_format))
    if measurement.library == "eager":
        seconds = prediction.by_eager_torch(layer, gpu).forward
        return Comparison(measurement, layer.sizes, seconds * 1e6, "roofline")
    forward = training_step(layer.module, layer.images, gpu.architecture)[0]
    (launch,) = forward.launches
    (kernel,) = compile_kernels([launch])
    bounds = prediction.bounds(launch, kernel, gpu)
    return Comparison(measurement, layer.sizes, bounds.seconds * 1e6, bounds.name)


def median_error(compared: Sequence[Comparison]) -> float:
    """Return the median of the absolute relative errors."""
    return statistics.median(abs(comparison.error) for comparison in compared)
