"""Depthwise convolution and its gradients: equal to torch's on small integers, and compiled without spills."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import conv2d

from lightconv.analysis.compilation import CompiledKernel
from lightconv.analysis.machine_code import count
from lightconv.kernels import depthwise, depthwise_plan
from lightconv.kernels.tiles import ARCHITECTURES, Tiles
from lightconv.kernels.window import Window

TILES = depthwise_plan.TILES["sm_80"]  # the interpreter's; all architectures have the same
WEIGHT_TILES = depthwise_plan.WEIGHT_TILES["sm_80"]
NAMES = ("output", "grad_input", "grad_weight", "grad_bias")


class Geometry(NamedTuple):
    channels: int = 20
    multiplier: int = 1
    image: tuple[int, int] = (4, 9)
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    images: int = 2

    @property
    def window(self):
        return Window(self.stride, self.padding, self.dilation)

    @property
    def output(self):
        sizes = zip(self.image, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in sizes)


def channels_last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last)


def sliced(t: Tensor) -> Tensor:
    """Copy into the inside of a larger tensor, so that no dimension is dense."""
    n, c, h, w = t.shape
    larger = t.new_full((n, 2 * c, h + 2, w + 3), 100)
    result = larger[:, ::2, 1:-1, 1:-2]
    return result.copy_(t)


LAYOUTS = {"channels_last": channels_last, "contiguous": Tensor.contiguous, "sliced": sliced}


def operands(geometry: Geometry, values=lambda *shape: torch.randint(-3, 4, shape).float()) -> list[Tensor]:
    """Return images, weight, bias and the gradient of the output."""
    filters = geometry.channels * geometry.multiplier
    return [
        values(geometry.images, geometry.channels, *geometry.image),
        values(filters, 1, *geometry.kernel),
        values(filters),
        values(geometry.images, filters, *geometry.output),
    ]


def by_torch(images: Tensor, weight: Tensor, bias: Tensor, grad_output: Tensor, geometry: Geometry) -> list[Tensor]:
    """Return the output and the gradients by torch, in float32."""
    leaves = [t.detach().requires_grad_() for t in (images, weight, bias)]
    output = conv2d(*leaves, *geometry.window, geometry.channels)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad_output)]


def by_kernels(
    images: Tensor,
    weight: Tensor,
    bias: Tensor,
    grad_output: Tensor,
    geometry: Geometry,
    tile=None,
    weight_tile=None,
) -> list[Tensor]:
    """Return the output and the gradients by the kernels; an element they do not write is NaN."""
    output, grad_input, grad_weight, grad_bias = (
        torch.full_like(t, float("nan")) for t in (grad_output, images, weight, bias)
    )
    grad_weight = grad_weight.contiguous()
    window = geometry.window
    depthwise.forward((output,), images, weight, bias, window=window, tile=tile)
    depthwise.input_gradient((grad_input,), grad_output, weight, window=window, tile=tile)
    depthwise.weight_gradient((grad_weight, grad_bias), grad_output, images, window=window, tile=weight_tile)
    return [output, grad_input, grad_weight, grad_bias]


def assert_equal(actual: list[Tensor], expected: list[Tensor]) -> None:
    for name, a, e in zip(NAMES, actual, expected, strict=True):
        torch.testing.assert_close(
            a, e.to(a.dtype), rtol=0, atol=0, equal_nan=True, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("tile", "weight_tile"), list(itertools.zip_longest(TILES, WEIGHT_TILES)))
def test_every_tile(tile, weight_tile, dtype, layout):
    geometry = Geometry()
    x, w, b, g = operands(geometry)
    arranged = [LAYOUTS[layout](t).to(dtype) if t.ndim == 4 else t.to(dtype) for t in (x, w, b, g)]
    assert_equal(by_kernels(*arranged, geometry, tile, weight_tile), by_torch(x, w, b, g, geometry))


sizes = st.tuples(st.integers(1, 7), st.integers(1, 10))
pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    geometry=st.builds(
        Geometry,
        channels=st.integers(1, 18),
        multiplier=st.integers(1, 3),
        image=sizes,
        kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
        stride=pairs,
        padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
        dilation=pairs,
        images=st.integers(1, 2),
    ),
    layout=st.sampled_from(sorted(LAYOUTS)),
)
def test_random_geometry(geometry, layout):
    assume(min(geometry.output) > 0)
    x, w, b, g = operands(geometry)
    arranged = [LAYOUTS[layout](t) if t.ndim == 4 else t for t in (x, w, b, g)]
    assert_equal(by_kernels(*arranged, geometry), by_torch(x, w, b, g, geometry))


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("splits", [1, 2, 5])
def test_split_sum(splits, with_bias, monkeypatch):
    """Any number of splits, the last of which may be empty; float16 splits are summed in float32."""
    monkeypatch.setattr(depthwise_plan, "split_count", lambda *_: splits)
    geometry = Geometry(image=(17, 9), multiplier=2, channels=3)
    images, weight, bias, grad_output = (t.half() for t in operands(geometry))
    grad_weight = torch.full_like(weight, float("nan"))
    grad_bias = torch.full_like(bias, float("nan")) if with_bias else None
    depthwise.weight_gradient(
        (grad_weight, grad_bias), channels_last(grad_output), channels_last(images), window=geometry.window
    )
    exact = [t.float() for t in (images, weight, bias, grad_output)]
    *_, expected_weight, expected_bias = by_torch(*exact, geometry)
    assert torch.equal(grad_weight, expected_weight.half())
    assert grad_bias is None or torch.equal(grad_bias, expected_bias.half())


@pytest.mark.parametrize(
    ("blocks", "rectangles", "splits"),
    [(1, 10**6, 3 * 132), (10**6, 10**6, 1), (1, 24, 3), (1, 0, 1)],
)
def test_splits_fill_the_gpu(blocks, rectangles, splits):
    assert depthwise_plan.split_count(blocks, rectangles, "sm_90") == splits


@pytest.mark.parametrize("operand", [0, 3], ids=["input", "grad_output"])
def test_nan_stays_in_its_window(operand):
    geometry = Geometry(padding=(0, 0))
    tensors = operands(geometry)
    tensors[operand][0, 0, 1, 2] = float("nan")
    assert_equal(by_kernels(*tensors, geometry), by_torch(*tensors, geometry))


def test_same_bits_twice(monkeypatch):
    monkeypatch.setattr(depthwise_plan, "split_count", lambda *_: 3)
    geometry = Geometry(image=(9, 9), channels=6)
    tensors = operands(geometry, torch.randn)
    first, second = by_kernels(*tensors, geometry), by_kernels(*tensors, geometry)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    for actual, expected in zip(first, by_torch(*tensors, geometry), strict=True):
        torch.testing.assert_close(actual, expected)


class Case(NamedTuple):
    """A launcher, tensors without memory to call it with, and its tiles."""

    launcher: Callable[..., None]
    tensors: tuple[Any, ...]
    window: Window
    tiles: Mapping[str, Tiles]

    def compile(self, architecture, tile) -> CompiledKernel:
        from helpers.compiling import compile_launches

        results = compile_launches(
            self.launcher, *self.tensors, window=self.window, tile=tile, architecture=architecture
        )
        for result in results:
            spills = f"{result.name} {tile}: {result.spilled} spilled at {result.registers} registers"
            assert result.spilled == 0, spills
        return results[0]


def cases(geometry: Geometry, dtype: torch.dtype, memory_format=torch.channels_last) -> dict[str, Case]:
    def values(*shape):
        image_format = memory_format if len(shape) == 4 else torch.contiguous_format
        return torch.empty(shape, dtype=dtype, device="meta", memory_format=image_format)

    images, weight, bias, grad_output = operands(geometry, values)
    output, grad_input, grad_weight, grad_bias = grad_output, images, weight, bias
    window, tiles, weight_tiles = geometry.window, depthwise_plan.TILES, depthwise_plan.WEIGHT_TILES
    return {
        "forward": Case(depthwise.forward, ((output,), images, weight, bias), window, tiles),
        "input gradient": Case(depthwise.input_gradient, ((grad_input,), grad_output, weight), window, tiles),
        "weight gradient": Case(
            depthwise.weight_gradient, ((grad_weight, grad_bias), grad_output, images), window, weight_tiles
        ),
    }


MOBILENET = Geometry(channels=144, image=(56, 56), images=32)
HARDER = {
    "large": Geometry(channels=64, kernel=(7, 7), padding=(3, 3), image=(56, 56)),
    "strided": Geometry(channels=40, kernel=(5, 5), stride=(2, 2), padding=(2, 2), image=(56, 56)),
    "multiplied": Geometry(channels=24, multiplier=2, dilation=(2, 2), image=(56, 56)),
    "odd": Geometry(channels=63, image=(57, 57)),
    "tiny": Geometry(channels=1, image=(1, 1), images=1),  # arguments equal to 1 are constants
    "huge": Geometry(channels=64, image=(56, 56), images=2**20),  # 64-bit addresses
}


def compilations():
    """Yield every architecture and dtype; `make test` compiles for two of them."""
    for architecture, dtype in itertools.product(ARCHITECTURES, (torch.bfloat16, torch.float32)):
        representative = (architecture, dtype) in {("sm_90", torch.bfloat16), ("gfx942", torch.float32)}
        yield pytest.param(architecture, dtype, marks=[] if representative else [pytest.mark.every_tile])


@pytest.mark.compile
@pytest.mark.parametrize(("architecture", "dtype"), list(compilations()), ids=str)
def test_every_tile_compiles(architecture, dtype):
    for case in cases(MOBILENET, dtype).values():
        for tile in case.tiles[architecture]:
            assert case.compile(architecture, tile).shared <= 48 * 1024


@pytest.mark.compile
@pytest.mark.parametrize("geometry", HARDER)
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format], ids=str)
def test_largest_tile_compiles(memory_format, geometry):
    for case in cases(HARDER[geometry], torch.float32, memory_format).values():
        case.compile("sm_90", case.tiles["sm_90"][0])


@pytest.mark.compile
@pytest.mark.parametrize("channels", [144, 64, 24])
def test_loads_of_16_bytes(channels):
    for case in cases(MOBILENET._replace(channels=channels), torch.float16).values():
        sass = case.compile("sm_90", case.tiles["sm_90"][0]).machine_code
        assert "LDG.E.128" in sass
        # weights are loaded one by one: three taps of a row, eight channels per thread
        assert sass.count("LDG.E.U16") <= 3 * 8


@pytest.mark.compile
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_weight_gradient_loads_a_gradient_once(architecture):
    """One load of the gradient serves the loads of nine taps."""
    case = cases(MOBILENET, torch.float16)["weight gradient"]
    loop = count(case.compile(architecture, tile=None).loop)
    assert loop["memory"] == 1 + 9
    assert loop["division"] == 0
    assert loop["integer"] <= 18 * 9, "addresses and masks of a tap, which serve eight channels"
