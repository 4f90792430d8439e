"""Convolution and its input gradient as one matrix product over pixels, the matrix of patches never written.

    forward          y[pixel, filter]   = act(sum over taps and channels of  x[pixel * stride + tap] x w + b)
    with pooling     y[window, filter]  = act(max over the window's pixels of the same), and a byte that names the pixel
    input_gradient   dx[pixel, channel] = sum over taps and filters of  g[(pixel - tap) / stride] x w

The gradient is the forward product of the mirrored, transposed weight. A stride leaves it stride_h * stride_w phases,
pixels that meet the same taps: each is a dense product of its own, all in one launch, and one that meets no tap writes
zeros. Where a pooling followed the convolution, `g` is the pooled map's gradient, and the byte says which pixel of a
window it belongs to: the loader expands it, the map before pooling is never stored.

Three loaders stand before the same product:

    descriptors   tensor descriptors (TMA): rows are a rectangle of one image, the hardware's zero fill is the padding;
                  images that are not channels_last are copied once, which is less than reading them tap by tap
    pointers      clamped and masked pointers, for any strides in memory: rows are a run of pixels
    flattened     the same, taps and channels in one short loop where there are few channels

Tap loops are nested: in a pipelined loop, taps decoded by // and % have miscompiled (pytorch/pytorch#173068); the
flattened loop is not pipelined. Masked addresses are also clamped into the tensor: on sm_100 a masked cp.async still
dereferences its address (pytorch/pytorch#187081). Products accumulate in float32 and are rounded once, every sum has
one owner and a fixed order: the same bits every time.
"""

import math
import operator
from collections.abc import Callable
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from lightconv.kernels import autotune
from lightconv.kernels.launch import (
    Outputs,
    architecture,
    dot_precision,
    in_float32_when_interpreted,
    index_type,
    on_device,
)
from lightconv.kernels.tiles import ARCHITECTURES, Table, Tile, arithmetic, choose, nearest
from lightconv.kernels.window import Pair

_MMA = {
    "half": (Tile(128, 128, 32, 8, 3), Tile(128, 64, 32, 4, 3), Tile(64, 32, 32, 4, 3), Tile(64, 16, 32, 4, 3)),
    "tf32": (Tile(128, 64, 32, 8, 3), Tile(64, 32, 32, 4, 3), Tile(64, 16, 32, 4, 3)),
    "ieee": (Tile(64, 32, 16, 8, 2), Tile(64, 16, 16, 4, 2)),
}
_WGMMA = _MMA | {
    "half": (Tile(128, 128, 64, 8, 3), Tile(128, 64, 64, 8, 3), Tile(64, 32, 64, 4, 3), Tile(64, 16, 32, 4, 3)),
}
_MFMA = {kind: tiles for kind, tiles in _MMA.items() if kind != "tf32"}  # AMD's GPUs have no TF32 here
TILES: Table = {
    "sm_80": _MMA, "sm_86": _MMA, "sm_89": _MMA, "sm_90": _WGMMA, "sm_100": _WGMMA, "sm_120": _MMA, "gfx942": _MFMA,
}  # fmt: skip

# a column of the flattened matrix of patches knows its own tap, which takes registers
_FLATTENED = {
    "half": (Tile(128, 64, 32, 8, 1), Tile(64, 32, 32, 4, 1), Tile(64, 16, 32, 4, 1)),
    "tf32": (Tile(128, 64, 32, 8, 1), Tile(64, 32, 32, 4, 1), Tile(64, 16, 32, 4, 1)),
    "ieee": (Tile(64, 32, 16, 8, 1), Tile(64, 16, 16, 4, 1)),
}
_FLATTENED_MFMA = {"half": (Tile(64, 32, 16, 8, 1), Tile(64, 16, 16, 4, 1)), "ieee": _FLATTENED["ieee"]}
FLATTENED_TILES: Table = dict.fromkeys(ARCHITECTURES, _FLATTENED) | {"gfx942": _FLATTENED_MFMA}
# where addresses are heavy: 64-bit offsets, channels that do not lie side by side, steps or columns not filled;
# the smallest has many short steps, whose loads are under way together
_CAREFUL = {
    "half": (Tile(64, 64, 16, 8, 2), Tile(64, 32, 16, 8, 2), Tile(64, 16, 16, 4, 4)),
    "tf32": (Tile(64, 64, 16, 8, 2), Tile(64, 32, 16, 8, 2), Tile(64, 16, 16, 4, 4)),
    "ieee": (Tile(64, 32, 16, 8, 2),),
}
_CAREFUL_MFMA = {"half": _CAREFUL["half"][:2], "ieee": _CAREFUL["ieee"]}
CAREFUL_TILES: Table = dict.fromkeys(ARCHITECTURES, _CAREFUL) | {"gfx942": _CAREFUL_MFMA}

FLATTENED_BELOW = 16  # channels: fewer than a matrix instruction sums
KILLED = tl.constexpr(255)  # the byte of a pooled element whose gradient ReLU stops
LEAKY_SLOPE = tl.constexpr(0.01)  # torch.nn.functional.leaky_relu's


@triton.jit
def tanh(x):
    """Cephes' tanhf (Moshier, netlib.org/cephes): a polynomial near 0, where 1 - 2 / (exp(2x) + 1) would cancel."""
    z = x * x
    p = (((-5.70498872745e-3 * z + 2.06390887954e-2) * z - 5.37397155531e-2) * z + 1.33314422036e-1) * z
    near = (p - 3.33332819422e-1) * z * x + x
    size = 1 - 2 / (tl.exp(2 * tl.abs(x)) + 1)
    return tl.where(tl.abs(x) < 0.625, near, tl.where(x < 0, -size, size))


@triton.jit
def activated(x, ACTIVATION: tl.constexpr):
    """An activation of torch's, NaN and infinities as there."""
    if ACTIVATION == "relu":
        x = tl.where(x <= 0, 0.0, x)
    elif ACTIVATION == "leaky_relu":
        x = tl.where(x > 0, x, x * LEAKY_SLOPE)
    elif ACTIVATION == "sigmoid":
        x = 1 / (1 + tl.exp(-x))
    elif ACTIVATION == "tanh":
        x = tanh(x)
    return x


@triton.jit
def _pooled(value, AREA: tl.constexpr, POSITIONS: tl.constexpr):
    """The largest value of every POSITIONS consecutive rows and its position.

    By torch's rule: the first of equals wins, NaN beats every number and the last NaN the others. One integer holds
    both, the value's bits in an order that integers have, and below them the position: its maximum decides.
    """
    ROWS: tl.constexpr = value.shape[0] // POSITIONS
    COLUMNS: tl.constexpr = value.shape[1]
    half: tl.constexpr = value.dtype.primitive_bitwidth == 16
    BITS: tl.constexpr = tl.int16 if half else tl.int32
    KEY: tl.constexpr = tl.int32 if half else tl.int64
    TOP: tl.constexpr = 0x7FFF if half else 0x7FFFFFFF  # also a NaN

    position = tl.arange(0, POSITIONS)[None, :, None]
    value = tl.reshape(tl.where(value == 0, 0.0, value).to(value.dtype), (ROWS, POSITIONS, COLUMNS))
    bits = value.to(BITS, bitcast=True).to(KEY)
    is_nan = value != value
    ordered = tl.where(is_nan, TOP, tl.where(bits < 0, bits ^ TOP, bits))
    key = ordered * 256 + tl.where(is_nan, position, 255 - position)
    best = tl.max(tl.where(position < AREA, key, (-TOP - 1) * 256), 1)

    ordered, rank = best >> 8, (best & 255).to(tl.int32)
    bits = tl.where(ordered < 0, ordered ^ TOP, ordered).to(BITS)
    return bits.to(value.dtype, bitcast=True), tl.where(ordered == TOP, rank, 255 - rank)


@triton.jit
def _rounded(value, like, BFLOAT16: tl.constexpr):
    """Round as the output will be: torch compares rounded values. The interpreter holds bfloat16 in float32."""
    if BFLOAT16 and like.dtype.element_ty == tl.float32:
        bits = value.to(tl.int32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
        value = tl.where(value == value, rounded.to(tl.float32, bitcast=True), value)
    return value.to(like.dtype.element_ty)


@triton.jit
def _first_tap(start, stride, dilation, TAPS: tl.constexpr):
    """The first tap that leads from this padded coordinate to a window of the stride; TAPS where none does."""
    first = tl.full((), TAPS, tl.int32)
    for back in range(TAPS):
        tap = TAPS - 1 - back
        first = tl.where((start - tap * dilation) % stride == 0, tap, first)
    return first


@triton.jit
def _patch(block, size, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr):
    """The image of a rectangle of pixels and its upper left corner."""
    across = tl.cdiv(size[1], PATCH_W)
    patches = tl.cdiv(size[0], PATCH_H) * across
    patch = block % patches
    return block // patches, patch // across * PATCH_H, patch % across * PATCH_W


@triton.jit
def _pixels(offset, block, images, size, PIXELS: tl.constexpr, PATCH_W: tl.constexpr, INDEX: tl.constexpr):
    """Image, row and column of a block's pixels, clamped, and which of them exist."""
    if PATCH_W:
        n, top, left = _patch(block, size, PIXELS // PATCH_W, PATCH_W)
        i, j = top + offset // PATCH_W, left + offset % PATCH_W
        inside = (i < size[0]) & (j < size[1])
        n, i, j = n.to(INDEX), tl.where(inside, i, 0).to(INDEX), tl.where(inside, j, 0).to(INDEX)
    else:
        pixel = block.to(INDEX) * PIXELS + offset
        inside = pixel < (tl.full((), 0, INDEX) + images) * size[0] * size[1]
        pixel = tl.where(inside, pixel, 0)
        n, i, j = pixel // size[1] // size[0], pixel // size[1] % size[0], pixel % size[1]
    return n, i, j, inside


@triton.jit
def columns_of(first, size, WIDTH: tl.constexpr, EVEN: tl.constexpr, INDEX: tl.constexpr):
    """A block of channels or filters. Only an uneven one is clamped and masked, which costs its vector loads."""
    column = first + tl.arange(0, WIDTH).to(INDEX)
    inside = column < size
    if EVEN:
        inside = tl.full((WIDTH,), True, tl.int1)
    else:
        column = tl.where(inside, column, 0)
    return column, inside


@triton.jit
def expanded(tile, bytes, inside, at):
    """Of a pooled gradient, what the bytes give to pixels at these positions of their windows."""
    winner = tl.load(bytes, mask=inside, other=KILLED)
    return tl.where(winner == at.to(tl.uint8), tile, 0.0).to(tile.dtype)


@triton.jit
def _described_product(
    x, w, block, group, filter_block, size, channels, filters, padding,
    R: tl.constexpr, S: tl.constexpr, GRADIENT: tl.constexpr, PRECISION: tl.constexpr,
    PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Taps of a rectangle of one image, which descriptors load whole; the gradient's taps come in reverse order."""
    image, top, left = _patch(block, size, PATCH_H, PATCH_W)
    accumulator = tl.zeros((PATCH_H * PATCH_W, COLUMNS), tl.float32)
    for r in range(R):
        for s in range(S):
            tap = (R - 1 - r) * S + S - 1 - s if GRADIENT else r * S + s
            for c0 in range(0, channels, DEPTH):
                first_channel = group * channels + c0
                x_tile = x.load([image, top + r - padding[0], left + s - padding[1], first_channel])
                if GRADIENT:
                    w_tile = w.load([first_channel, tap, filter_block * COLUMNS]).reshape(DEPTH, COLUMNS)
                else:
                    w_tile = w.load([group * filters + filter_block * COLUMNS, tap, c0]).reshape(COLUMNS, DEPTH).trans()
                x_tile = x_tile.reshape(PATCH_H * PATCH_W, DEPTH)
                accumulator = tl.dot(x_tile, w_tile, accumulator, input_precision=PRECISION)
    return accumulator


@triton.jit
def _flattened_product(
    x, x_strides, x_size, w, w_strides, n, i, j, row_in, first_channel, k, k_in, stride, padding, dilation,
    R: tl.constexpr, S: tl.constexpr, CHANNELS: tl.constexpr, INDEX: tl.constexpr, PRECISION: tl.constexpr,
    DEPTH: tl.constexpr,
):  # fmt: skip
    """Taps and channels in one short loop, each row's columns gathered from as many places.

    The compiler knows how many channels there are, by which it divides.
    """
    accumulator = tl.zeros((row_in.shape[0], k.shape[0]), tl.float32)
    for t0 in tl.range(0, R * S * CHANNELS, DEPTH, num_stages=1):
        t, t_in = columns_of(t0, R * S * CHANNELS, DEPTH, False, INDEX)
        c, r, s = t % CHANNELS, t // CHANNELS // S, t // CHANNELS % S
        h = (i * stride[0] - padding[0])[:, None] + (r * dilation[0])[None, :]
        v = (j * stride[1] - padding[1])[:, None] + (s * dilation[1])[None, :]
        inside = row_in[:, None] & t_in[None, :] & (h >= 0) & (h < x_size[0]) & (v >= 0) & (v < x_size[1])
        h, v = tl.where(inside, h, 0), tl.where(inside, v, 0)
        x_offset = (n * x_strides[0])[:, None] + h * x_strides[2] + v * x_strides[3]
        x_tile = tl.load(x + x_offset + ((first_channel + c) * x_strides[1])[None, :], mask=inside, other=0.0)
        w_tap = c * w_strides[1] + r * w_strides[2] + s * w_strides[3]
        w_offset = w_tap[:, None] + (k * w_strides[0])[None, :]
        w_tile = tl.load(w + w_offset, mask=t_in[:, None] & k_in[None, :], other=0.0)
        accumulator = tl.dot(x_tile, w_tile, accumulator, input_precision=PRECISION)
    return accumulator


@triton.jit
def _met(index, tap, start, stride, padding, dilation, GRADIENT: tl.constexpr):
    """The source coordinate that a row meets through a tap. A gradient's phase has only taps that divide."""
    behind, ahead = (start - tap * dilation) // stride, tap * dilation - padding
    return index + behind if GRADIENT else index * stride + ahead


@triton.jit
def _gathered_product(
    x, x_strides, x_size, code, code_strides, w, w_strides,
    n, i, j, row_in, first_channel, channels, k, k_in, phase_h, phase_w, stride, padding, dilation, tap_step,
    R: tl.constexpr, S: tl.constexpr, GRADIENT: tl.constexpr, EXPANDED: tl.constexpr,
    POOL_H: tl.constexpr, POOL_W: tl.constexpr, EVEN_CHANNELS: tl.constexpr,
    INDEX: tl.constexpr, PRECISION: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Taps of a run of pixels through clamped and masked pointers; a pooled gradient is expanded by its bytes."""
    start_h, start_w = phase_h + padding[0], phase_w + padding[1]
    first_r = _first_tap(start_h, stride[0], dilation[0], R) if GRADIENT else 0
    first_s = _first_tap(start_w, stride[1], dilation[1], S) if GRADIENT else 0
    accumulator = tl.zeros((row_in.shape[0], k.shape[0]), tl.float32)
    for r in range(first_r, R, tap_step[0]):
        h = _met(i, r, start_h, stride[0], padding[0], dilation[0], GRADIENT)
        h_in = row_in & (h >= 0) & (h < x_size[0])
        h = tl.where(h_in, h, 0)
        for s in range(first_s, S, tap_step[1]):
            v = _met(j, s, start_w, stride[1], padding[1], dilation[1], GRADIENT)
            inside = h_in & (v >= 0) & (v < x_size[1])
            v = tl.where(inside, v, 0)
            w_tap = k * w_strides[0] + r * w_strides[2] + s * w_strides[3]
            at = h % POOL_H * POOL_W + v % POOL_W
            row, column = h // POOL_H, v // POOL_W
            x_pixel = n * x_strides[0] + row * x_strides[2] + column * x_strides[3]
            byte = n * code_strides[0] + row * code_strides[2] + column * code_strides[3]
            for c0 in range(0, channels, DEPTH):
                c, c_in = columns_of(c0, channels, DEPTH, EVEN_CHANNELS, INDEX)
                x_in = inside[:, None] & c_in[None, :]
                x_offset = x_pixel[:, None] + ((first_channel + c) * x_strides[1])[None, :]
                x_tile = tl.load(x + x_offset, mask=x_in, other=0.0)
                if EXPANDED:
                    byte_offset = byte[:, None] + ((first_channel + c) * code_strides[1])[None, :]
                    x_tile = expanded(x_tile, code + byte_offset, x_in, at[:, None])
                w_offset = (c * w_strides[1])[:, None] + w_tap[None, :]
                w_tile = tl.load(w + w_offset, mask=c_in[:, None] & k_in[None, :], other=0.0)
                accumulator = tl.dot(x_tile, w_tile, accumulator, input_precision=PRECISION)
    return accumulator


@triton.jit
def _kernel(
    x, x_strides, x_size, code, code_strides, w, w_strides, w_group, b, b_stride,
    y, y_strides, y_size, y_code, y_code_strides, x_descriptor, w_descriptor,
    images, size, channels, filters, stride, padding, dilation, tap_step, blocks, phases,
    R: tl.constexpr, S: tl.constexpr, FEW: tl.constexpr, LOADER: tl.constexpr, GRADIENT: tl.constexpr,
    EXPANDED: tl.constexpr,
    POOL_H: tl.constexpr, POOL_W: tl.constexpr, POSITIONS: tl.constexpr,
    BIAS: tl.constexpr, ACTIVATION: tl.constexpr, CODED: tl.constexpr, BFLOAT16: tl.constexpr,
    EVEN_CHANNELS: tl.constexpr, EVEN_FILTERS: tl.constexpr, INDEX: tl.constexpr, PRECISION: tl.constexpr,
    PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    # blocks that share pixels follow each other: x comes from memory once, the weight stays in the cache
    filter_block, block = tl.program_id(0) % blocks[0], tl.program_id(0) // blocks[0] % blocks[1]
    group = tl.program_id(0) // blocks[0] // blocks[1] % blocks[2]
    phase = tl.program_id(0) // blocks[0] // blocks[1] // blocks[2]
    phase_h, phase_w = phase // phases[1], phase % phases[1]
    k, k_in = columns_of(filter_block * COLUMNS, filters, COLUMNS, EVEN_FILTERS, INDEX)
    first_channel = group.to(INDEX) * channels
    WINDOWS: tl.constexpr = ROWS // POSITIONS
    n, i, j, window_in = _pixels(tl.arange(0, WINDOWS), block, images, size, WINDOWS, PATCH_W, INDEX)

    if LOADER == "descriptors":
        value = _described_product(
            x_descriptor, w_descriptor, block, group, filter_block, (size[0] * POOL_H, size[1] * POOL_W), channels,
            filters, padding, R, S, GRADIENT, PRECISION, PATCH_H * POOL_H, PATCH_W * POOL_W, COLUMNS, DEPTH,
        )  # fmt: skip
    else:
        # the rows of a window, which are as many as the next power of two, follow each other
        row = tl.arange(0, ROWS)
        rn, ri, rj, row_in = _pixels(row // POSITIONS, block, images, size, WINDOWS, 0, INDEX)
        if POSITIONS > 1:
            position = row % POSITIONS
            row_in &= position < POOL_H * POOL_W
            ri, rj = ri * POOL_H + position // POOL_W, rj * POOL_W + position % POOL_W
        w += group.to(INDEX) * w_group
        if LOADER == "flattened":
            value = _flattened_product(
                x, x_strides, x_size, w, w_strides, rn, ri, rj, row_in, first_channel, k, k_in,
                stride, padding, dilation, R, S, FEW, INDEX, PRECISION, DEPTH,
            )  # fmt: skip
        else:
            value = _gathered_product(
                x, x_strides, x_size, code, code_strides, w, w_strides,
                rn, ri, rj, row_in, first_channel, channels, k, k_in, phase_h, phase_w,
                stride, padding, dilation, tap_step,
                R, S, GRADIENT, EXPANDED, POOL_H if EXPANDED else 1, POOL_W if EXPANDED else 1,
                EVEN_CHANNELS, INDEX, PRECISION, DEPTH,
            )  # fmt: skip

    k += group.to(INDEX) * filters
    if BIAS:
        value += tl.load(b + k * b_stride, mask=k_in, other=0.0).to(tl.float32)[None, :]
    value = _rounded(value, y, BFLOAT16)
    if LOADER == "descriptors" and POSITIONS > 1:  # a rectangle's rows, brought into the order of windows
        value = value.reshape(PATCH_H, POOL_H, PATCH_W, POOL_W, COLUMNS).permute(0, 2, 1, 3, 4).reshape(ROWS, COLUMNS)
    if POSITIONS > 1:
        value, winner = _pooled(value, POOL_H * POOL_W, POSITIONS)
    else:
        winner = tl.zeros((ROWS, COLUMNS), tl.int32)
    if GRADIENT:
        i, j = i * stride[0] + phase_h, j * stride[1] + phase_w
        window_in &= (i < y_size[0]) & (j < y_size[1])
        i, j = tl.where(window_in, i, 0), tl.where(window_in, j, 0)
    stored = window_in[:, None] & k_in[None, :]
    y_offset = (n * y_strides[0] + i * y_strides[2] + j * y_strides[3])[:, None] + (k * y_strides[1])[None, :]
    tl.store(y + y_offset, activated(value.to(tl.float32), ACTIVATION).to(y.dtype.element_ty), mask=stored)
    if CODED:
        if ACTIVATION == "relu":
            winner = tl.where(value <= 0, KILLED, winner)
        offset = (n * y_code_strides[0] + i * y_code_strides[2] + j * y_code_strides[3])[:, None]
        tl.store(y_code + offset + (k * y_code_strides[1])[None, :], winner.to(tl.uint8), mask=stored)


_DESCRIPTORS_FROM = {"sm_90", "sm_100", "sm_120"}  # architectures whose hardware loads rectangles
_MOST_IN_A_BOX = 256  # pixels along one side of such a rectangle
_OVERHANG = 1.25  # what rectangles may compute, as a multiple of the pixels that exist


class Plan(NamedTuple):
    """How a product will be computed: its tile, its loader, and the rectangle, in windows, that descriptors load."""

    tile: Tile
    loader: str
    patch: Pair


class Product(NamedTuple):
    """A convolution's or an input gradient's product, in sizes: all that its plan depends on."""

    images: int
    size: Pair  # pixels of a phase, or pooling windows, down and across
    filters: int  # produced a group: a gradient's are the convolution's channels
    channels: int  # summed a group
    taps: Pair
    groups: int
    phases: Pair
    pool: Pair
    element_size: int
    dense: bool  # neither stride nor dilation, and no byte to expand
    side_by_side: bool  # the summed channels, in memory
    gradient: bool

    @property
    def positions(self) -> int:
        """Rows that a pooling window takes."""
        return triton.next_power_of_2(math.prod(self.pool))


def plan(product: Product, architecture: str, kind: str, wide: bool = False, tile: Tile | None = None) -> Plan:
    """Choose tile and loader from the sizes alone.

    Args:
        product: to compute.
        architecture: one of `tiles.ARCHITECTURES`.
        kind: "half", "tf32" or "ieee".
        wide: whether offsets need 64 bits.
        tile: asked for; chosen from the tables otherwise.
    """

    def chosen(table: Table) -> Tile:
        rows = product.images * math.prod(product.size) * product.positions
        products = product.groups * math.prod(product.phases)
        return tile or choose(table[architecture][kind], architecture, rows, product.filters, products)

    if _is_flattened(product):
        return Plan(chosen(CAREFUL_TILES if wide else FLATTENED_TILES), "flattened", (0, 0))
    first = chosen(CAREFUL_TILES if wide else TILES)
    return _loaded(product, architecture, kind, first) or Plan(tile or chosen(CAREFUL_TILES), "pointers", (0, 0))


def plans(product: Product, architecture: str, kind: str, wide: bool = False) -> tuple[Plan, ...]:
    """Every plan whose tile is in the tables for such a product: first that of `plan`, whose arguments these are."""
    careful = CAREFUL_TILES[architecture][kind]
    if _is_flattened(product):
        tiles = careful if wide else FLATTENED_TILES[architecture][kind]
        known = [Plan(tile, "flattened", (0, 0)) for tile in tiles]
    else:
        tiles = careful if wide else TILES[architecture][kind]
        easy = (_loaded(product, architecture, kind, tile) for tile in tiles)
        known = [found for found in easy if found] + [Plan(tile, "pointers", (0, 0)) for tile in careful]
    return tuple(dict.fromkeys([plan(product, architecture, kind, wide), *known]))


def _is_flattened(product: Product) -> bool:
    return product.channels < FLATTENED_BELOW and not product.gradient


def _loaded(product: Product, architecture: str, kind: str, tile: Tile) -> Plan | None:
    """The plan by which a tile is loaded easily: by descriptors, or in steps and columns that are all filled."""
    patch = _patch_of(product, tile) if kind != "ieee" and architecture in _DESCRIPTORS_FROM else None
    if patch:
        return Plan(tile, "descriptors", patch)
    even = product.channels % tile.depth == 0 and product.filters % tile.columns == 0
    return Plan(tile, "pointers", (0, 0)) if product.side_by_side and even else None


def decided(like: Tensor, product: Product, architecture: str, kind: str, wide: bool, expanded: bool = False) -> Plan:
    """The plan that a launch takes: what was measured on the GPU that holds a tensor, else what `plan` chooses.

    Args:
        like: the images.
        product: to compute.
        architecture: one of `tiles.ARCHITECTURES`.
        kind: "half", "tf32" or "ieee".
        wide: whether offsets need 64 bits.
        expanded: whether a pooled gradient is expanded by its bytes.
    """
    if not autotune.is_enabled(like):
        return plan(product, architecture, kind, wide)
    part = "input gradient" if product.gradient else "forward"
    key = ("implicit GEMM", part, kind, wide, expanded, *product)
    return autotune.select(like, key, plans(product, architecture, kind, wide))


def _patch_of(product: Product, tile: Tile) -> Pair | None:
    """The rectangle of a tile's rows that hangs least over the image; None if descriptors cannot load the product."""
    aligned = product.groups * product.channels * product.element_size % 16 == 0
    aligned &= product.filters * product.element_size % 16 == 0 or not product.gradient
    within_groups = product.groups == 1 or product.channels % tile.depth == 0  # zeros follow the last channel only
    if not (product.dense and aligned and within_groups):
        return None
    if math.prod(product.pool) != product.positions:  # a rectangle holds whole windows
        return None
    windows = tile.rows // product.positions
    shapes = [(windows >> shift, 1 << shift) for shift in range(windows.bit_length())]
    shapes = [s for s in shapes if max(_both(operator.mul, s, product.pool)) <= _MOST_IN_A_BOX]
    covered = {s: math.prod(_both(lambda n, side: triton.cdiv(n, side) * side, product.size, s)) for s in shapes}
    best = min(covered, key=covered.__getitem__, default=None)
    return best if best and covered[best] <= _OVERHANG * math.prod(product.size) else None


def _descriptors(
    source: Tensor, weight: Tensor, plan: Plan, product: Product
) -> tuple[TensorDescriptor, TensorDescriptor]:
    """Describe the images as (n, h, w, c) and the weight as (filter, tap, channel)."""
    columns, depth = plan.tile.columns, plan.tile.depth
    return (
        TensorDescriptor.from_tensor(_dense(source), [1, *_both(operator.mul, plan.patch, product.pool), depth]),
        TensorDescriptor.from_tensor(
            _dense(weight).flatten(1, 2), [depth, 1, columns] if product.gradient else [columns, 1, depth]
        ),
    )


def _dense(image: Tensor) -> Tensor:
    """As (n, h, w, c), dense and aligned as the hardware wants it: copied if it is not."""
    image = image.contiguous(memory_format=torch.channels_last)
    if image.data_ptr() % 16:
        image = image.clone()
    n, c, h, w = image.shape
    return image.as_strided((n, h, w, c), (h * w * c, w * c, c, 1))  # strides along one element may be anything


def _launch(
    outputs: Outputs,
    source: Tensor,
    source_code: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    window: tuple[Pair, Pair, Pair],
    product: Product,
    tile: Tile | None,
    pool: Pair = (1, 1),
    activation: str = "identity",
    bfloat16: bool = False,
) -> None:
    output, output_code = (*outputs, None)[:2]
    assert output is not None
    target = nearest(architecture(source))
    precision = dot_precision(source.dtype, target)
    index = index_type(source, weight, output, *(t for t in (source_code, output_code, bias) if t is not None))
    kind, wide, expanded = arithmetic(source.dtype, precision), index is tl.int64, source_code is not None
    if tile is None:
        chosen = decided(source, product, target, kind, wide, expanded)
    else:
        chosen = plan(product, target, kind, wide, tile)
    tile, patch, described = chosen.tile, chosen.patch, chosen.loader == "descriptors"
    k, c, *taps = weight.stride()
    stride, padding, dilation = window
    tap_step = (1, 1)
    if product.gradient:
        k, c = c, k
        tap_step = _both(lambda s, d: s // math.gcd(s, d), stride, dilation)
        if described:  # taps in reverse order, from the other side of the image
            padding = _both(lambda n, p: n - 1 - p, product.taps, padding)
    if described:
        pixel_blocks = product.images * math.prod(_both(triton.cdiv, product.size, patch))
    else:
        pixel_blocks = triton.cdiv(product.images * math.prod(product.size), tile.rows // product.positions)
    blocks = (triton.cdiv(product.filters, tile.columns), pixel_blocks, product.groups)
    x_size = _both(lambda n, p: n * p if expanded else n, pair_of(source), pool)
    with on_device(source):
        _kernel[(math.prod(blocks) * math.prod(product.phases),)](
            source, source.stride(), x_size, source_code, strides_of(source_code),
            weight, (k, c, *taps), weight.stride(0) * weight.shape[0] // product.groups, bias, strides_of(bias)[0],
            output, output.stride(), pair_of(output), output_code, strides_of(output_code),
            *(_descriptors(source, weight, chosen, product) if described else (None, None)),
            product.images, product.size, product.channels, product.filters, stride, padding, dilation, tap_step,
            blocks, product.phases,
            *product.taps, product.channels if chosen.loader == "flattened" else 0, chosen.loader,
            product.gradient, expanded,
            *(pool if expanded else product.pool), product.positions,
            bias is not None, activation, output_code is not None, bfloat16,
            product.channels % tile.depth == 0, product.filters % tile.columns == 0,
            index, precision,
            *patch, tile.rows, tile.columns, tile.depth, **tile.options(target),
        )  # fmt: skip


def _both(function: Callable[[int, int], int], first: Pair, second: Pair) -> Pair:
    return function(first[0], second[0]), function(first[1], second[1])


def pair_of(images: Tensor) -> Pair:
    """Height and width."""
    return images.shape[2], images.shape[3]


def strides_of(tensor: Tensor | None) -> tuple[int, ...]:
    """A tensor's strides, or as many zeros as images have where there is none."""
    return (0, 0, 0, 0) if tensor is None else tensor.stride()


def forward_product(
    input: Tensor, weight: Tensor, size: Pair, window: tuple[Pair, Pair, Pair], groups: int, pool: Pair
) -> Product:
    """The product that a convolution takes whose result, pooled or not, has this size."""
    stride, _, dilation = window
    return Product(
        images=input.shape[0],
        size=size,
        filters=weight.shape[0] // groups,
        channels=weight.shape[1],
        taps=pair_of(weight),
        groups=groups,
        phases=(1, 1),
        pool=pool,
        element_size=input.element_size(),
        dense=stride == (1, 1) and dilation == (1, 1),
        side_by_side=input.stride(1) == 1,
        gradient=False,
    )


def gradient_product(
    grad_input: Tensor,
    grad_output: Tensor,
    weight: Tensor,
    window: tuple[Pair, Pair, Pair],
    groups: int,
    expanded: bool,
) -> Product:
    """The product that the gradient with respect to a convolution's input takes."""
    stride, _, dilation = window
    return Product(
        images=grad_input.shape[0],
        size=_both(triton.cdiv, pair_of(grad_input), stride),
        filters=weight.shape[1],
        channels=weight.shape[0] // groups,
        taps=pair_of(weight),
        groups=groups,
        phases=_both(min, stride, pair_of(grad_input)),  # a larger stride leaves phases without a pixel
        pool=(1, 1),
        element_size=weight.element_size(),
        dense=stride == (1, 1) and dilation == (1, 1) and not expanded,
        side_by_side=grad_output.stride(1) == 1,
        gradient=True,
    )


@in_float32_when_interpreted
def forward(
    outputs: Outputs,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    activation: str = "identity",
    pool: Pair = (1, 1),
    dtype: torch.dtype | None = None,
    tile: Tile | None = None,
) -> None:
    """Write max_pool2d(activation(conv2d(input, weight, bias)), pool) into outputs[0], whatever its memory format.

    Args:
        outputs: the result, and optionally the byte of each of its elements: the position in its window of the pixel
            that was kept, or 255 where ReLU stops the gradient.
        input: the images.
        weight: the filters.
        bias: of each filter.
        stride: of the convolution.
        padding: of the convolution.
        dilation: of the convolution.
        groups: of the convolution.
        activation: "identity", "relu", "leaky_relu", "tanh" or "sigmoid".
        pool: size of the windows; a block reduces as many rows a window as the next power of two.
        dtype: of the result, for the interpreter, which holds bfloat16 in float32: values are rounded to it before
            they are compared.
        tile: instead of the table's.
    """
    window = (stride, padding, dilation)
    product = forward_product(input, weight, pair_of(outputs[0]), window, groups, pool)
    bfloat16 = dtype is torch.bfloat16
    _launch(outputs, input, None, weight, bias, window, product, tile, pool, activation, bfloat16)


@in_float32_when_interpreted
def input_gradient(
    outputs: Outputs,
    grad_output: Tensor,
    code: Tensor | None,
    weight: Tensor,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    pool: Pair = (1, 1),
    tile: Tile | None = None,
) -> None:
    """Write the gradient with respect to the convolution's input into outputs[0].

    Args:
        outputs: the result.
        grad_output: of the convolution; of the pooled map, before its activation, where there is a code.
        code: the bytes that `forward` wrote.
        weight: the filters.
        stride: of the convolution.
        padding: of the convolution.
        dilation: of the convolution.
        groups: of the convolution.
        pool: size of the pooling windows.
        tile: instead of the table's.
    """
    window = (stride, padding, dilation)
    product = gradient_product(outputs[0], grad_output, weight, window, groups, code is not None)
    _launch(outputs, grad_output, code, weight, None, window, product, tile, pool)
