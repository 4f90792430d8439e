"""Every tile of the convolution's tables: exact in the interpreter, sound in machine code."""

import pytest
import torch
import torch.nn.functional as F
from helpers.compiling import DESCRIBED, assert_sound, compile_launches

from lightconv.kernels import implicit_gemm, launch, weight_gradient
from lightconv.kernels.tiles import Tile, choose, fitting, nearest
from lightconv.operators import codes

DTYPES = {"half": torch.float16, "tf32": torch.float32, "ieee": torch.float32}


@pytest.fixture
def precision():
    """Torch's switch between TF32 and full precision, put back afterwards."""
    switch = torch.backends.cudnn.conv
    before = switch.fp32_precision
    yield lambda kind: setattr(switch, "fp32_precision", "ieee" if kind == "ieee" else "tf32")
    switch.fp32_precision = before


def table_tiles(table):
    return [(a, kind, tile) for a, kinds in table.items() for kind, tiles in kinds.items() for tile in tiles]


def different(table):
    """Each tile once for the loaders it can meet: the interpreter knows no other difference."""
    seen = {(a in DESCRIBED, kind, tile): (a, kind, tile) for a, kind, tile in table_tiles(table)}
    return list(seen.values())


def integers(*shape, dtype=torch.float32):
    return torch.randint(-3, 4, shape).to(dtype)


def last(tensor):
    return tensor.contiguous(memory_format=torch.channels_last)


def block(channels, filters, dtype, device, pool=(2, 2)):
    """Random images, filters, offsets, and by torch the pooled map, its bytes and its gradient before pooling."""
    torch.manual_seed(0)
    x, w, b = integers(2, channels, 10, 14), integers(filters, channels, 3, 3), integers(filters)
    maps = F.conv2d(x, w, b, 1, 1)
    values, code = codes.pooled_with_code(maps, pool, relu=True)
    grad = integers(*values.shape)
    expanded = codes.expanded(grad, code, pool, maps.shape[2:])
    tensors = [t.to(device, dtype) for t in (x, w, b, values.relu(), grad, expanded)]
    return [last(t) if t.dim() == 4 else t for t in tensors], code.to(device)


DENSE = ((1, 1), (1, 1), (1, 1), 1)
STRIDED = ((3, 2), (1, 2), (2, 1), 1)


def check_forward(kind, tile, channels, device="cpu"):
    (x, w, b, result, *_), code = block(channels, 24, DTYPES[kind], device)
    y, bytes_ = torch.empty_like(result), torch.empty_like(code)
    implicit_gemm.forward((y, bytes_), x, w, b, *DENSE, "relu", (2, 2), tile=tile)
    assert torch.equal(y, result)
    assert torch.equal(bytes_, code)


def check_input_gradient(kind, tile, channels, device="cpu"):
    (x, w, _, _, grad, expanded), code = block(channels, 24, DTYPES[kind], device)
    dx, reference = torch.empty_like(x), w.cpu().double()
    expected = torch.nn.grad.conv2d_input(x.shape, reference, expanded.cpu().double(), *DENSE)
    for given, byte in ((grad, code), (expanded, None)):
        implicit_gemm.input_gradient((dx,), given, byte, w, *DENSE, (2, 2), tile=tile)
        assert torch.equal(dx.cpu(), expected.to(x.dtype))
    g = last(integers(*F.conv2d(x.cpu().double(), reference, None, *STRIDED).shape).to(device, x.dtype))
    implicit_gemm.input_gradient((dx,), g, None, w, *STRIDED, tile=tile)
    expected = torch.nn.grad.conv2d_input(x.shape, reference, g.cpu().double(), *STRIDED)
    assert torch.equal(dx.cpu(), expected.to(x.dtype))


def check_weight_gradient(kind, tile, channels, device="cpu"):
    (x, w, b, _, grad, expanded), code = block(channels, 24, DTYPES[kind], device)
    exact = expanded.cpu().double()
    expected = torch.nn.grad.conv2d_weight(x.cpu().double(), w.shape, exact, *DENSE)
    for given, byte in ((grad, code), (expanded, None)):
        dw, db = torch.empty_like(w), torch.empty_like(b)
        weight_gradient.weight_gradient((dw, db), given, byte, x, *DENSE, (2, 2), tile=tile)
        assert torch.equal(dw.cpu(), expected.to(w.dtype))
        assert torch.equal(db.cpu(), exact.sum((0, 2, 3)).to(b.dtype))


FEW, MANY = 5, 40  # channels: flattened with their taps, and not
CHECKS = [  # of each table's tiles
    (implicit_gemm.TILES, check_forward, MANY),
    (implicit_gemm.TILES, check_input_gradient, MANY),
    (implicit_gemm.CAREFUL_TILES, check_forward, MANY),
    (implicit_gemm.CAREFUL_TILES, check_forward, FEW),
    (implicit_gemm.CAREFUL_TILES, check_input_gradient, MANY),
    (implicit_gemm.CAREFUL_TILES, check_weight_gradient, MANY),
    (implicit_gemm.FLATTENED_TILES, check_forward, FEW),
    (weight_gradient.TILES, check_weight_gradient, MANY),
    (weight_gradient.FLATTENED_TILES, check_weight_gradient, FEW),
]


@pytest.mark.parametrize(
    ("check", "channels", "architecture", "kind", "tile"),
    [(check, channels, *tile) for table, check, channels in CHECKS for tile in different(table)],
)
def test_every_tile_is_exact(check, channels, architecture, kind, tile, monkeypatch, precision):
    monkeypatch.setattr(launch, "INTERPRETED_AS", architecture)
    precision(kind)
    check(kind, tile, channels)


@pytest.mark.gpu
@pytest.mark.parametrize(("table", "check", "channels"), CHECKS)
def test_every_tile_is_exact_on_this_gpu(table, check, channels, precision):
    architecture = nearest(launch.architecture(torch.empty(0, device="cuda")))
    for kind, tiles in table[architecture].items():
        precision(kind)
        for tile in tiles:
            check(kind, tile, channels, "cuda")


@pytest.mark.parametrize("splits", [1, 3])
def test_every_number_of_parts_is_exact(splits, monkeypatch):
    monkeypatch.setattr(weight_gradient, "splits_of", lambda *_: splits)
    check_weight_gradient("half", None, MANY)


def odd_strides(x):
    """One image, whose distance to the next has no meaning."""
    return last(x)[:1].as_strided((1, *x.shape[1:]), (7, *last(x).stride()[1:]))


def odd_address(x):
    """The same images two bytes further on in memory."""
    storage = torch.empty(x.numel() + 1, dtype=x.dtype)
    return storage[1:].as_strided(x.shape, last(x).stride()).copy_(x)


@pytest.mark.parametrize("arranged", [odd_strides, odd_address])
@pytest.mark.parametrize("size", [1, 3])
def test_what_descriptors_cannot_load_is_copied(arranged, size, monkeypatch):
    monkeypatch.setattr(launch, "INTERPRETED_AS", "sm_90")
    x, w = arranged(integers(2, 16, 8, 8, dtype=torch.float16)), integers(16, 16, size, size, dtype=torch.float16)
    padding = (size // 2, size // 2)
    expected = F.conv2d(x, w, padding=padding)
    for weight in (w, last(w), odd_address(w)):
        y = torch.empty_like(expected)
        implicit_gemm.forward((y,), x, weight, None, (1, 1), padding, (1, 1), 1)
        assert torch.equal(y, expected)


def test_the_largest_tile_that_fills_the_gpu_is_chosen():
    large, middle, small = tiles = (Tile(128, 128, 32, 8, 3), Tile(128, 64, 32, 4, 3), Tile(64, 16, 32, 4, 3))
    assert choose(tiles, "sm_80", 10**6, 256) == large
    assert choose(tiles, "sm_80", 10**6, 64) == middle, "no wider than the product"
    assert choose(tiles, "sm_80", 128 * 60, 128) == middle, "60 large tiles do not fill 108 multiprocessors"
    assert choose(tiles, "sm_80", 128, 128) == small
    assert choose(tiles, "sm_80", 128, 128, products=108) == large
    assert fitting(tiles, 20, 6) == [small], "the smallest where all are larger"


def test_a_newer_gpu_takes_the_nearest_older_tiles():
    assert [nearest(a) for a in ("sm_90", "sm_103", "sm_87", "sm_121", "gfx950")] == [
        "sm_90", "sm_100", "sm_86", "sm_120", "gfx942",
    ]  # fmt: skip


# machine code, `pytest -m compile`


def meta(*shape, dtype, channels_last=True, far=False):
    strides = list(torch.empty(shape, device="meta").stride())
    if len(shape) == 4 and channels_last:
        _, c, h, w = shape
        strides = [h * w * c, 1, w * c, c]
    if far:  # the first and the last image more than 2**31 elements apart
        strides[0] = 2**31
    return torch.empty_strided(shape, strides, dtype=dtype, device="meta")


def forward(tile, dtype, channels=128, filters=128, pool=(2, 2), stride=(1, 1), **layout):
    size = [58 // s // p for s, p in zip(stride, pool, strict=True)]
    x, y = meta(8, channels, 58, 58, dtype=dtype, **layout), meta(8, filters, *size, dtype=dtype)
    w, b = (
        meta(filters, channels, 3, 3, dtype=dtype, channels_last=layout.get("channels_last", True)),
        meta(filters, dtype=dtype),
    )
    outputs = (y, y.to(torch.uint8)) if pool != (1, 1) else (y,)
    activation = "relu" if pool != (1, 1) else "identity"
    return implicit_gemm.forward, (outputs, x, w, b, stride, (1, 1), (1, 1), 1, activation, pool), tile


def gradient(tile, dtype, channels=128, expanded=False, stride=(1, 1), far=False):
    x, w = meta(8, channels, 56, 56, dtype=dtype), meta(128, channels, 3, 3, dtype=dtype)
    size = 28 if expanded else 56 // stride[0]
    g = meta(8, 128, size, size, dtype=dtype, far=far)
    code = g.to(torch.uint8) if expanded else None
    return implicit_gemm.input_gradient, ((x,), g, code, w, stride, (1, 1), (1, 1), 1, (2, 2)), tile


def weights(tile, dtype, channels=128, expanded=False, far=False):
    x, w = meta(8, channels, 56, 56, dtype=dtype, far=far), meta(128, channels, 3, 3, dtype=dtype)
    g = meta(8, 128, 28, 28, dtype=dtype) if expanded else meta(8, 128, 56, 56, dtype=dtype)
    code = g.to(torch.uint8) if expanded else None
    window = ((1, 1), (1, 1), (1, 1), 1)
    return weight_gradient.weight_gradient, ((w, meta(128, dtype=dtype)), g, code, x, *window, (2, 2)), tile


GEMM, WEIGHTS = implicit_gemm, weight_gradient
# by name: the call, the table it takes its tiles from, and whether a few of them stand for all in `make test`
CALLS = {
    "fused": (forward, GEMM.TILES, True),
    "fused, many filters": (lambda t, d: forward(t, d, 128, 200), GEMM.TILES, False),
    "fused, 3x3": (lambda t, d: forward(t, d, pool=(3, 3)), GEMM.TILES, False),
    "plain, strided": (lambda t, d: forward(t, d, pool=(1, 1), stride=(2, 2)), GEMM.TILES, False),
    "plain, strided, uneven": (
        lambda t, d: forward(t, d, 128, 100, (1, 1), (2, 2)), GEMM.CAREFUL_TILES, False,
    ),
    "plain, contiguous": (
        lambda t, d: forward(t, d, 72, 72, (1, 1), (2, 2), channels_last=False), GEMM.CAREFUL_TILES, False,
    ),
    "fused, few": (lambda t, d: forward(t, d, 24, 40, (3, 3)), GEMM.CAREFUL_TILES, False),
    "fused, far": (lambda t, d: forward(t, d, 72, 72, far=True), GEMM.CAREFUL_TILES, True),
    "fused, flattened": (lambda t, d: forward(t, d, 6, 64), GEMM.FLATTENED_TILES, True),
    "fused, flattened, one step": (lambda t, d: forward(t, d, 3, 64), GEMM.FLATTENED_TILES, False),
    "fused, flattened, contiguous": (
        lambda t, d: forward(t, d, 6, 16, channels_last=False), GEMM.FLATTENED_TILES, False,
    ),
    "flattened, far": (lambda t, d: forward(t, d, 6, 60, far=True), GEMM.CAREFUL_TILES, False),
    "gradient": (gradient, GEMM.TILES, True),
    "gradient, strided": (lambda t, d: gradient(t, d, stride=(2, 2)), GEMM.TILES, False),
    "gradient, far": (lambda t, d: gradient(t, d, far=True), GEMM.CAREFUL_TILES, False),
    "gradient, expanded": (lambda t, d: gradient(t, d, 6, True), GEMM.CAREFUL_TILES, True),
    "gradient, expanded, far": (lambda t, d: gradient(t, d, 6, True, far=True), GEMM.CAREFUL_TILES, False),
    "weights": (weights, WEIGHTS.TILES, True),
    "weights, uneven": (lambda t, d: weights(t, d, 72), GEMM.CAREFUL_TILES, False),
    "weights, far": (lambda t, d: weights(t, d, 72, far=True), GEMM.CAREFUL_TILES, False),
    "weights, flattened": (lambda t, d: weights(t, d, 6, True), WEIGHTS.FLATTENED_TILES, True),
    "weights, flattened, far": (lambda t, d: weights(t, d, 3, True, far=True), GEMM.CAREFUL_TILES, False),
}  # fmt: skip


def compilations():
    cases = []
    for name, (_, table, few) in CALLS.items():
        for architecture, kind, tile in table_tiles(table):
            representative = few and tile == table[architecture][kind][0] and kind != "ieee"
            marks = [pytest.mark.compile] + [] * representative + [pytest.mark.every_tile] * (not representative)
            label = f"{name}-{architecture}-{kind}-{tile.rows}x{tile.columns}x{tile.depth}"
            cases.append(pytest.param(name, architecture, kind, tile, marks=marks, id=label))
    return cases


@pytest.mark.parametrize(("name", "architecture", "kind", "tile"), compilations())
def test_every_tile_compiles(name, architecture, kind, tile, precision):
    precision(kind)
    make, table, _ = CALLS[name]
    launcher, arguments, asked = make(tile, DTYPES[kind])
    kernel = compile_launches(launcher, *arguments, architecture=architecture, tile=asked)[0]
    assert_sound(kernel, name, architecture, kind, largest=tile == table[architecture][kind][0])
