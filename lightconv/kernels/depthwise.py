"""Depthwise convolution and its two gradients. A filter reads one channel, so there is no matrix product.

With m filters per channel, c = k // m, h = i * stride + r, w = j * stride + s (padding and dilation left out)::

    forward            output[n, k, i, j]      = bias[k] + sum over r, s of  input[n, c, h, w] * weight[k, r, s]
    input_gradient     grad_input[n, c, h, w]  = sum over r, s and the m filters k of channel c, at
                                                 i = (h - r) / stride, j = (w - s) / stride where these are integers, of
                                                 grad_output[n, k, i, j] * weight[k, r, s]
    weight_gradient    grad_weight[k, r, s]    = sum over n, i, j of  grad_output[n, k, i, j] * input[n, c, h, w]
                       grad_bias[k]            = sum over n, i, j of  grad_output[n, k, i, j]

The kernels are bound by memory and made for channels_last: threads side by side load neighbouring channels, 16 bytes at
once. A block computes a rectangle of one image, because the taps of neighbouring pixels overlap in the nearest cache.
All tensors are addressed by their strides, so every other memory format is correct, too.

Sums are float32 and rounded once. Each sum has one owner and a fixed order, without atomics: the same bits every time.

Hazard: a masked load on sm_100 may still dereference its address (pytorch/pytorch#187081). Every masked address is
therefore also clamped into its tensor.
"""

import math

import triton
import triton.language as tl
from torch import Tensor

from lightconv.kernels import depthwise_plan, ordered_sum
from lightconv.kernels.launch import architecture, in_float32_when_interpreted, index_type, on_device
from lightconv.kernels.tiles import Tile, nearest_architecture
from lightconv.kernels.window import Window


@triton.jit
def _corner(rectangle, height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the image of a rectangle, and the row and column of its upper left pixel."""
    across = tl.cdiv(width, COLUMNS)
    down = tl.cdiv(height, ROWS)
    return rectangle // across // down, rectangle // across % down * ROWS, rectangle % across * COLUMNS


@triton.jit
def _next_corner(n, top, left, height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the corner of the following rectangle, without the divisions of `_corner`."""
    left += COLUMNS
    top = tl.where(left < width, top, top + ROWS)
    n = tl.where(top < height, n, n + 1)
    return n, tl.where(top < height, top, 0), tl.where(left < width, left, 0)


@triton.jit
def _rectangle(rectangle, height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INDEX: tl.constexpr):
    """Return a rectangle's image, the rows and columns of its pixels (clamped), and a mask of those in the image."""
    n, top, left = _corner(rectangle, height, width, ROWS, COLUMNS)
    pixel = tl.arange(0, ROWS * COLUMNS)
    row = top.to(INDEX) + pixel // COLUMNS
    column = left.to(INDEX) + pixel % COLUMNS
    inside = (row < height) & (column < width)
    return n.to(INDEX), tl.where(inside, row, 0), tl.where(inside, column, 0), inside


@triton.jit
def _channels(block, channels, CHANNELS: tl.constexpr, RUN: tl.constexpr, INDEX: tl.constexpr):
    """Return the channels of a block and a mask of the existing ones; the others wrap around.

    Hazard: loads of 16 bytes at once need a proof by the compiler: neighbours lie side by side, start at a multiple of
    their number and share a mask. RUN divides the number of channels. The hints below are therefore true, and the mask
    compares whole runs.
    """
    c = block.to(INDEX) * CHANNELS + tl.arange(0, CHANNELS)
    inside = c // RUN < channels // RUN
    return tl.max_contiguous(tl.multiple_of(c % channels, RUN), RUN), inside


@triton.jit
def _forward_kernel(
    input_ptr,
    weight_ptr,
    bias_ptr,
    output_ptr,
    height,
    width,
    out_height,
    out_width,
    filters,
    input_strides,
    weight_strides,
    bias_stride,
    output_strides,
    stride,
    padding,
    dilation,
    R: tl.constexpr,
    S: tl.constexpr,
    MULTIPLIER: tl.constexpr,
    INDEX: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    FILTERS: tl.constexpr,
    RUN: tl.constexpr,
):
    filter_blocks = tl.cdiv(filters, FILTERS)
    k, k_in = _channels(tl.program_id(0) % filter_blocks, filters, FILTERS, RUN, INDEX)
    n, i, j, pixel_in = _rectangle(tl.program_id(0) // filter_blocks, out_height, out_width, ROWS, COLUMNS, INDEX)
    top = i * stride[0] - padding[0]
    left = j * stride[1] - padding[1]
    input_channel = k // MULTIPLIER * input_strides[1]

    # Hazard: each tap in flight keeps its addresses, and those of more than three taps do not fit the registers.
    UNROLL: tl.constexpr = 3 if RUN > 1 else 1
    total = tl.zeros((ROWS * COLUMNS, FILTERS), tl.float32)
    for r in range(R):
        h = top + r * dilation[0]
        row_in = pixel_in & (h >= 0) & (h < height)
        input_row = n * input_strides[0] + tl.where(row_in, h, 0) * input_strides[2]
        for s in tl.range(S, loop_unroll_factor=UNROLL):
            w = left + s * dilation[1]
            tap_in = row_in & (w >= 0) & (w < width)
            input_pixel = tl.multiple_of(input_row + tl.where(tap_in, w, 0) * input_strides[3], RUN)
            # (pixels, 1) + (filters,) -> (pixels, filters)
            input_tile = tl.load(
                input_ptr + input_pixel[:, None] + input_channel, mask=tap_in[:, None] & k_in, other=0.0
            )
            weight_tap = tl.load(weight_ptr + k * weight_strides[0] + r * weight_strides[2] + s * weight_strides[3])
            total += input_tile.to(tl.float32) * weight_tap.to(tl.float32)
    if bias_ptr is not None:
        total += tl.load(bias_ptr + k * bias_stride).to(tl.float32)
    output_pixel = tl.multiple_of(n * output_strides[0] + i * output_strides[2] + j * output_strides[3], RUN)
    output_offset = output_pixel[:, None] + k * output_strides[1]
    tl.store(output_ptr + output_offset, total.to(output_ptr.dtype.element_ty), mask=pixel_in[:, None] & k_in)


@triton.jit
def _input_gradient_kernel(
    grad_output_ptr,
    weight_ptr,
    grad_input_ptr,
    height,
    width,
    out_height,
    out_width,
    channels,
    grad_output_strides,
    weight_strides,
    grad_input_strides,
    stride,
    padding,
    dilation,
    phases,
    R: tl.constexpr,
    S: tl.constexpr,
    MULTIPLIER: tl.constexpr,
    INDEX: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
    RUN: tl.constexpr,
):
    channel_blocks = tl.cdiv(channels, CHANNELS)
    c, c_in = _channels(tl.program_id(0) % channel_blocks, channels, CHANNELS, RUN, INDEX)
    # Pixels at distances of the stride meet the same taps. A block takes pixels of one such phase, so that a tap
    # contributes to all of them or to none.
    unit = tl.program_id(0) // channel_blocks
    phase_h = unit // phases[1] % phases[0]
    phase_w = unit % phases[1]
    phase_height = tl.cdiv(height, stride[0])
    phase_width = tl.cdiv(width, stride[1])
    rectangle = unit // phases[1] // phases[0]
    n, row, column, inside = _rectangle(rectangle, phase_height, phase_width, ROWS, COLUMNS, INDEX)
    h = row * stride[0] + phase_h
    w = column * stride[1] + phase_w
    inside &= (h < height) & (w < width)

    UNROLL: tl.constexpr = 3 if RUN > 1 else 1  # as in `_forward_kernel`
    total = tl.zeros((ROWS * COLUMNS, CHANNELS), tl.float32)
    for r in range(R):
        top = phase_h + padding[0] - r * dilation[0]
        if top % stride[0] == 0:
            i = row + top // stride[0]
            row_in = inside & (i >= 0) & (i < out_height)
            grad_row = n * grad_output_strides[0] + tl.where(row_in, i, 0) * grad_output_strides[2]
            for s in tl.range(S, loop_unroll_factor=UNROLL):
                left = phase_w + padding[1] - s * dilation[1]
                if left % stride[1] == 0:
                    j = column + left // stride[1]
                    tap_in = row_in & (j >= 0) & (j < out_width)
                    grad_pixel = tl.multiple_of(grad_row + tl.where(tap_in, j, 0) * grad_output_strides[3], RUN)
                    mask = tap_in[:, None] & c_in
                    for m in range(MULTIPLIER):
                        k = c * MULTIPLIER + m
                        # (pixels, 1) + (channels,) -> (pixels, channels)
                        grad_tile = tl.load(
                            grad_output_ptr + grad_pixel[:, None] + k * grad_output_strides[1], mask=mask, other=0.0
                        )
                        weight_tap = tl.load(
                            weight_ptr + k * weight_strides[0] + r * weight_strides[2] + s * weight_strides[3]
                        )
                        total += grad_tile.to(tl.float32) * weight_tap.to(tl.float32)
    pixel_row = n * grad_input_strides[0] + tl.where(inside, h, 0) * grad_input_strides[2]
    pixel = tl.multiple_of(pixel_row + tl.where(inside, w, 0) * grad_input_strides[3], RUN)
    offset = pixel[:, None] + c * grad_input_strides[1]
    tl.store(grad_input_ptr + offset, total.to(grad_input_ptr.dtype.element_ty), mask=inside[:, None] & c_in)


@triton.jit
def _weight_gradient_kernel(
    grad_output_ptr,
    input_ptr,
    grad_weight_ptr,
    grad_bias_ptr,
    height,
    width,
    out_height,
    out_width,
    filters,
    rectangles,
    rectangles_per_split,
    split_stride,
    grad_output_strides,
    input_strides,
    grad_weight_strides,
    stride,
    padding,
    dilation,
    R: tl.constexpr,
    S: tl.constexpr,
    MULTIPLIER: tl.constexpr,
    BIAS: tl.constexpr,
    INDEX: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TAPS: tl.constexpr,
    FILTERS: tl.constexpr,
    RUN: tl.constexpr,
):
    filter_blocks = tl.cdiv(filters, FILTERS)
    tap_blocks = tl.cdiv(R * S, TAPS)
    k, k_in = _channels(tl.program_id(0) % filter_blocks, filters, FILTERS, RUN, INDEX)
    unit = tl.program_id(0) // filter_blocks
    first_tap = unit % tap_blocks * TAPS
    split = (unit // tap_blocks).to(INDEX)
    grad_channel = k * grad_output_strides[1]
    input_channel = k // MULTIPLIER * input_strides[1]

    pixel = tl.arange(0, ROWS * COLUMNS)
    start = split * rectangles_per_split
    end = tl.minimum(start + rectangles_per_split, rectangles)
    n, top, left = _corner(start, out_height, out_width, ROWS, COLUMNS)
    zeros = tl.zeros((ROWS * COLUMNS, FILTERS), tl.float32)
    # A thread owns all taps of its pixels, so that each gradient it loads serves all of them.
    totals = ()
    bias = zeros
    for _ in tl.static_range(TAPS):
        totals += (zeros,)
    for _ in range(start, end):
        i = top + pixel // COLUMNS
        j = left + pixel % COLUMNS
        pixel_in = (i < out_height) & (j < out_width)
        i = tl.where(pixel_in, i, 0).to(INDEX)
        j = tl.where(pixel_in, j, 0).to(INDEX)
        grad_row = n * grad_output_strides[0] + i * grad_output_strides[2]
        grad_pixel = tl.multiple_of(grad_row + j * grad_output_strides[3], RUN)
        # (pixels, 1) + (filters,) -> (pixels, filters)
        grad_tile = tl.load(
            grad_output_ptr + grad_pixel[:, None] + grad_channel, mask=pixel_in[:, None] & k_in, other=0.0
        ).to(tl.float32)
        sums = ()
        for t in tl.static_range(TAPS):
            h = i * stride[0] - padding[0] + (first_tap + t) // S * dilation[0]
            w = j * stride[1] - padding[1] + (first_tap + t) % S * dilation[1]
            tap_in = pixel_in & (h >= 0) & (h < height) & (w >= 0) & (w < width)
            input_row = n * input_strides[0] + tl.where(tap_in, h, 0) * input_strides[2]
            input_pixel = input_row + tl.where(tap_in, w, 0) * input_strides[3]
            input_offset = tl.multiple_of(input_pixel, RUN)[:, None] + input_channel
            input_tile = tl.load(input_ptr + input_offset, mask=tap_in[:, None] & k_in, other=0.0)
            sums += (totals[t] + grad_tile * input_tile.to(tl.float32),)
        totals = sums
        if BIAS:
            bias += grad_tile
        n, top, left = _next_corner(n, top, left, out_height, out_width, ROWS, COLUMNS)
    split_offset = split * split_stride
    for t in tl.static_range(TAPS):
        if first_tap + t < R * S:
            tap = (first_tap + t) // S * grad_weight_strides[2] + (first_tap + t) % S * grad_weight_strides[3]
            # (pixels, filters) -> (filters,)
            grad_tap = tl.sum(totals[t], 0).to(grad_weight_ptr.dtype.element_ty)
            tl.store(grad_weight_ptr + split_offset + tap + k * grad_weight_strides[0], grad_tap, mask=k_in)
    if BIAS and first_tap == 0:
        grad_bias = tl.sum(bias, 0).to(grad_bias_ptr.dtype.element_ty)
        tl.store(grad_bias_ptr + split_offset + k, grad_bias, mask=k_in)


@in_float32_when_interpreted
def forward(
    outputs: tuple[Tensor],
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    window: Window,
    tile: Tile | None = None,
) -> None:
    """Write conv2d(images, weight, bias, groups=c).

    Args:
        outputs: output, in any memory format.
        images: batch of images.
        weight: filters, k a multiple of c.
        bias: bias per filter.
        window: stride, padding and dilation.
        tile: override of the tile.

    Shape:
        - outputs: (n, k, oh, ow)
        - images: (n, c, h, w)
        - weight: (k, 1, r, s)
        - bias: (k,)
    """
    (output,) = outputs
    n, channels, height, width = images.shape
    filters, _, r, s = weight.shape
    size = (output.shape[2], output.shape[3])
    target = nearest_architecture(architecture(images))
    if tile is None:
        tile = depthwise_plan.forward_tile(images, tuple(weight.shape), size, window.stride, target)
    index = index_type(images, weight, output)
    block = depthwise_plan.fit_block(tile, size, filters, index)
    blocks = block.rectangles(n, size) * triton.cdiv(filters, block.channels)
    with on_device(images):
        _forward_kernel[(blocks,)](
            input_ptr=images,
            weight_ptr=weight,
            bias_ptr=bias,
            output_ptr=output,
            height=height,
            width=width,
            out_height=size[0],
            out_width=size[1],
            filters=filters,
            input_strides=images.stride(),
            weight_strides=weight.stride(),
            bias_stride=0 if bias is None else bias.stride(0),
            output_strides=output.stride(),
            stride=window.stride,
            padding=window.padding,
            dilation=window.dilation,
            R=r,
            S=s,
            MULTIPLIER=filters // channels,
            INDEX=index,
            ROWS=block.rows,
            COLUMNS=block.columns,
            FILTERS=block.channels,
            RUN=depthwise_plan.contiguous_run(block, filters, images, output),
            **tile.options(target),
        )


@in_float32_when_interpreted
def input_gradient(
    outputs: tuple[Tensor],
    grad_output: Tensor,
    weight: Tensor,
    *,
    window: Window,
    tile: Tile | None = None,
) -> None:
    """Write the gradient with respect to the images.

    Args:
        outputs: gradient of the images, in any memory format.
        grad_output: gradient of the output.
        weight: filters, k a multiple of c.
        window: stride, padding and dilation.
        tile: override of the tile.

    Shape:
        - outputs: (n, c, h, w)
        - grad_output: (n, k, oh, ow)
        - weight: (k, 1, r, s)
    """
    (grad_input,) = outputs
    n, channels, height, width = grad_input.shape
    filters, _, r, s = weight.shape
    phases = depthwise_plan.phase_counts((height, width), window.stride)
    phase_size = depthwise_plan.phase_size((height, width), window.stride)
    target = nearest_architecture(architecture(grad_output))
    if tile is None:
        tile = depthwise_plan.input_gradient_tile(grad_output, tuple(grad_input.shape), (r, s), window.stride, target)
    index = index_type(grad_output, weight, grad_input)
    block = depthwise_plan.fit_block(tile, phase_size, channels, index)
    blocks = block.rectangles(n, phase_size) * math.prod(phases) * triton.cdiv(channels, block.channels)
    with on_device(grad_output):
        _input_gradient_kernel[(blocks,)](
            grad_output_ptr=grad_output,
            weight_ptr=weight,
            grad_input_ptr=grad_input,
            height=height,
            width=width,
            out_height=grad_output.shape[2],
            out_width=grad_output.shape[3],
            channels=channels,
            grad_output_strides=grad_output.stride(),
            weight_strides=weight.stride(),
            grad_input_strides=grad_input.stride(),
            stride=window.stride,
            padding=window.padding,
            dilation=window.dilation,
            phases=phases,
            R=r,
            S=s,
            MULTIPLIER=filters // channels,
            INDEX=index,
            ROWS=block.rows,
            COLUMNS=block.columns,
            CHANNELS=block.channels,
            RUN=depthwise_plan.contiguous_run(block, channels, grad_output, grad_input),
            **tile.options(target),
        )


@in_float32_when_interpreted
def weight_gradient(
    outputs: tuple[Tensor, Tensor | None],
    grad_output: Tensor,
    input: Tensor,
    *,
    window: Window,
    tile: Tile | None = None,
) -> None:
    """Write the gradients with respect to the weight and the bias.

    Args:
        outputs: gradient of the weight, dense, and gradient of the bias; None skips the bias.
        grad_output: gradient of the output.
        input: batch of images.
        window: stride, padding and dilation.
        tile: override of the tile.

    Shape:
        - outputs: (k, 1, r, s) and (k,)
        - grad_output: (n, k, oh, ow)
        - input: (n, c, h, w)
    """
    grad_weight, grad_bias = outputs
    filters, _, r, s = grad_weight.shape
    size = (grad_output.shape[2], grad_output.shape[3])
    target = nearest_architecture(architecture(input))
    if tile is None:
        tile = depthwise_plan.weight_gradient_tile(input, tuple(grad_weight.shape), size, window.stride, target)
    index = index_type(grad_output, input, grad_weight)
    block = depthwise_plan.fit_block(tile, size, filters, index)
    # as few blocks of taps as the tile allows, each with the same number of taps
    tap_blocks = triton.cdiv(r * s, tile.depth)
    taps = triton.cdiv(r * s, tap_blocks)
    rectangles = block.rectangles(input.shape[0], size)
    blocks = triton.cdiv(r * s, taps) * triton.cdiv(filters, block.channels)
    splits = depthwise_plan.split_count(blocks, rectangles, target)
    parts = ordered_sum.allocate_parts(splits, grad_weight, grad_bias)
    with on_device(input):
        _weight_gradient_kernel[(blocks * splits,)](
            grad_output_ptr=grad_output,
            input_ptr=input,
            grad_weight_ptr=parts.weight,
            grad_bias_ptr=parts.weight if parts.bias is None else parts.bias,  # not written without a bias
            height=input.shape[2],
            width=input.shape[3],
            out_height=size[0],
            out_width=size[1],
            filters=filters,
            rectangles=rectangles,
            rectangles_per_split=triton.cdiv(rectangles, splits),
            split_stride=parts.stride,
            grad_output_strides=grad_output.stride(),
            input_strides=input.stride(),
            grad_weight_strides=grad_weight.stride(),
            stride=window.stride,
            padding=window.padding,
            dilation=window.dilation,
            R=r,
            S=s,
            MULTIPLIER=filters // input.shape[1],
            BIAS=grad_bias is not None,
            INDEX=index,
            ROWS=block.rows,
            COLUMNS=block.columns,
            TAPS=taps,
            FILTERS=block.channels,
            RUN=depthwise_plan.contiguous_run(block, filters, grad_output, input),
            **tile.options(target),
        )
    ordered_sum.add_parts(parts, grad_weight, grad_bias)
