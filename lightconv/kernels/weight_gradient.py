"""The gradients with respect to a convolution's weight and bias, one product over all pixels.

    dw[filter, tap, channel] = sum over images and pixels of  g[pixel, filter] x x[pixel * stride + tap, channel]
    db[filter]               = sum over images and pixels of  g[pixel, filter]

The sum is long and the result is small: it is split over blocks, each writes its part into a float32 workspace, and a
second kernel adds the parts in their order. The number of parts follows from the sizes alone. No atomics: the same
bits every time. Where a pooling followed the convolution, `g` is the pooled map's gradient and a byte an element names
the pixel it belongs to: the loader expands it.

A step of the loop takes a rectangle of pixels, so that the rows and columns it reads are found by counting, without
division. Few channels are flattened with their taps into the columns of the product.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from lightconv.kernels import autotune, implicit_gemm, ordered_sum
from lightconv.kernels.implicit_gemm import CAREFUL_TILES, FLATTENED_BELOW, columns_of, expanded, strides_of
from lightconv.kernels.launch import (
    Outputs,
    architecture,
    dot_precision,
    in_float32_when_interpreted,
    index_type,
    on_device,
)
from lightconv.kernels.tiles import ARCHITECTURES, MULTIPROCESSORS, Table, Tile, arithmetic, fitting, nearest
from lightconv.kernels.window import Pair

# rows are filters, columns are channels of a tap, depth is pixels
_TILES = {
    "half": (Tile(128, 128, 32, 8, 3), Tile(64, 64, 32, 4, 3), Tile(64, 32, 32, 4, 3)),
    "tf32": (Tile(64, 64, 32, 8, 2), Tile(64, 32, 32, 4, 2)),
    "ieee": (Tile(64, 32, 16, 8, 2),),
}
_TILES_WGMMA = _TILES | {  # twice the depth: a step's addresses, which no warp group shares, serve twice the products
    "half": (Tile(128, 128, 64, 8, 2), Tile(64, 64, 64, 4, 3), Tile(64, 32, 64, 4, 3)),
}
TILES: Table = {
    a: {kind: (_TILES_WGMMA if a in {"sm_90", "sm_100"} else _TILES)[kind] for kind in kinds}
    for a, kinds in implicit_gemm.TILES.items()
}
# a column knows its own tap, which takes registers
_FLATTENED_TILES = {
    "half": (Tile(64, 32, 32, 4, 1),),
    "tf32": (Tile(64, 32, 32, 4, 1),),
    "ieee": (Tile(64, 32, 16, 8, 1),),
}
_FLATTENED_MFMA = {"half": (Tile(64, 32, 16, 8, 1),), "ieee": _FLATTENED_TILES["ieee"]}
FLATTENED_TILES: Table = dict.fromkeys(ARCHITECTURES, _FLATTENED_TILES) | {"gfx942": _FLATTENED_MFMA}

_STEPS = 4  # of a row of rectangles, if the map has as many
ONES = tl.constexpr(16)  # columns by which the bias is summed, the fewest that a product takes


@triton.jit
def _first(one, other):
    """Of equal numbers, any."""
    return one


@triton.jit
def _kernel(
    g, g_strides, code, code_strides, x, x_strides, x_size, dw, dw_strides, dw_group, db, split_stride,
    images, size, channels, filters, stride, padding, dilation, blocks, units,
    R: tl.constexpr, S: tl.constexpr, POOL_H: tl.constexpr, POOL_W: tl.constexpr, EXPANDED: tl.constexpr,
    FEW: tl.constexpr, BIAS: tl.constexpr, EVEN_FILTERS: tl.constexpr, EVEN_CHANNELS: tl.constexpr,
    INDEX: tl.constexpr, PRECISION: tl.constexpr,
    PATCH_W: tl.constexpr, FILTERS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    # blocks that read the same pixels follow each other
    column_block = tl.program_id(0) % blocks[0]
    filter_block = tl.program_id(0) // blocks[0] % blocks[1]
    group = (tl.program_id(0) // blocks[0] // blocks[1] % blocks[2]).to(INDEX)
    split = tl.program_id(0) // blocks[0] // blocks[1] // blocks[2]
    k, k_in = columns_of(filter_block * FILTERS, filters, FILTERS, EVEN_FILTERS, INDEX)
    if FEW:
        t, c_in = columns_of(column_block * COLUMNS, R * S * FEW, COLUMNS, False, INDEX)
        c, r, s = t % FEW, (t // FEW // S)[None, :], (t // FEW % S)[None, :]
    else:
        channel_blocks = tl.cdiv(channels, COLUMNS)
        tap = column_block // channel_blocks
        c, c_in = columns_of(column_block % channel_blocks * COLUMNS, channels, COLUMNS, EVEN_CHANNELS, INDEX)
        r, s = tap // S, tap % S
    g_filter = ((group * filters + k) * g_strides[1])[:, None]
    x_channel = ((group * channels + c) * x_strides[1])[None, :]

    PATCH_H: tl.constexpr = DEPTH // PATCH_W
    down = tl.cdiv(size[0], PATCH_H)
    pixel = tl.arange(0, DEPTH)
    accumulator = tl.zeros((FILTERS, COLUMNS), tl.float32)
    # the bias sees 1 everywhere: a few more columns of the product, unless TF32 would round what they sum
    HALF: tl.constexpr = g.dtype.element_ty != tl.float32
    bias = tl.zeros((FILTERS, ONES if HALF else DEPTH), tl.float32)
    first = split * units
    for unit in range(first, tl.minimum(first + units, images * down)):
        n = tl.full((), 0, INDEX) + unit // down
        i = unit % down * PATCH_H + pixel // PATCH_W
        i_in = i < size[0]
        i = tl.where(i_in, i, 0).to(INDEX)
        h = (i * stride[0] - padding[0])[:, None] + r * dilation[0]
        h_in = i_in[:, None] & c_in[None, :] & (h >= 0) & (h < x_size[0])
        x_row = n * x_strides[0] + tl.where(h_in, h, 0) * x_strides[2] + x_channel
        for left in range(0, size[1], PATCH_W):
            j = left + pixel % PATCH_W
            pixel_in = i_in & (j < size[1])
            j = tl.where(pixel_in, j, 0).to(INDEX)
            v = (j * stride[1] - padding[1])[:, None] + s * dilation[1]
            x_in = h_in & pixel_in[:, None] & (v >= 0) & (v < x_size[1])
            x_tile = tl.load(x + x_row + tl.where(x_in, v, 0) * x_strides[3], mask=x_in, other=0.0)
            # filters down, as the product takes them: a tile transposed later would wait for its own load
            g_in = k_in[:, None] & pixel_in[None, :]
            g_pixel = n * g_strides[0] + i // POOL_H * g_strides[2] + j // POOL_W * g_strides[3]
            g_tile = tl.load(g + g_filter + g_pixel[None, :], mask=g_in, other=0.0)
            if EXPANDED:
                byte = n * code_strides[0] + i // POOL_H * code_strides[2] + j // POOL_W * code_strides[3]
                byte = ((group * filters + k) * code_strides[1])[:, None] + byte[None, :]
                g_tile = expanded(g_tile, code + byte, g_in, (i % POOL_H * POOL_W + j % POOL_W)[None, :])
            accumulator = tl.dot(g_tile, x_tile, accumulator, input_precision=PRECISION)
            if BIAS and column_block == 0:
                if HALF:
                    bias = tl.dot(g_tile, tl.full((DEPTH, ONES), 1, g_tile.dtype), bias)
                else:
                    bias += g_tile

    dw += split.to(tl.int64) * split_stride
    tap_offset = r * dw_strides[2] + s * dw_strides[3]
    dw_offset = group * dw_group + (k * dw_strides[0])[:, None] + (c * dw_strides[1])[None, :] + tap_offset
    tl.store(dw + dw_offset, accumulator.to(dw.dtype.element_ty), mask=k_in[:, None] & c_in[None, :])
    if BIAS and column_block == 0:
        db += split.to(tl.int64) * split_stride
        total = tl.reduce(bias, 1, _first) if HALF else tl.sum(bias, 1)
        tl.store(db + group * filters + k, total.to(db.dtype.element_ty), mask=k_in)


class Plan(NamedTuple):
    """How the product will be computed."""

    tile: Tile
    flattened: bool
    patch_w: int
    blocks: tuple[int, int, int]  # columns, filters, groups
    units: int  # rows of rectangles that a part sums
    splits: int


def plan(
    images: int,
    size: Pair,
    weight_shape: Sequence[int],
    groups: int,
    architecture: str,
    kind: str,
    careful: bool = False,
    tile: Tile | None = None,
) -> Plan:
    """Choose tile, rectangle and number of parts from the sizes alone.

    Args:
        images: of the batch.
        size: of the convolution's map.
        weight_shape: filters, channels of a group, taps down and across.
        groups: of the convolution.
        architecture: one of `tiles.ARCHITECTURES`.
        kind: "half", "tf32" or "ieee".
        careful: whether offsets need 64 bits, or channels do not lie side by side in memory.
        tile: asked for; chosen from the tables otherwise.
    """
    filters, channels, r, s = weight_shape
    filters //= groups
    flattened = channels < FLATTENED_BELOW
    columns = r * s * channels if flattened else channels
    if tile is None:  # the largest that fits: the parts fill the GPU
        table = CAREFUL_TILES if careful else FLATTENED_TILES if flattened else TILES
        tile = fitting(table[architecture][kind], filters, columns)[0]
        if not (flattened or _fills(tile, filters, columns)):
            tile = fitting(CAREFUL_TILES[architecture][kind], filters, columns)[0]
    column_blocks = triton.cdiv(columns, tile.columns) * (1 if flattened else r * s)
    blocks = (column_blocks, triton.cdiv(filters, tile.rows), groups)
    patch_w = _patch_width(size, tile)
    rows = images * triton.cdiv(size[0], tile.depth // patch_w)
    pixels_a_term = images * math.prod(size) // (r * s * min(filters, channels))
    parts = min(rows, splits_of(math.prod(blocks), pixels_a_term, architecture))
    units = triton.cdiv(rows, max(1, parts))
    return Plan(tile, flattened, patch_w, blocks, units, triton.cdiv(rows, units))


def _patch_width(size: Pair, tile: Tile) -> int:
    """Columns of the rectangle that hangs least over the map; of such the widest, which reads memory in its order."""
    steps = _STEPS if tile.stages > 1 else 1  # of a row, for its loads to run ahead
    widths = [1 << shift for shift in range(tile.depth.bit_length())]
    sides = {w: (tile.depth // w, w) for w in widths}
    covered = {w: math.prod(triton.cdiv(n, s) * s for n, s in zip(size, sides[w], strict=True)) for w in widths}
    return min(widths, key=lambda w: (covered[w], -min(triton.cdiv(size[1], w), steps), -w))


def plans(
    images: int, size: Pair, weight_shape: Sequence[int], groups: int, architecture: str, kind: str, careful: bool
) -> tuple[Plan, ...]:
    """Every plan whose tile is in the tables for such a product: first that of `plan`, whose arguments these are."""
    filters, channels = weight_shape[:2]
    tiles = CAREFUL_TILES[architecture][kind]
    if not careful and channels < FLATTENED_BELOW:
        tiles = FLATTENED_TILES[architecture][kind]
    elif not careful:
        tiles = (*(t for t in TILES[architecture][kind] if _fills(t, filters // groups, channels)), *tiles)
    found = (plan(images, size, weight_shape, groups, architecture, kind, careful, tile) for tile in (None, *tiles))
    return tuple(dict.fromkeys(found))


def _fills(tile: Tile, filters: int, columns: int) -> bool:
    return filters % tile.rows == 0 and columns % tile.columns == 0


def splits_of(blocks: int, pixels_a_term: int, architecture: str) -> int:
    """Into how many parts the sum is split: two blocks for every multiprocessor, where that many pay.

    Args:
        blocks: that one part takes.
        pixels_a_term: how many elements of the operands are read for each element of the result; more parts than that
            would take longer to write than the operands to read.
        architecture: one of `tiles.ARCHITECTURES`.
    """
    return min(triton.cdiv(2 * MULTIPROCESSORS[architecture], blocks), pixels_a_term)


@in_float32_when_interpreted
def weight_gradient(
    outputs: Outputs,
    grad_output: Tensor,
    code: Tensor | None,
    input: Tensor,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    pool: Pair = (1, 1),
    tile: Tile | None = None,
) -> None:
    """Write the gradients with respect to the convolution's weight and, unless it is empty, its bias.

    Args:
        outputs: the weight's and the bias's gradient, the first dense in memory.
        grad_output: of the convolution; of the pooled map, before its activation, where there is a code.
        code: the bytes that the pooled convolution wrote.
        input: the images.
        stride: of the convolution.
        padding: of the convolution.
        dilation: of the convolution.
        groups: of the convolution.
        pool: size of the pooling windows.
        tile: instead of the table's.
    """
    grad_weight, grad_bias = outputs
    target = nearest(architecture(input))
    precision = dot_precision(input.dtype, target)
    expansion = pool if code is not None else (1, 1)
    size = (grad_output.shape[2] * expansion[0], grad_output.shape[3] * expansion[1])
    kind = arithmetic(input.dtype, precision)
    coded = [] if code is None else [code]
    index = index_type(grad_output, input, grad_weight, *coded)
    careful = index is tl.int64 or input.stride(1) != 1 or grad_output.stride(1) != 1
    sizes = (input.shape[0], size, tuple(grad_weight.shape), groups, target, kind, careful)
    if tile is None and autotune.is_enabled(input):
        key = ("implicit GEMM", "weight gradient", code is not None, grad_bias.numel() > 0, stride, dilation, *sizes)
        chosen = autotune.select(input, key, plans(*sizes))
    else:
        chosen = plan(*sizes, tile)
    tile, filters, channels = chosen.tile, grad_weight.shape[0] // groups, grad_weight.shape[1]
    parts = ordered_sum.parts_of(chosen.splits, grad_weight, grad_bias)
    with on_device(input):
        _kernel[(math.prod(chosen.blocks) * chosen.splits,)](
            grad_output, grad_output.stride(), code, strides_of(code), input, input.stride(), tuple(input.shape[2:]),
            parts.weight, grad_weight.stride(), grad_weight.stride(0) * filters, parts.bias, parts.stride,
            input.shape[0], size, channels, filters, stride, padding, dilation, chosen.blocks, chosen.units,
            *grad_weight.shape[2:], *expansion, code is not None,
            channels if chosen.flattened else 0, grad_bias.numel() > 0,
            filters % tile.rows == 0, channels % tile.columns == 0,
            index, precision,
            chosen.patch_w, tile.rows, tile.columns, tile.depth, **tile.options(target),
        )  # fmt: skip
    ordered_sum.add(parts, grad_weight, grad_bias)
