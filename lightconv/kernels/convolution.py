"""Convolution and its two gradients as matrix products over pixels, for any strides in memory.

    forward           output[pixel, filter]      = sum over taps and channels of  input  x weight
    input_gradient    grad_input[pixel, channel] = sum over taps and filters of   grad   x weight
    weight_gradient   grad_weight[filter, tap]   = sum over pixels of             grad   x input

Plain and right rather than fast. Every tensor is addressed through its four strides, so contiguous, channels_last,
sliced and expanded tensors take the same path. Products accumulate in float32 and are rounded once. Every sum has one
owner and a fixed order: no atomics, the same bits every time. Tap loops are nested: flattened and decoded by // and %
they have miscompiled (pytorch/pytorch#173068). Masked addresses are also clamped into the tensor: on sm_100 a masked
cp.async still dereferences its address (pytorch/pytorch#187081).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightconv.kernels.launch import (
    Outputs,
    dot_precision,
    in_float32_when_interpreted,
    index_type,
    on_device,
    window_at,
)

# rows, columns and depth of a product by bytes an element: of those tried, the largest that spill on no architecture
TILES = {2: (64, 64, 16), 4: (64, 32, 16)}
WEIGHT_TILES = {2: (64, 64, 32), 4: (64, 32, 16)}
_MIN_DOT = 16  # the smallest side of a tensor-core product
# left alone, ptxas spills a few registers to fit a second block; AMD's compiler does not know the option
OPTIONS = {"num_warps": 8} if torch.version.hip else {"num_warps": 8, "maxnreg": 255}


@triton.jit
def _forward_kernel(
    x, w, b, y,
    height, width, out_height, out_width, pixels, channels, filters,
    x_n, x_c, x_h, x_w, w_k, w_c, w_r, w_s, b_k, y_n, y_k, y_h, y_w,
    stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w,
    R: tl.constexpr, S: tl.constexpr, BIAS: tl.constexpr,
    INDEX: tl.constexpr, PRECISION: tl.constexpr,
    PIXELS: tl.constexpr, FILTERS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0).to(INDEX) * PIXELS + tl.arange(0, PIXELS)
    filter_blocks = tl.cdiv(filters, FILTERS)
    group = (tl.program_id(1) // filter_blocks).to(INDEX)
    k = (tl.program_id(1) % filter_blocks).to(INDEX) * FILTERS + tl.arange(0, FILTERS)
    pixel_in, k_in = pixel < pixels, k < filters
    pixel, k = tl.where(pixel_in, pixel, 0), group * filters + tl.where(k_in, k, 0)
    n = pixel // out_width // out_height
    oh = pixel // out_width % out_height
    ow = pixel % out_width

    accumulator = tl.zeros((PIXELS, FILTERS), tl.float32)
    for r in range(R):
        h = oh * stride_h - padding_h + r * dilation_h
        row_in = pixel_in & (h >= 0) & (h < height)
        x_row = n * x_n + tl.where(row_in, h, 0) * x_h
        for s in range(S):
            v = ow * stride_w - padding_w + s * dilation_w
            inside = row_in & (v >= 0) & (v < width)
            x_pixel = x_row + tl.where(inside, v, 0) * x_w
            w_tap = k * w_k + r * w_r + s * w_s
            for c0 in range(0, channels, CHANNELS):
                c = c0 + tl.arange(0, CHANNELS).to(INDEX)
                c_in = c < channels
                c = tl.where(c_in, c, 0)
                x_offset = x_pixel[:, None] + (group * channels + c)[None, :] * x_c
                x_tile = tl.load(x + x_offset, mask=inside[:, None] & c_in[None, :], other=0.0)
                w_tile = tl.load(w + c[:, None] * w_c + w_tap[None, :], mask=c_in[:, None] & k_in[None, :], other=0.0)
                accumulator = tl.dot(x_tile, w_tile, accumulator, input_precision=PRECISION)
    if BIAS:
        accumulator += tl.load(b + k * b_k, mask=k_in, other=0.0).to(tl.float32)[None, :]
    y_offset = (n * y_n + oh * y_h + ow * y_w)[:, None] + k[None, :] * y_k
    tl.store(y + y_offset, accumulator.to(y.dtype.element_ty), mask=pixel_in[:, None] & k_in[None, :])


@triton.jit
def _input_gradient_kernel(
    g, w, dx,
    height, width, out_height, out_width, pixels, channels, filters,
    g_n, g_k, g_h, g_w, w_k, w_c, w_r, w_s, x_n, x_c, x_h, x_w,
    stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w,
    R: tl.constexpr, S: tl.constexpr,
    INDEX: tl.constexpr, PRECISION: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, FILTERS: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0).to(INDEX) * PIXELS + tl.arange(0, PIXELS)
    channel_blocks = tl.cdiv(channels, CHANNELS)
    group = (tl.program_id(1) // channel_blocks).to(INDEX)
    c = (tl.program_id(1) % channel_blocks).to(INDEX) * CHANNELS + tl.arange(0, CHANNELS)
    pixel_in, c_in = pixel < pixels, c < channels
    pixel, c = tl.where(pixel_in, pixel, 0), tl.where(c_in, c, 0)
    n = pixel // width // height
    h = pixel // width % height
    v = pixel % width

    accumulator = tl.zeros((PIXELS, CHANNELS), tl.float32)
    # the output pixel that saw this input pixel through tap (r, s), where the stride left one
    for r in range(R):
        oh, row_seen = window_at(h + padding_h - r * dilation_h, stride_h, out_height, pixel_in)
        g_row = n * g_n + oh * g_h
        for s in range(S):
            ow, seen = window_at(v + padding_w - s * dilation_w, stride_w, out_width, row_seen)
            g_pixel = g_row + ow * g_w
            w_tap = c * w_c + r * w_r + s * w_s
            for k0 in range(0, filters, FILTERS):
                k = k0 + tl.arange(0, FILTERS).to(INDEX)
                k_in = k < filters
                k = group * filters + tl.where(k_in, k, 0)
                g_tile = tl.load(g + g_pixel[:, None] + k[None, :] * g_k, mask=seen[:, None] & k_in[None, :], other=0.0)
                w_tile = tl.load(w + k[:, None] * w_k + w_tap[None, :], mask=k_in[:, None] & c_in[None, :], other=0.0)
                accumulator = tl.dot(g_tile, w_tile, accumulator, input_precision=PRECISION)
    x_offset = (n * x_n + h * x_h + v * x_w)[:, None] + (group * channels + c)[None, :] * x_c
    tl.store(dx + x_offset, accumulator.to(dx.dtype.element_ty), mask=pixel_in[:, None] & c_in[None, :])


@triton.jit
def _weight_gradient_kernel(
    g, x, dw, db,
    images, height, width, out_height, out_width, channels, filters,
    g_n, g_k, g_h, g_w, x_n, x_c, x_h, x_w, w_k, w_c, w_r, w_s,
    stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w,
    R: tl.constexpr, S: tl.constexpr, BIAS: tl.constexpr,
    INDEX: tl.constexpr, PRECISION: tl.constexpr,
    FILTERS: tl.constexpr, TAPS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    filter_blocks = tl.cdiv(filters, FILTERS)
    group = (tl.program_id(1) // filter_blocks).to(INDEX)
    k = (tl.program_id(1) % filter_blocks).to(INDEX) * FILTERS + tl.arange(0, FILTERS)
    tap = tl.program_id(0).to(INDEX) * TAPS + tl.arange(0, TAPS)
    k_in, tap_in = k < filters, tap < channels * R * S
    k, tap = group * filters + tl.where(k_in, k, 0), tl.where(tap_in, tap, 0)
    c = tap // (R * S)
    r = tap // S % R
    s = tap % S

    accumulator = tl.zeros((FILTERS, TAPS), tl.float32)
    bias = tl.zeros((FILTERS,), tl.float32)
    plane = (tl.full((), 0, INDEX) + out_height) * out_width
    for image in range(images):
        n = tl.full((), 0, INDEX) + image
        for p0 in range(0, plane, PIXELS):
            p = p0 + tl.arange(0, PIXELS).to(INDEX)
            p_in = p < plane
            p = tl.where(p_in, p, 0)
            oh, ow = p // out_width, p % out_width
            h = (oh * stride_h - padding_h)[:, None] + (r * dilation_h)[None, :]
            v = (ow * stride_w - padding_w)[:, None] + (s * dilation_w)[None, :]
            inside = p_in[:, None] & tap_in[None, :] & (h >= 0) & (h < height) & (v >= 0) & (v < width)
            x_offset = n * x_n + tl.where(inside, h, 0) * x_h + tl.where(inside, v, 0) * x_w
            x_tile = tl.load(x + x_offset + ((group * channels + c) * x_c)[None, :], mask=inside, other=0.0)
            g_offset = (n * g_n + oh * g_h + ow * g_w)[None, :] + (k * g_k)[:, None]
            g_tile = tl.load(g + g_offset, mask=k_in[:, None] & p_in[None, :], other=0.0)
            accumulator = tl.dot(g_tile, x_tile, accumulator, input_precision=PRECISION)
            if BIAS:
                bias += tl.sum(g_tile.to(tl.float32), 1)
    w_offset = (k * w_k)[:, None] + (c * w_c + r * w_r + s * w_s)[None, :]
    tl.store(dw + w_offset, accumulator.to(dw.dtype.element_ty), mask=k_in[:, None] & tap_in[None, :])
    if BIAS:  # every block of taps has seen the whole gradient: the first one writes its sum
        tl.store(db + k, bias.to(db.dtype.element_ty), mask=k_in & (tl.program_id(0) == 0))


def _fitted(tile: tuple[int, int, int], *sizes: int) -> list[int]:
    # no larger than the product itself, if that is small
    return [max(_MIN_DOT, min(most, triton.next_power_of_2(size))) for most, size in zip(tile, sizes, strict=True)]


@in_float32_when_interpreted
def forward(
    outputs: Outputs,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> None:
    """Write conv2d(input, weight, bias) into outputs[0], whatever its memory format."""
    (output,) = outputs
    images, _, height, width = input.shape
    filters, channels, r, s = weight.shape
    filters //= groups
    pixels = images * output.shape[2] * output.shape[3]
    tile = _fitted(TILES[input.element_size()], pixels, filters, channels)
    grid = (triton.cdiv(pixels, tile[0]), triton.cdiv(filters, tile[1]) * groups)
    with on_device(input):
        _forward_kernel[grid](
            input, weight, bias, output,
            height, width, *output.shape[2:], pixels, channels, filters,
            *input.stride(), *weight.stride(), 0 if bias is None else bias.stride(0), *output.stride(),
            *stride, *padding, *dilation,
            r, s, bias is not None, index_type(input, weight, output), dot_precision(output.dtype), *tile, **OPTIONS,
        )  # fmt: skip


@in_float32_when_interpreted
def input_gradient(
    outputs: Outputs,
    grad_output: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> None:
    """Write the gradient with respect to conv2d's input into outputs[0]."""
    (grad_input,) = outputs
    images, _, height, width = grad_input.shape
    filters, channels, r, s = weight.shape
    filters //= groups
    pixels = images * height * width
    tile = _fitted(TILES[weight.element_size()], pixels, channels, filters)
    grid = (triton.cdiv(pixels, tile[0]), triton.cdiv(channels, tile[1]) * groups)
    with on_device(grad_output):
        _input_gradient_kernel[grid](
            grad_output, weight, grad_input,
            height, width, *grad_output.shape[2:], pixels, channels, filters,
            *grad_output.stride(), *weight.stride(), *grad_input.stride(), *stride, *padding, *dilation,
            r, s, index_type(grad_output, weight, grad_input), dot_precision(weight.dtype), *tile, **OPTIONS,
        )  # fmt: skip


@in_float32_when_interpreted
def weight_gradient(
    outputs: Outputs,
    grad_output: Tensor,
    input: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> None:
    """Write the gradients with respect to conv2d's weight and, unless outputs[1] is empty, its bias."""
    grad_weight, grad_bias = outputs
    images, _, height, width = input.shape
    filters, channels, r, s = grad_weight.shape
    filters //= groups
    taps = channels * r * s
    depth = grad_output.shape[2] * grad_output.shape[3]
    tile = _fitted(WEIGHT_TILES[input.element_size()], filters, taps, depth)
    grid = (triton.cdiv(taps, tile[1]), triton.cdiv(filters, tile[0]) * groups)
    with on_device(input):
        _weight_gradient_kernel[grid](
            grad_output, input, grad_weight, grad_bias,
            images, height, width, *grad_output.shape[2:], channels, filters,
            *grad_output.stride(), *input.stride(), *grad_weight.stride(), *stride, *padding, *dilation,
            r, s, grad_bias.numel() > 0, index_type(grad_output, input, grad_weight), dot_precision(input.dtype), *tile,
            **OPTIONS,
        )  # fmt: skip
