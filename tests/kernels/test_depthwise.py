"""Depthwise convolution and its gradients equal torch's, exactly on small integers, and compile without spills."""

import itertools
from typing import NamedTuple

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import conv2d

from lightconv.analysis.machine_code import count
from lightconv.kernels import depthwise
from lightconv.kernels.tiles import ARCHITECTURES

TILES = depthwise.TILES["sm_80"]  # the interpreter's; every architecture's are the same
WEIGHT_TILES = depthwise.WEIGHT_TILES["sm_80"]
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
        return self.stride, self.padding, self.dilation

    @property
    def output(self):
        sizes = zip(self.image, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in sizes)


def channels_last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last)


def sliced(t: Tensor) -> Tensor:
    """The same values, nowhere dense, from the inside of a larger tensor."""
    n, c, h, w = t.shape
    larger = t.new_full((n, 2 * c, h + 2, w + 3), 100)
    result = larger[:, ::2, 1:-1, 1:-2]
    return result.copy_(t)


LAYOUTS = {"channels_last": channels_last, "contiguous": Tensor.contiguous, "sliced": sliced}


def operands(geometry: Geometry, values=lambda *shape: torch.randint(-3, 4, shape).float()) -> list[Tensor]:
    """Input, weight, bias and the output's gradient."""
    filters = geometry.channels * geometry.multiplier
    return [
        values(geometry.images, geometry.channels, *geometry.image),
        values(filters, 1, *geometry.kernel),
        values(filters),
        values(geometry.images, filters, *geometry.output),
    ]


def torchs(x: Tensor, w: Tensor, b: Tensor, g: Tensor, geometry: Geometry) -> list[Tensor]:
    """Output and gradients by torch, in float32."""
    leaves = [t.detach().requires_grad_() for t in (x, w, b)]
    y = conv2d(*leaves, *geometry.window, geometry.channels)
    return [y.detach(), *torch.autograd.grad(y, leaves, g)]


def ours(x: Tensor, w: Tensor, b: Tensor, g: Tensor, geometry: Geometry, tile=None, weight_tile=None) -> list[Tensor]:
    """Output and gradients by the kernels; what they leave unwritten is NaN."""
    y, dx, dw, db = (torch.full_like(t, float("nan")) for t in (g, x, w, b))
    depthwise.forward((y,), x, w, b, *geometry.window, tile=tile)
    depthwise.input_gradient((dx,), g, w, *geometry.window, tile=tile)
    dw = dw.contiguous()
    depthwise.weight_gradient((dw, db), g, x, *geometry.window, tile=weight_tile)
    return [y, dx, dw, db]


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
    assert_equal(ours(*arranged, geometry, tile, weight_tile), torchs(x, w, b, g, geometry))


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
    assert_equal(ours(*arranged, geometry), torchs(x, w, b, g, geometry))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("splits", [1, 2, 5])
def test_split_sum(splits, bias, monkeypatch):
    """Whatever the number of parts, the last of which may be empty, and of float16's, which are summed in float32."""
    monkeypatch.setattr(depthwise, "_splits", lambda *_: splits)
    geometry = Geometry(image=(17, 9), multiplier=2, channels=3)
    x, w, b, g = (t.half() for t in operands(geometry))
    grad_weight = torch.full_like(w, float("nan"))
    grad_bias = torch.full_like(b, float("nan")) if bias else None
    depthwise.weight_gradient((grad_weight, grad_bias), channels_last(g), channels_last(x), *geometry.window)
    *_, expected_weight, expected_bias = torchs(*(t.float() for t in (x, w, b, g)), geometry)
    assert torch.equal(grad_weight, expected_weight.half())
    if grad_bias is not None:
        assert torch.equal(grad_bias, expected_bias.half())


def test_splits_fill_the_gpu():
    assert depthwise._splits(blocks=1, rectangles=10**6, target="sm_90") == 3 * 132
    assert depthwise._splits(blocks=10**6, rectangles=10**6, target="sm_90") == 1
    assert depthwise._splits(blocks=1, rectangles=24, target="sm_90") == 3
    assert depthwise._splits(blocks=1, rectangles=0, target="sm_90") == 1


@pytest.mark.parametrize("operand", [0, 3], ids=["input", "grad_output"])
def test_nan_stays_where_it_belongs(operand):
    geometry = Geometry(padding=(0, 0))
    tensors = operands(geometry)
    tensors[operand][0, 0, 1, 2] = float("nan")
    assert_equal(ours(*tensors, geometry), torchs(*tensors, geometry))


def test_same_bits_twice(monkeypatch):
    monkeypatch.setattr(depthwise, "_splits", lambda *_: 3)
    geometry = Geometry(image=(9, 9), channels=6)
    tensors = operands(geometry, torch.randn)
    first, second = ours(*tensors, geometry), ours(*tensors, geometry)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    for ours_, torchs_ in zip(first, torchs(*tensors, geometry), strict=True):
        torch.testing.assert_close(ours_, torchs_)


def launches(geometry: Geometry, dtype: torch.dtype, memory_format=torch.channels_last):
    """Every launcher with arguments that have no memory, and its tiles."""

    def values(*shape):
        return torch.empty(
            shape,
            dtype=dtype,
            device="meta",
            memory_format=memory_format if len(shape) == 4 else torch.contiguous_format,
        )

    x, w, b, g = operands(geometry, values)
    return [
        (depthwise.forward, ((g,), x, w, b, *geometry.window), depthwise.TILES),
        (depthwise.input_gradient, ((x,), g, w, *geometry.window), depthwise.TILES),
        (depthwise.weight_gradient, ((w, b), g, x, *geometry.window), depthwise.WEIGHT_TILES),
    ]


MOBILENET = Geometry(channels=144, image=(56, 56), images=32)
HARDER = {
    "large": Geometry(channels=64, kernel=(7, 7), padding=(3, 3), image=(56, 56)),
    "strided": Geometry(channels=40, kernel=(5, 5), stride=(2, 2), padding=(2, 2), image=(56, 56)),
    "multiplied": Geometry(channels=24, multiplier=2, dilation=(2, 2), image=(56, 56)),
    "odd": Geometry(channels=63, image=(57, 57)),
    "tiny": Geometry(channels=1, image=(1, 1), images=1),  # arguments equal to 1 are constants
    "huge": Geometry(channels=64, image=(56, 56), images=2**20),  # 64-bit addresses
}


def compiled(launcher, arguments, architecture, tile):
    from helpers.compiling import compile_launches

    results = compile_launches(launcher, *arguments, architecture=architecture, tile=tile)
    for result in results:
        assert result.spilled == 0, f"{result.name} {tile}: {result.spilled} spilled at {result.registers} registers"
    return results[0]


def compilations():
    """Every architecture and dtype, of which two stand for all in `make test`."""
    for architecture, dtype in itertools.product(ARCHITECTURES, (torch.bfloat16, torch.float32)):
        representative = (architecture, dtype) in {("sm_90", torch.bfloat16), ("gfx942", torch.float32)}
        yield pytest.param(architecture, dtype, marks=[] if representative else [pytest.mark.every_tile])


@pytest.mark.compile
@pytest.mark.parametrize(("architecture", "dtype"), list(compilations()), ids=str)
def test_every_tile_compiles(architecture, dtype):
    for launcher, arguments, tiles in launches(MOBILENET, dtype):
        for tile in tiles[architecture]:
            result = compiled(launcher, arguments, architecture, tile)
            assert result.shared <= 48 * 1024


@pytest.mark.compile
@pytest.mark.parametrize("geometry", HARDER)
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format], ids=str)
def test_largest_tile_compiles(memory_format, geometry):
    for launcher, arguments, tiles in launches(HARDER[geometry], torch.float32, memory_format):
        compiled(launcher, arguments, "sm_90", tiles["sm_90"][0])


@pytest.mark.compile
@pytest.mark.parametrize("channels", [144, 64, 24])
def test_images_are_loaded_16_bytes_at_once(channels):
    geometry = MOBILENET._replace(channels=channels)
    for launcher, arguments, tiles in launches(geometry, torch.float16):
        sass = compiled(launcher, arguments, "sm_90", tiles["sm_90"][0]).machine_code
        assert "LDG.E.128" in sass
        # what is loaded one by one: the weights of the three taps of a row, a thread's eight channels each
        assert sass.count("LDG.E.U16") <= 3 * 8


@pytest.mark.compile
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_the_weight_gradient_reads_a_gradient_once_for_all_taps(architecture):
    launcher, arguments, _ = launches(MOBILENET, torch.float16)[2]
    loop = count(compiled(launcher, arguments, architecture, tile=None).loop)
    assert loop["memory"] == 1 + 9
    assert loop["division"] == 0
    assert loop["integer"] <= 18 * 9, "addresses and masks of a tap, which serve eight channels"
