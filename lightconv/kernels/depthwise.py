"""Depthwise convolution and its two gradients: a filter sees one channel, so there is no matrix to multiply.

    forward           y[pixel, k]   = sum over taps of  x[pixel * stride + tap, k // m] x w[k, tap] + b[k]
    input_gradient    dx[pixel, c]  = sum over taps and the m filters k of c of g[(pixel - tap) / stride, k] x w[k, tap]
    weight_gradient   dw[k, tap]    = sum over pixels of  g[pixel, k] x x[pixel * stride + tap, k // m]
                      db[k]         = sum over pixels of  g[pixel, k]

Bound by memory, so made for channels_last: neighbours in a block are neighbouring channels, loaded 16 bytes at once. A
block owns a rectangle of one image, whose taps overlap in the nearest cache. Every tensor is addressed through its
strides, so any other memory format is right too. Sums are float32, rounded once, and each has one owner and a fixed
order: no atomics, the same bits every time. Masked addresses are also clamped into the tensor.
"""

import math
from collections.abc import Mapping, Sequence

import triton
import triton.language as tl
from torch import Tensor

from lightconv.kernels import autotune, ordered_sum
from lightconv.kernels.launch import Outputs, architecture, in_float32_when_interpreted, index_type, on_device
from lightconv.kernels.tiles import ARCHITECTURES, MULTIPROCESSORS, Tile, Tiles, choose_tile, nearest_architecture
from lightconv.kernels.window import Pair

# a block's pixels, channels and, for the weight gradient, taps
TILES: Mapping[str, Tiles] = dict.fromkeys(
    ARCHITECTURES, (Tile(128, 32, 1, 4, 1), Tile(64, 32, 1, 4, 1), Tile(32, 16, 1, 2, 1))
)
WEIGHT_TILES: Mapping[str, Tiles] = dict.fromkeys(ARCHITECTURES, (Tile(32, 32, 9, 4, 1), Tile(32, 16, 9, 2, 1)))
_WIDTH = 8  # columns of a rectangle of pixels
_BLOCKS = 3  # of the weight gradient for every multiprocessor
_STEPS = 8  # rectangles that a part of the weight gradient's sum is worth starting for


@triton.jit
def _rectangle(unit, height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INDEX: tl.constexpr):
    """The unit-th rectangle of pixels: its image, their rows and columns, and which of them are in the image."""
    n, top, left = _corner(unit, height, width, ROWS, COLUMNS)
    pixel = tl.arange(0, ROWS * COLUMNS)
    row, column = top.to(INDEX) + pixel // COLUMNS, left.to(INDEX) + pixel % COLUMNS
    inside = (row < height) & (column < width)
    return n.to(INDEX), tl.where(inside, row, 0), tl.where(inside, column, 0), inside


@triton.jit
def _corner(unit, height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The image of the unit-th rectangle and its upper left pixel."""
    across, down = tl.cdiv(width, COLUMNS), tl.cdiv(height, ROWS)
    return unit // across // down, unit // across % down * ROWS, unit % across * COLUMNS


@triton.jit
def _next_corner(n, top, left, height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Of the rectangle that follows, without the divisions."""
    left += COLUMNS
    top = tl.where(left < width, top, top + ROWS)
    n = tl.where(top < height, n, n + 1)
    return n, tl.where(top < height, top, 0), tl.where(left < width, left, 0)


@triton.jit
def _channels(block, channels, CHANNELS: tl.constexpr, RUN: tl.constexpr, INDEX: tl.constexpr):
    """The block-th run of channels and which of them exist; the others wrap around.

    RUN divides their number: told so, the compiler loads and masks as many at once.
    """
    c = block.to(INDEX) * CHANNELS + tl.arange(0, CHANNELS)
    inside = c // RUN < channels // RUN
    return tl.max_contiguous(tl.multiple_of(c % channels, RUN), RUN), inside


@triton.jit
def _forward_kernel(
    x, w, b, y,
    height, width, out_height, out_width, filters,
    x_strides, w_strides, b_stride, y_strides, stride, padding, dilation,
    R: tl.constexpr, S: tl.constexpr, MULTIPLIER: tl.constexpr, INDEX: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, FILTERS: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    filter_blocks = tl.cdiv(filters, FILTERS)
    k, k_in = _channels(tl.program_id(0) % filter_blocks, filters, FILTERS, RUN, INDEX)
    n, oh, ow, pixel_in = _rectangle(tl.program_id(0) // filter_blocks, out_height, out_width, ROWS, COLUMNS, INDEX)
    top, left = oh * stride[0] - padding[0], ow * stride[1] - padding[1]
    x_channel = k // MULTIPLIER * x_strides[1]

    UNROLL: tl.constexpr = 3 if RUN > 1 else 1  # taps in flight: more addresses than these do not fit the registers
    total = tl.zeros((ROWS * COLUMNS, FILTERS), tl.float32)
    for r in range(R):
        h = top + r * dilation[0]
        row_in = pixel_in & (h >= 0) & (h < height)
        x_row = n * x_strides[0] + tl.where(row_in, h, 0) * x_strides[2]
        for s in tl.range(S, loop_unroll_factor=UNROLL):
            v = left + s * dilation[1]
            seen = row_in & (v >= 0) & (v < width)
            x_pixel = tl.multiple_of(x_row + tl.where(seen, v, 0) * x_strides[3], RUN)
            x_tile = tl.load(x + x_pixel[:, None] + x_channel, mask=seen[:, None] & k_in, other=0.0)
            w_tap = tl.load(w + k * w_strides[0] + r * w_strides[2] + s * w_strides[3])
            total += x_tile.to(tl.float32) * w_tap.to(tl.float32)
    if b is not None:
        total += tl.load(b + k * b_stride).to(tl.float32)
    y_pixel = tl.multiple_of(n * y_strides[0] + oh * y_strides[2] + ow * y_strides[3], RUN)
    y_offset = y_pixel[:, None] + k * y_strides[1]
    tl.store(y + y_offset, total.to(y.dtype.element_ty), mask=pixel_in[:, None] & k_in)


@triton.jit
def _input_gradient_kernel(
    g, w, dx,
    height, width, out_height, out_width, channels,
    g_strides, w_strides, x_strides, stride, padding, dilation, phases,
    R: tl.constexpr, S: tl.constexpr, MULTIPLIER: tl.constexpr, INDEX: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    channel_blocks = tl.cdiv(channels, CHANNELS)
    c, c_in = _channels(tl.program_id(0) % channel_blocks, channels, CHANNELS, RUN, INDEX)
    # pixels a stride apart meet the same taps: a block's are of one such phase, every tap serves all of them or none
    part = tl.program_id(0) // channel_blocks
    phase_h, phase_w = part // phases[1] % phases[0], part % phases[1]
    phase_height, phase_width = tl.cdiv(height, stride[0]), tl.cdiv(width, stride[1])
    n, i, j, inside = _rectangle(part // phases[1] // phases[0], phase_height, phase_width, ROWS, COLUMNS, INDEX)
    h, v = i * stride[0] + phase_h, j * stride[1] + phase_w
    inside &= (h < height) & (v < width)

    UNROLL: tl.constexpr = 3 if RUN > 1 else 1
    total = tl.zeros((ROWS * COLUMNS, CHANNELS), tl.float32)
    for r in range(R):
        top = phase_h + padding[0] - r * dilation[0]
        if top % stride[0] == 0:
            oh = i + top // stride[0]
            row_in = inside & (oh >= 0) & (oh < out_height)
            g_row = n * g_strides[0] + tl.where(row_in, oh, 0) * g_strides[2]
            for s in tl.range(S, loop_unroll_factor=UNROLL):
                left = phase_w + padding[1] - s * dilation[1]
                if left % stride[1] == 0:
                    ow = j + left // stride[1]
                    seen = row_in & (ow >= 0) & (ow < out_width)
                    g_pixel = tl.multiple_of(g_row + tl.where(seen, ow, 0) * g_strides[3], RUN)
                    mask = seen[:, None] & c_in
                    for m in range(MULTIPLIER):
                        k = c * MULTIPLIER + m
                        g_tile = tl.load(g + g_pixel[:, None] + k * g_strides[1], mask=mask, other=0.0)
                        w_tap = tl.load(w + k * w_strides[0] + r * w_strides[2] + s * w_strides[3])
                        total += g_tile.to(tl.float32) * w_tap.to(tl.float32)
    x_pixel = n * x_strides[0] + tl.where(inside, h, 0) * x_strides[2] + tl.where(inside, v, 0) * x_strides[3]
    x_offset = tl.multiple_of(x_pixel, RUN)[:, None] + c * x_strides[1]
    tl.store(dx + x_offset, total.to(dx.dtype.element_ty), mask=inside[:, None] & c_in)


@triton.jit
def _weight_gradient_kernel(
    g, x, dw, db,
    height, width, out_height, out_width, filters, rectangles, rectangles_a_split, split_stride,
    g_strides, x_strides, w_strides, stride, padding, dilation,
    R: tl.constexpr, S: tl.constexpr, MULTIPLIER: tl.constexpr, BIAS: tl.constexpr, INDEX: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, TAPS: tl.constexpr, FILTERS: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    filter_blocks, tap_blocks = tl.cdiv(filters, FILTERS), tl.cdiv(R * S, TAPS)
    k, k_in = _channels(tl.program_id(0) % filter_blocks, filters, FILTERS, RUN, INDEX)
    part = tl.program_id(0) // filter_blocks
    first, split = part % tap_blocks * TAPS, (part // tap_blocks).to(INDEX)
    g_channel, x_channel = k * g_strides[1], k // MULTIPLIER * x_strides[1]

    pixel = tl.arange(0, ROWS * COLUMNS)
    start = split * rectangles_a_split
    end = tl.minimum(start + rectangles_a_split, rectangles)
    n, top, left = _corner(start, out_height, out_width, ROWS, COLUMNS)
    none = tl.zeros((ROWS * COLUMNS, FILTERS), tl.float32)
    # a thread has all taps of its pixels: what it loads of g serves each of them
    totals, bias = (), none
    for _ in tl.static_range(TAPS):
        totals += (none,)
    for _ in range(start, end):
        oh, ow = top + pixel // COLUMNS, left + pixel % COLUMNS
        pixel_in = (oh < out_height) & (ow < out_width)
        oh, ow = tl.where(pixel_in, oh, 0).to(INDEX), tl.where(pixel_in, ow, 0).to(INDEX)
        g_pixel = tl.multiple_of(n * g_strides[0] + oh * g_strides[2] + ow * g_strides[3], RUN)
        g_tile = tl.load(g + g_pixel[:, None] + g_channel, mask=pixel_in[:, None] & k_in, other=0.0).to(tl.float32)
        sums = ()
        for t in tl.static_range(TAPS):
            h = oh * stride[0] - padding[0] + (first + t) // S * dilation[0]
            v = ow * stride[1] - padding[1] + (first + t) % S * dilation[1]
            seen = pixel_in & (h >= 0) & (h < height) & (v >= 0) & (v < width)
            x_pixel = n * x_strides[0] + tl.where(seen, h, 0) * x_strides[2] + tl.where(seen, v, 0) * x_strides[3]
            x_offset = tl.multiple_of(x_pixel, RUN)[:, None] + x_channel
            x_tile = tl.load(x + x_offset, mask=seen[:, None] & k_in, other=0.0)
            sums += (totals[t] + g_tile * x_tile.to(tl.float32),)
        totals = sums
        if BIAS:
            bias += g_tile
        n, top, left = _next_corner(n, top, left, out_height, out_width, ROWS, COLUMNS)
    part_offset = split * split_stride
    for t in tl.static_range(TAPS):
        if first + t < R * S:
            w_tap = (first + t) // S * w_strides[2] + (first + t) % S * w_strides[3]
            total = tl.sum(totals[t], 0)
            tl.store(dw + part_offset + w_tap + k * w_strides[0], total.to(dw.dtype.element_ty), mask=k_in)
    if BIAS and first == 0:
        tl.store(db + part_offset + k, tl.sum(bias, 0).to(db.dtype.element_ty), mask=k_in)


def tile_of(input: Tensor, weight_shape: Sequence[int], size: Pair, stride: Pair, architecture: str) -> Tile:
    """The tile by which `forward` computes a map of this size, unless one is forced."""
    filters, _, *taps = weight_shape
    rule = choose_tile(TILES[architecture], architecture, input.shape[0] * math.prod(size), filters)
    return _decided(rule, TILES[architecture], input, "forward", (filters, *taps), stride)


def _decided(rule: Tile, tiles: Tiles, images: Tensor, part: str, *sizes: Sequence[int]) -> Tile:
    # what was measured on the GPU that holds the images, else the rule's
    if not autotune.is_enabled(images):
        return rule
    key = ("depthwise", part, autotune.tensor_key(images), *sizes)
    return autotune.select(images, key, tuple(dict.fromkeys([rule, *tiles])))


def _fitted(tile: Tile, height: int, width: int, channels: int, index: tl.dtype) -> tuple[int, int, int]:
    # a block's rows, columns and channels, no larger than the image; 64-bit addresses take half the pixels' registers
    pixels = tile.rows // 2 if index is tl.int64 else tile.rows
    columns = min(_WIDTH, triton.next_power_of_2(width))
    rows = min(pixels // columns, triton.next_power_of_2(height))
    return rows, columns, min(tile.columns, triton.next_power_of_2(channels))


def _run(block: int, channels: int, *images: Tensor) -> int:
    # how many channels may be loaded at once: a divisor of their numbers and of every distance between pixels
    distances = (image.stride(dim) for image in images for dim in (0, 2, 3) if image.shape[dim] > 1)
    return math.gcd(block, channels, *distances)


@in_float32_when_interpreted
def forward(
    outputs: Outputs,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    tile: Tile | None = None,
) -> None:
    """Write conv2d(input, weight, bias) into outputs[0], whatever its memory format; a tile may be forced."""
    (output,) = outputs
    images, channels, height, width = input.shape
    filters, _, r, s = weight.shape
    *_, out_height, out_width = output.shape
    target = nearest_architecture(architecture(input))
    tile = tile or tile_of(input, tuple(weight.shape), (out_height, out_width), stride, target)
    index = index_type(input, weight, output)
    rows, columns, block = _fitted(tile, out_height, out_width, filters, index)
    rectangles = images * triton.cdiv(out_height, rows) * triton.cdiv(out_width, columns)
    with on_device(input):
        _forward_kernel[(rectangles * triton.cdiv(filters, block),)](
            input, weight, bias, output,
            height, width, out_height, out_width, filters,
            input.stride(), weight.stride(), 0 if bias is None else bias.stride(0), output.stride(),
            stride, padding, dilation,
            r, s, filters // channels, index,
            rows, columns, block, _run(block, filters, input, output),
            **tile.options(target),
        )  # fmt: skip


@in_float32_when_interpreted
def input_gradient(
    outputs: Outputs,
    grad_output: Tensor,
    weight: Tensor,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    tile: Tile | None = None,
) -> None:
    """Write the gradient with respect to conv2d's input into outputs[0]; a tile may be forced."""
    (grad_input,) = outputs
    images, channels, height, width = grad_input.shape
    filters, _, r, s = weight.shape
    phase_height, phase_width = triton.cdiv(height, stride[0]), triton.cdiv(width, stride[1])
    phases = (min(stride[0], height), min(stride[1], width))  # a larger stride leaves phases without a pixel
    target = nearest_architecture(architecture(grad_output))
    if tile is None:
        rule = choose_tile(TILES[target], target, images * phase_height * phase_width, channels, math.prod(phases))
        tile = _decided(rule, TILES[target], grad_output, "input gradient", tuple(grad_input.shape), (r, s), stride)
    index = index_type(grad_output, weight, grad_input)
    rows, columns, block = _fitted(tile, phase_height, phase_width, channels, index)
    rectangles = images * triton.cdiv(phase_height, rows) * triton.cdiv(phase_width, columns)
    with on_device(grad_output):
        _input_gradient_kernel[(rectangles * math.prod(phases) * triton.cdiv(channels, block),)](
            grad_output, weight, grad_input,
            height, width, *grad_output.shape[2:], channels,
            grad_output.stride(), weight.stride(), grad_input.stride(), stride, padding, dilation,
            phases, r, s, filters // channels, index,
            rows, columns, block, _run(block, channels, grad_output, grad_input),
            **tile.options(target),
        )  # fmt: skip


@in_float32_when_interpreted
def weight_gradient(
    outputs: tuple[Tensor, Tensor | None],
    grad_output: Tensor,
    input: Tensor,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    tile: Tile | None = None,
) -> None:
    """Write the gradients with respect to conv2d's dense weight and, unless outputs[1] is None, its bias.

    A tile may be forced.
    """
    grad_weight, grad_bias = outputs
    filters, _, r, s = grad_weight.shape
    images, _, out_height, out_width = grad_output.shape
    wants_bias = grad_bias is not None
    target = nearest_architecture(architecture(input))
    if tile is None:
        rule = choose_tile(WEIGHT_TILES[target], target, images * out_height * out_width, filters)
        tile = _decided(rule, WEIGHT_TILES[target], input, "weight gradient", tuple(grad_weight.shape), stride)
    index = index_type(grad_output, input, grad_weight)
    rows, columns, block = _fitted(tile, out_height, out_width, filters, index)
    taps = triton.cdiv(r * s, triton.cdiv(r * s, tile.depth))
    rectangles = images * triton.cdiv(out_height, rows) * triton.cdiv(out_width, columns)
    blocks = triton.cdiv(r * s, taps) * triton.cdiv(filters, block)
    splits = _splits(blocks, rectangles, target)
    parts = ordered_sum.allocate_parts(splits, grad_weight, grad_bias)
    with on_device(input):
        _weight_gradient_kernel[(blocks * splits,)](
            grad_output, input, parts.weight, parts.weight if parts.bias is None else parts.bias,
            *input.shape[2:], out_height, out_width, filters,
            rectangles, triton.cdiv(rectangles, splits), parts.stride,
            grad_output.stride(), input.stride(), grad_weight.stride(), stride, padding, dilation,
            r, s, filters // input.shape[1], wants_bias, index,
            rows, columns, taps, block, _run(block, filters, grad_output, input),
            **tile.options(target),
        )  # fmt: skip
    ordered_sum.add_parts(parts, grad_weight, grad_bias)


def _splits(blocks: int, rectangles: int, target: str) -> int:
    # from the shape and the architecture alone: the same call has the same bits
    return max(1, min(triton.cdiv(_BLOCKS * MULTIPROCESSORS[target], blocks), rectangles // _STEPS))
