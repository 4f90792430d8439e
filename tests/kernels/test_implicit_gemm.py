"""Every tile of the convolution's tables: exact results in the interpreter, sound machine code from the compiler."""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from helpers.compiling import DESCRIPTOR_ARCHITECTURES, assert_sound, compile_launches
from torch import Tensor

from lightconv.kernels import implicit_gemm, implicit_gemm_plan, launch, weight_gradient, weight_gradient_plan
from lightconv.kernels.tiles import Tile, choose_tile, fitting_tiles, nearest_architecture
from lightconv.kernels.window import Window
from lightconv.operators import window_argmax

DTYPES = {"half": torch.float16, "tf32": torch.float32, "ieee": torch.float32}
DENSE = Window(stride=(1, 1), padding=(1, 1), dilation=(1, 1))
STRIDED = Window(stride=(3, 2), padding=(1, 2), dilation=(2, 1))
POOL = (2, 2)
FILTERS = 24


@pytest.fixture
def set_precision():
    """Set torch's switch between TF32 and full precision, and reset it after the test."""
    switch = torch.backends.cudnn.conv
    before = switch.fp32_precision
    yield lambda kind: setattr(switch, "fp32_precision", "ieee" if kind == "ieee" else "tf32")
    switch.fp32_precision = before


def table_tiles(table):
    """List (architecture, kind, tile) of a table."""
    return [(a, kind, tile) for a, kinds in table.items() for kind, tiles in kinds.items() for tile in tiles]


def distinct_tiles(table):
    """List each tile of a table once per loader: the interpreter sees no other difference between architectures."""
    distinct = {(a in DESCRIPTOR_ARCHITECTURES, kind, tile): (a, kind, tile) for a, kind, tile in table_tiles(table)}
    return list(distinct.values())


def integers(*shape, dtype=torch.float32):
    return torch.randint(-3, 4, shape).to(dtype)


def to_channels_last(tensor):
    return tensor.contiguous(memory_format=torch.channels_last)


class Case(NamedTuple):
    """Small integers, for which every product and sum is exact, and torch's results.

    Attributes:
        images: images.
        weight: filters.
        bias: bias.
        result: pooled map after ReLU.
        argmax: byte of each element of the result.
        grad_result: gradient of the pooled map.
        grad_maps: the same gradient, un-pooled.
    """

    images: Tensor
    weight: Tensor
    bias: Tensor
    result: Tensor
    argmax: Tensor
    grad_result: Tensor
    grad_maps: Tensor


def random_case(channels, dtype, device):
    torch.manual_seed(0)
    images, weight, bias = integers(2, channels, 10, 14), integers(FILTERS, channels, 3, 3), integers(FILTERS)
    maps = F.conv2d(images, weight, bias, *DENSE)
    values, argmax = window_argmax.max_pool(maps, POOL, relu=True)
    grad_result = integers(*values.shape)
    grad_maps = window_argmax.unpool(grad_result, argmax, POOL, maps.shape[2:])

    def arrange(tensor):
        tensor = tensor.to(device, dtype)
        return to_channels_last(tensor) if tensor.dim() == 4 else tensor

    return Case(
        images=arrange(images),
        weight=arrange(weight),
        bias=arrange(bias),
        result=arrange(values.relu()),
        argmax=argmax.to(device),
        grad_result=arrange(grad_result),
        grad_maps=arrange(grad_maps),
    )


def check_forward(kind, tile, channels, device="cpu"):
    case = random_case(channels, DTYPES[kind], device)
    outputs = torch.empty_like(case.result), torch.empty_like(case.argmax)
    implicit_gemm.forward(
        outputs, case.images, case.weight, case.bias, window=DENSE, groups=1, activation="relu", pool=POOL, tile=tile
    )
    assert torch.equal(outputs[0], case.result)
    assert torch.equal(outputs[1], case.argmax)


def check_input_gradient(kind, tile, channels, device="cpu"):
    case = random_case(channels, DTYPES[kind], device)
    grad_input, weight = torch.empty_like(case.images), case.weight.cpu().double()
    expected = torch.nn.grad.conv2d_input(case.images.shape, weight, case.grad_maps.cpu().double(), *DENSE)
    for grad_output, argmax in ((case.grad_result, case.argmax), (case.grad_maps, None)):
        implicit_gemm.input_gradient(
            (grad_input,), grad_output, argmax, case.weight, window=DENSE, groups=1, pool=POOL, tile=tile
        )
        assert torch.equal(grad_input.cpu(), expected.to(case.images.dtype))

    maps = F.conv2d(case.images.cpu().double(), weight, None, *STRIDED)
    grad_maps = to_channels_last(integers(*maps.shape).to(device, case.images.dtype))
    implicit_gemm.input_gradient((grad_input,), grad_maps, None, case.weight, window=STRIDED, groups=1, tile=tile)
    expected = torch.nn.grad.conv2d_input(case.images.shape, weight, grad_maps.cpu().double(), *STRIDED)
    assert torch.equal(grad_input.cpu(), expected.to(case.images.dtype))


def check_weight_gradient(kind, tile, channels, device="cpu"):
    case = random_case(channels, DTYPES[kind], device)
    grad_maps = case.grad_maps.cpu().double()
    expected = torch.nn.grad.conv2d_weight(case.images.cpu().double(), case.weight.shape, grad_maps, *DENSE)
    expected_bias = grad_maps.sum((0, 2, 3))
    for grad_output, argmax in ((case.grad_result, case.argmax), (case.grad_maps, None)):
        outputs = torch.empty_like(case.weight), torch.empty_like(case.bias)
        weight_gradient.weight_gradient(
            outputs, grad_output, argmax, case.images, window=DENSE, groups=1, pool=POOL, tile=tile
        )
        assert torch.equal(outputs[0].cpu(), expected.to(case.weight.dtype))
        assert torch.equal(outputs[1].cpu(), expected_bias.to(case.bias.dtype))


FEW, MANY = 5, 40  # channels: flattened with their taps, and not
CHECKS = [  # table, check of its tiles, channels
    (implicit_gemm_plan.TILES, check_forward, MANY),
    (implicit_gemm_plan.TILES, check_input_gradient, MANY),
    (implicit_gemm_plan.CAREFUL_TILES, check_forward, MANY),
    (implicit_gemm_plan.CAREFUL_TILES, check_forward, FEW),
    (implicit_gemm_plan.CAREFUL_TILES, check_input_gradient, MANY),
    (implicit_gemm_plan.CAREFUL_TILES, check_weight_gradient, MANY),
    (implicit_gemm_plan.FLATTENED_TILES, check_forward, FEW),
    (weight_gradient_plan.TILES, check_weight_gradient, MANY),
    (weight_gradient_plan.FLATTENED_TILES, check_weight_gradient, FEW),
]


@pytest.mark.parametrize(
    ("check", "channels", "architecture", "kind", "tile"),
    [(check, channels, *tile) for table, check, channels in CHECKS for tile in distinct_tiles(table)],
)
def test_tile_is_exact(check, channels, architecture, kind, tile, monkeypatch, set_precision):
    monkeypatch.setattr(launch, "INTERPRETED_AS", architecture)
    set_precision(kind)
    check(kind, tile, channels)


@pytest.mark.gpu
@pytest.mark.parametrize(("table", "check", "channels"), CHECKS)
def test_tile_is_exact_on_gpu(table, check, channels, set_precision):
    architecture = nearest_architecture(launch.architecture(torch.empty(0, device="cuda")))
    for kind, tiles in table[architecture].items():
        set_precision(kind)
        for tile in tiles:
            check(kind, tile, channels, "cuda")


@pytest.mark.parametrize("splits", [1, 3])
def test_split_sum_is_exact(splits, monkeypatch):
    monkeypatch.setattr(weight_gradient_plan, "count_splits", lambda *_: splits)
    check_weight_gradient("half", None, MANY)


def odd_strides(images):
    """Return one image with a meaningless stride to the next."""
    images = to_channels_last(images)
    return images[:1].as_strided((1, *images.shape[1:]), (7, *images.stride()[1:]))


def odd_address(images):
    """Return the same images two bytes further on in memory."""
    storage = torch.empty(images.numel() + 1, dtype=images.dtype)
    return storage[1:].as_strided(images.shape, to_channels_last(images).stride()).copy_(images)


@pytest.mark.parametrize("arrange", [odd_strides, odd_address])
@pytest.mark.parametrize("size", [1, 3])
def test_undescribable_tensors_are_copied(arrange, size, monkeypatch):
    monkeypatch.setattr(launch, "INTERPRETED_AS", "sm_90")
    images = arrange(integers(2, 16, 8, 8, dtype=torch.float16))
    weight = integers(16, 16, size, size, dtype=torch.float16)
    window = Window(stride=(1, 1), padding=(size // 2, size // 2), dilation=(1, 1))
    expected = F.conv2d(images, weight, None, *window)
    for arranged_weight in (weight, to_channels_last(weight), odd_address(weight)):
        output = torch.empty_like(expected)
        implicit_gemm.forward((output,), images, arranged_weight, None, window=window, groups=1)
        assert torch.equal(output, expected)


def test_largest_tile_that_fills_the_gpu():
    large, middle, small = tiles = (Tile(128, 128, 32, 8, 3), Tile(128, 64, 32, 4, 3), Tile(64, 16, 32, 4, 3))
    assert choose_tile(tiles, "sm_80", 10**6, 256) == large
    assert choose_tile(tiles, "sm_80", 10**6, 64) == middle, "no wider than the product"
    assert choose_tile(tiles, "sm_80", 128 * 60, 128) == middle, "60 large tiles do not fill 108 multiprocessors"
    assert choose_tile(tiles, "sm_80", 128, 128) == small
    assert choose_tile(tiles, "sm_80", 128, 128, products=108) == large
    assert fitting_tiles(tiles, 20, 6) == [small], "the smallest if all are larger"


@pytest.mark.parametrize(
    ("architecture", "nearest"),
    [("sm_90", "sm_90"), ("sm_103", "sm_100"), ("sm_87", "sm_86"), ("sm_121", "sm_120"), ("gfx950", "gfx942")],
)
def test_newer_gpu_takes_older_tiles(architecture, nearest):
    assert nearest_architecture(architecture) == nearest


# machine code, `pytest -m compile`


def meta(*shape, dtype, channels_last=True, far=False):
    """Return a tensor without memory; `far` puts the first and the last image more than 2**31 elements apart."""
    strides = list(torch.empty(shape, device="meta").stride())
    if len(shape) == 4 and channels_last:
        _, c, h, w = shape
        strides = [h * w * c, 1, w * c, c]
    if far:
        strides[0] = 2**31
    return torch.empty_strided(shape, strides, dtype=dtype, device="meta")


def compile_forward(
    tile, dtype, architecture, *, channels=128, filters=128, pool=(2, 2), stride=(1, 1), channels_last=True, far=False
):
    pooled_size = [58 // s // p for s, p in zip(stride, pool, strict=True)]
    images = meta(8, channels, 58, 58, dtype=dtype, channels_last=channels_last, far=far)
    weight = meta(filters, channels, 3, 3, dtype=dtype, channels_last=channels_last)
    output = meta(8, filters, *pooled_size, dtype=dtype)
    fused = pool != (1, 1)
    return compile_launches(
        implicit_gemm.forward,
        (output, output.to(torch.uint8)) if fused else (output,),
        images,
        weight,
        meta(filters, dtype=dtype),
        architecture=architecture,
        window=DENSE._replace(stride=stride),
        groups=1,
        activation="relu" if fused else "identity",
        pool=pool,
        tile=tile,
    )


def compile_input_gradient(tile, dtype, architecture, *, channels=128, pooled=False, stride=(1, 1), far=False):
    size = 28 if pooled else 56 // stride[0]
    grad_output = meta(8, 128, size, size, dtype=dtype, far=far)
    return compile_launches(
        implicit_gemm.input_gradient,
        (meta(8, channels, 56, 56, dtype=dtype),),
        grad_output,
        grad_output.to(torch.uint8) if pooled else None,
        meta(128, channels, 3, 3, dtype=dtype),
        architecture=architecture,
        window=DENSE._replace(stride=stride),
        groups=1,
        pool=POOL,
        tile=tile,
    )


def compile_weight_gradient(tile, dtype, architecture, *, channels=128, pooled=False, far=False):
    size = 28 if pooled else 56
    grad_output = meta(8, 128, size, size, dtype=dtype)
    return compile_launches(
        weight_gradient.weight_gradient,
        (meta(128, channels, 3, 3, dtype=dtype), meta(128, dtype=dtype)),
        grad_output,
        grad_output.to(torch.uint8) if pooled else None,
        meta(8, channels, 56, 56, dtype=dtype, far=far),
        architecture=architecture,
        window=DENSE,
        groups=1,
        pool=POOL,
        tile=tile,
    )


class Call(NamedTuple):
    """Call of a launcher whose kernel is compiled.

    Attributes:
        compile: function of a tile, dtype and architecture.
        arguments: its further arguments.
        table: table of the call's tiles.
        representative: True if `make test` compiles the first tiles of the table, too.
    """

    compile: object
    arguments: dict[str, object]
    table: object
    representative: bool = False


EASY, CAREFUL, FLATTENED = (
    implicit_gemm_plan.TILES, implicit_gemm_plan.CAREFUL_TILES, implicit_gemm_plan.FLATTENED_TILES,
)  # fmt: skip
FORWARD, INPUT, WEIGHT = compile_forward, compile_input_gradient, compile_weight_gradient
PLAIN = {"pool": (1, 1), "stride": (2, 2)}
CALLS = {
    "fused": Call(FORWARD, {}, EASY, True),
    "fused, many filters": Call(FORWARD, {"filters": 200}, EASY),
    "fused, 3x3": Call(FORWARD, {"pool": (3, 3)}, EASY),
    "plain, strided": Call(FORWARD, PLAIN, EASY),
    "plain, strided, uneven": Call(FORWARD, {"filters": 100} | PLAIN, CAREFUL),
    "plain, contiguous": Call(FORWARD, {"channels": 72, "filters": 72, "channels_last": False} | PLAIN, CAREFUL),
    "fused, few": Call(FORWARD, {"channels": 24, "filters": 40, "pool": (3, 3)}, CAREFUL),
    "fused, far": Call(FORWARD, {"channels": 72, "filters": 72, "far": True}, CAREFUL, True),
    "fused, flattened": Call(FORWARD, {"channels": 6, "filters": 64}, FLATTENED, True),
    "fused, flattened, one step": Call(FORWARD, {"channels": 3, "filters": 64}, FLATTENED),
    "fused, flattened, contiguous": Call(FORWARD, {"channels": 6, "filters": 16, "channels_last": False}, FLATTENED),
    "flattened, far": Call(FORWARD, {"channels": 6, "filters": 60, "far": True}, CAREFUL),
    "gradient": Call(INPUT, {}, EASY, True),
    "gradient, strided": Call(INPUT, {"stride": (2, 2)}, EASY),
    "gradient, far": Call(INPUT, {"far": True}, CAREFUL),
    "gradient, expanded": Call(INPUT, {"channels": 6, "pooled": True}, CAREFUL, True),
    "gradient, expanded, far": Call(INPUT, {"channels": 6, "pooled": True, "far": True}, CAREFUL),
    "weights": Call(WEIGHT, {}, weight_gradient_plan.TILES, True),
    "weights, uneven": Call(WEIGHT, {"channels": 72}, CAREFUL),
    "weights, far": Call(WEIGHT, {"channels": 72, "far": True}, CAREFUL),
    "weights, flattened": Call(WEIGHT, {"channels": 6, "pooled": True}, weight_gradient_plan.FLATTENED_TILES, True),
    "weights, flattened, far": Call(WEIGHT, {"channels": 3, "pooled": True, "far": True}, CAREFUL),
}


def compilations():
    """List every tile of every call; those that `make test` leaves out are marked `every_tile`."""
    cases = []
    for name, call in CALLS.items():
        for architecture, kind, tile in table_tiles(call.table):
            is_first = tile == call.table[architecture][kind][0]
            marks = [pytest.mark.compile]
            if not (call.representative and is_first and kind != "ieee"):
                marks.append(pytest.mark.every_tile)
            label = f"{name}-{architecture}-{kind}-{tile.rows}x{tile.columns}x{tile.depth}"
            cases.append(pytest.param(name, architecture, kind, tile, marks=marks, id=label))
    return cases


@pytest.mark.parametrize(("name", "architecture", "kind", "tile"), compilations())
def test_tile_compiles(name, architecture, kind, tile, set_precision):
    set_precision(kind)
    call = CALLS[name]
    kernel = call.compile(tile, DTYPES[kind], architecture, **call.arguments)[0]
    is_largest = tile == call.table[architecture][kind][0]
    assert_sound(kernel, name, architecture, kind, largest=is_largest)
