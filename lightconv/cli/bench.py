"""lightconv bench: what the kernels save, counted in bytes on any machine or measured in time on a GPU."""

import statistics
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.nn import Module

from lightconv import nn
from lightconv.analysis import Traffic, compare
from lightconv.cli import tables
from lightconv.cli.application import instantiate
from lightconv.errors import InputError
from lightconv.operators.backend import use_backend

_DTYPES = ("float32", "float16", "bfloat16")
_ROUNDS = 5


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


LAYERS = (
    Layer("LeNet conv1", (256, 1, 28, 28), lambda nn: nn.ConvBlock(1, 6, 5, padding=2, pool=2)),
    Layer("LeNet conv2", (256, 6, 14, 14), lambda nn: nn.ConvBlock(6, 16, 5, pool=2)),
    Layer("VGG16 conv1_2", (32, 64, 224, 224), lambda nn: nn.ConvBlock(64, 64, 3, padding=1, pool=2)),
    Layer("VGG16 conv5_3", (32, 512, 14, 14), lambda nn: nn.ConvBlock(512, 512, 3, padding=1, pool=2)),
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


def bench(config: DictConfig) -> None:
    """Print, or write down, how lightconv compares with torch.

    Raises:
        InputError: for unknown settings, or a measurement without a GPU.
    """
    if config.what not in WHAT:
        raise InputError(f"what={config.what}: choose one of {', '.join(WHAT)}")
    if config.dtype not in _DTYPES:
        raise InputError(f"dtype={config.dtype}: choose one of {', '.join(_DTYPES)}")
    WHAT[config.what](config)


def _formatted(config: DictConfig) -> dict[str, Any]:
    """What brings a batch or a module into the dtype and memory format asked for, as arguments of its ``to``."""
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    return {"dtype": getattr(torch, config.dtype), "memory_format": memory_format}


# ---------------------------------------------------------------------------------------------- counted anywhere


def show_traffic(config: DictConfig) -> None:
    """Print what a training step moves through memory by lightconv's blocks and by torch's.

    Raises:
        InputError: if there is no such model, layer or batch.
    """
    if not isinstance(config.batch_size, int) or config.batch_size < 1:
        raise InputError(f"batch_size={config.batch_size}: a batch needs at least one image")
    side = config.model.image_size
    images = torch.empty(config.batch_size, config.model.channels, side, side, device="meta").to(**_formatted(config))
    ours, theirs = (_network(config, block) for block in (nn.ConvBlock, TorchBlock))
    try:
        theirs(images)
    except RuntimeError as error:
        raise InputError(f"layers={config.layers} cannot follow each other from the images on: {error}") from error
    our_figures, their_figures = map(_figures, compare(ours, theirs, images))
    ratios = {name: our_figures[name] / their_figures[name] for name in our_figures}
    rows = [{"": "lightconv", **our_figures}, {"": "torch", **their_figures}, {"": "ratio", **ratios}]
    parts = "" if config.layers is None else f" {', '.join(config.layers)}"
    title = f"{config.model._target_.split('.')[-1]}{parts}: forward and backward of {config.batch_size} images"
    tables.show_rows(f"{title}, {_settings(config)}, in MB", rows)


def _settings(config: DictConfig) -> str:
    return f"{config.dtype}, {'channels_last' if config.channels_last else 'contiguous'}"


def _network(config: DictConfig, block: type[Module]) -> Module:
    with torch.device("meta"):
        model: Module = instantiate(config.model, block=block).to(**_formatted(config))
    if config.layers is None:
        return model
    try:
        return torch.nn.Sequential(*(model.get_submodule(name) for name in config.layers))
    except AttributeError as error:
        known = ", ".join(name for name, _ in model.named_children())
        raise InputError(f"layers={config.layers}: list some of {known}, or give null for all") from error


def _figures(counted: Traffic) -> dict[str, float]:
    return {
        "launches": counted.launches,
        "operators": counted.operators,
        "read": counted.read / 1e6,
        "written": counted.written / 1e6,
        "read + written": (counted.read + counted.written) / 1e6,
        "saved for backward": counted.saved / 1e6,
    }


# --------------------------------------------------------------------------------------------- measured on a GPU


def measure_kernels(config: DictConfig) -> None:
    """Time every layer of `LAYERS` and write a Markdown table.

    Raises:
        InputError: without a GPU or Triton.
    """
    if not torch.cuda.is_available():
        raise InputError("what=kernels measures on a GPU and there is none here; what=traffic counts on any machine")
    with use_backend("triton"):  # refuses here, before anything is measured, where Triton is not installed
        import triton  # noqa: PLC0415
    Path(config.output).parent.mkdir(parents=True, exist_ok=True)
    torch.backends.cudnn.benchmark = True  # torch at its best
    rows = [row for layer in LAYERS for row in measure(layer, config, "cuda")]
    versions = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}"
    Path(config.output).write_text(f"{versions}, {_settings(config)}; median milliseconds\n\n{markdown(rows)}")
    tables.show_rows(f"{versions}: {config.output}", rows)


def measure(layer: Layer, config: DictConfig, device: str) -> list[dict[str, Any]]:
    """Time a layer by lightconv, torch and torch.compile, once they are known to compute the same.

    Returns:
        A table row for the forward pass and one for forward and backward.
    """
    check(layer, config, device)
    torch.compiler.reset()
    ours, theirs, images = _sides(layer, config, device)
    contenders: dict[str, tuple[str, Any]] = {
        "lightconv": ("triton", ours),
        "torch": ("reference", theirs),
        "torch.compile": ("reference", torch.compile(theirs)),
    }
    cotangent = torch.randn_like(theirs(images))
    rows = []
    for name, step in {"forward": _forward, "forward+backward": _training_step}.items():
        steps = {
            library: (backend, partial(step, module, images, cotangent))
            for library, (backend, module) in contenders.items()
        }
        rows.append({"layer": layer.name, "images": "x".join(map(str, layer.images)), "pass": name, **_medians(steps)})
    return rows


def check(layer: Layer, config: DictConfig, device: str) -> None:
    """Make sure that lightconv's result and gradients are torch's in float64: on small integers, to the last bit."""
    ours, theirs, images = _sides(layer, config, device)
    with torch.no_grad():
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            other.copy_(mine.copy_(_integers(mine)))
        images.copy_(_integers(images))
        cotangent = _integers(theirs(images))
    exact = images.detach().double().requires_grad_(images.requires_grad)
    with use_backend("triton"):
        actual = _training_step(ours, images, cotangent)
    with use_backend("reference"):
        expected = _training_step(theirs.double(), exact, cotangent.double())
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e.to(a.dtype), rtol=0, atol=0, msg=lambda text: f"{layer.name}: {text}")


def _sides(layer: Layer, config: DictConfig, device: str) -> tuple[Module, Module, Tensor]:
    ours, theirs = (layer.build(library).to(device, **_formatted(config)) for library in (nn, Torch))
    images = torch.randn(layer.images, device=device).to(**_formatted(config))
    return ours, theirs, images.requires_grad_(layer.images[1] > 3)  # a first layer's images need no gradient


def _integers(like: Tensor) -> Tensor:
    return torch.randint_like(like, -3, 4)


def _forward(module: Module, images: Tensor, cotangent: Tensor) -> Tensor:
    with torch.no_grad():
        return module(images)


def _training_step(module: Module, images: Tensor, cotangent: Tensor) -> list[Tensor]:
    """The result and all gradients."""
    output = module(images)
    wanted = [t for t in (images, *module.parameters()) if t.requires_grad]
    return [output.detach(), *torch.autograd.grad(output, wanted, cotangent)]


def _medians(steps: Mapping[str, tuple[str, Callable[[], Any]]]) -> dict[str, float]:
    """Milliseconds of each step, taken in turns: a clock that drifts slows all of them."""
    from triton.testing import do_bench  # noqa: PLC0415

    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(_ROUNDS):
        for name, (backend, step) in steps.items():
            with use_backend(backend):
                times[name].append(do_bench(step, return_mode="median"))
    return {name: statistics.median(samples) for name, samples in times.items()}


def markdown(rows: list[dict[str, Any]]) -> str:
    """A Markdown table of dictionaries with the same keys."""
    lines = [rows[0].keys(), ["---"] * len(rows[0]), *(map(tables.text, row.values()) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


WHAT = {"traffic": show_traffic, "kernels": measure_kernels}
