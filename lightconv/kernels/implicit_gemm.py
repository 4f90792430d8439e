"""Convolution and its input gradient as one matrix product over pixels; the matrix of patches is never written.

    forward          output[pixel, k]     = act(sum over taps and c of  input[pixel * stride + tap, c] x weight + bias)
    with pooling     output[window, k]    = act(max over the window's pixels of the same), and its argmax, one byte
    input_gradient   grad_input[pixel, c] = sum over taps and k of  grad_output[(pixel - tap) / stride, k] x weight

The gradient is the forward product with the mirrored, transposed weight. A stride splits it into stride_h * stride_w
phases. Pixels of a phase meet the same taps, so each phase is a dense product; all are computed in one launch. A phase
without a tap writes zeros. After a pooling, grad_output is the gradient of the pooled map, and argmax says which pixel
of each window it belongs to: the loader un-pools it, and the map before pooling is never stored.

Three loaders feed the same product:

    descriptors   tensor descriptors (TMA): rows are a rectangle of one image, and the hardware's zero fill is the
                  padding. Images that are not channels_last are copied once, which costs less than reading them per tap
    pointers      clamped and masked pointers, for any strides: rows are a run of pixels
    flattened     pointers, with taps and channels in one short loop, for few channels

Products accumulate in float32 and are rounded once. Every sum has one owner and a fixed order, so results have the same
bits every time. Tile tables and plans: `lightconv.kernels.implicit_gemm_plan`. Names: `lightconv.kernels`.
"""

import math
from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from lightconv.kernels.implicit_gemm_plan import (
    Plan,
    Product,
    build_plan,
    count_blocks,
    forward_product,
    input_gradient_product,
    padding_of,
    select_plan,
    size_of,
    tap_step_of,
)
from lightconv.kernels.jit_helpers import (
    KILLED,
    activate,
    block_columns,
    max_with_argmax,
    patch_corner,
    pixel_coordinates,
    round_to_output,
    unpool,
)
from lightconv.kernels.launch import (
    Outputs,
    architecture,
    dot_precision,
    in_float32_when_interpreted,
    index_type,
    on_device,
)
from lightconv.kernels.tiles import Tile, arithmetic, nearest_architecture
from lightconv.kernels.window import Pair, Window

Activation = Literal["identity", "relu", "leaky_relu", "tanh", "sigmoid"]


@triton.jit
def _described_product(
    input_descriptor, weight_descriptor, block, group, filter_block, size, channels, filters, padding,
    R: tl.constexpr, S: tl.constexpr, GRADIENT: tl.constexpr, PRECISION: tl.constexpr,
    PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Sum over the taps of a rectangle of one image, which descriptors load whole.

    The descriptors' tensors are (n, h, w, c) and (k, taps, c). A gradient meets the taps in reverse order.
    """
    image, top, left = patch_corner(block, size, PATCH_H, PATCH_W)
    accumulator = tl.zeros((PATCH_H * PATCH_W, COLUMNS), tl.float32)
    for r in range(R):
        for s in range(S):
            tap = (R - 1 - r) * S + S - 1 - s if GRADIENT else r * S + s
            for c0 in range(0, channels, DEPTH):
                first_channel = group * channels + c0
                # (1, PATCH_H, PATCH_W, DEPTH); pixels outside the image are filled with zeros
                input_tile = input_descriptor.load(
                    [image, top + r - padding[0], left + s - padding[1], first_channel]
                )  # fmt: skip
                if GRADIENT:
                    # (DEPTH, 1, COLUMNS) -> (DEPTH, COLUMNS)
                    weight_tile = weight_descriptor.load([first_channel, tap, filter_block * COLUMNS])
                    weight_tile = weight_tile.reshape(DEPTH, COLUMNS)
                else:
                    # (COLUMNS, 1, DEPTH) -> (COLUMNS, DEPTH) -> (DEPTH, COLUMNS)
                    weight_tile = weight_descriptor.load([group * filters + filter_block * COLUMNS, tap, c0])
                    weight_tile = weight_tile.reshape(COLUMNS, DEPTH).trans()
                input_tile = input_tile.reshape(PATCH_H * PATCH_W, DEPTH)
                # (pixels, DEPTH) x (DEPTH, COLUMNS)
                accumulator = tl.dot(input_tile, weight_tile, accumulator, input_precision=PRECISION)
    return accumulator


@triton.jit
def _flattened_product(
    input_ptr, input_strides, input_size, weight_ptr, weight_strides,
    n, i, j, row_in, first_channel, k, k_in, stride, padding, dilation,
    R: tl.constexpr, S: tl.constexpr, CHANNELS: tl.constexpr, INDEX: tl.constexpr, PRECISION: tl.constexpr,
    DEPTH: tl.constexpr,
):  # fmt: skip
    """Sum over taps and channels in one short loop, in which every column has a tap of its own.

    The number of channels is a constexpr, because columns are divided by it.
    """
    accumulator = tl.zeros((row_in.shape[0], k.shape[0]), tl.float32)
    # Hazard: a pipelined loop that decodes taps by // and % in front of masked loads has miscompiled: 84.7 % wrong
    # elements at 8 warps (pytorch/pytorch#173068), on H100 also at 4 (pytorch/pytorch#189660). So this loop is not
    # pipelined (num_stages=1), and the other loaders nest their tap loops.
    for t0 in tl.range(0, R * S * CHANNELS, DEPTH, num_stages=1):
        t, t_in = block_columns(t0, R * S * CHANNELS, DEPTH, False, INDEX)
        c, r, s = t % CHANNELS, t // CHANNELS // S, t // CHANNELS % S
        # (rows, DEPTH): each element of the matrix of patches
        h = (i * stride[0] - padding[0])[:, None] + (r * dilation[0])[None, :]
        w = (j * stride[1] - padding[1])[:, None] + (s * dilation[1])[None, :]
        inside = row_in[:, None] & t_in[None, :] & (h >= 0) & (h < input_size[0]) & (w >= 0) & (w < input_size[1])
        # Hazard: on sm_100 a masked copy still dereferences its address (pytorch/pytorch#187081, #187222), so
        # coordinates are clamped into the tensor as well as masked, here and in every kernel.
        h, w = tl.where(inside, h, 0), tl.where(inside, w, 0)
        input_offset = (n * input_strides[0])[:, None] + h * input_strides[2] + w * input_strides[3]
        input_ptrs = input_ptr + input_offset + ((first_channel + c) * input_strides[1])[None, :]
        input_tile = tl.load(input_ptrs, mask=inside, other=0.0)
        tap_offset = c * weight_strides[1] + r * weight_strides[2] + s * weight_strides[3]
        weight_offset = tap_offset[:, None] + (k * weight_strides[0])[None, :]
        weight_tile = tl.load(weight_ptr + weight_offset, mask=t_in[:, None] & k_in[None, :], other=0.0)
        # (rows, DEPTH) x (DEPTH, COLUMNS)
        accumulator = tl.dot(input_tile, weight_tile, accumulator, input_precision=PRECISION)
    return accumulator


@triton.jit
def _first_tap(start, stride, dilation, TAPS: tl.constexpr):
    """Return the first tap from this padded coordinate to an output of the stride; TAPS if there is none."""
    first = tl.full((), TAPS, tl.int32)
    for back in range(TAPS):
        tap = TAPS - 1 - back
        first = tl.where((start - tap * dilation) % stride == 0, tap, first)
    return first


@triton.jit
def _input_coordinate(index, tap, start, stride, padding, dilation, GRADIENT: tl.constexpr):
    """Return the row or column of the input that an output meets at a tap. A phase has only taps that divide."""
    behind, ahead = (start - tap * dilation) // stride, tap * dilation - padding
    return index + behind if GRADIENT else index * stride + ahead


@triton.jit
def _gathered_product(
    input_ptr, input_strides, input_size, argmax_ptr, argmax_strides, weight_ptr, weight_strides,
    n, i, j, row_in, first_channel, channels, k, k_in, phase_h, phase_w, stride, padding, dilation, tap_step,
    R: tl.constexpr, S: tl.constexpr, GRADIENT: tl.constexpr, POOLED: tl.constexpr,
    POOL_H: tl.constexpr, POOL_W: tl.constexpr, EVEN_CHANNELS: tl.constexpr,
    INDEX: tl.constexpr, PRECISION: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Sum over the taps of a run of pixels through clamped and masked pointers; un-pool a POOLED gradient."""
    start_h, start_w = phase_h + padding[0], phase_w + padding[1]
    if GRADIENT:
        first_r = _first_tap(start_h, stride[0], dilation[0], R)
        first_s = _first_tap(start_w, stride[1], dilation[1], S)
    else:
        first_r, first_s = 0, 0
    accumulator = tl.zeros((row_in.shape[0], k.shape[0]), tl.float32)
    for r in range(first_r, R, tap_step[0]):
        h = _input_coordinate(i, r, start_h, stride[0], padding[0], dilation[0], GRADIENT)
        h_in = row_in & (h >= 0) & (h < input_size[0])
        h = tl.where(h_in, h, 0)
        for s in range(first_s, S, tap_step[1]):
            w = _input_coordinate(j, s, start_w, stride[1], padding[1], dilation[1], GRADIENT)
            inside = h_in & (w >= 0) & (w < input_size[1])
            w = tl.where(inside, w, 0)
            tap_offset = k * weight_strides[0] + r * weight_strides[2] + s * weight_strides[3]
            # a pixel of the map before pooling: its position in its window, and the window's row and column
            position = h % POOL_H * POOL_W + w % POOL_W
            row, column = h // POOL_H, w // POOL_W
            input_pixel = n * input_strides[0] + row * input_strides[2] + column * input_strides[3]
            argmax_pixel = n * argmax_strides[0] + row * argmax_strides[2] + column * argmax_strides[3]
            for c0 in range(0, channels, DEPTH):
                c, c_in = block_columns(c0, channels, DEPTH, EVEN_CHANNELS, INDEX)
                # (rows,) and (DEPTH,) -> (rows, DEPTH)
                input_in = inside[:, None] & c_in[None, :]
                input_offset = input_pixel[:, None] + ((first_channel + c) * input_strides[1])[None, :]
                input_tile = tl.load(input_ptr + input_offset, mask=input_in, other=0.0)
                if POOLED:
                    argmax_offset = argmax_pixel[:, None] + ((first_channel + c) * argmax_strides[1])[None, :]
                    input_tile = unpool(input_tile, argmax_ptr + argmax_offset, input_in, position[:, None])
                weight_offset = (c * weight_strides[1])[:, None] + tap_offset[None, :]
                weight_tile = tl.load(weight_ptr + weight_offset, mask=c_in[:, None] & k_in[None, :], other=0.0)
                # (rows, DEPTH) x (DEPTH, COLUMNS)
                accumulator = tl.dot(input_tile, weight_tile, accumulator, input_precision=PRECISION)
    return accumulator


@triton.jit
def _store_argmax(argmax_ptr, argmax_strides, value, winner, n, i, j, k, inside, ACTIVATION: tl.constexpr):
    """Store each maximum's position in its window, or `argmax.KILLED` if ReLU stops its gradient."""
    if ACTIVATION == "relu":
        winner = tl.where(value <= 0, KILLED, winner)
    argmax_pixel = n * argmax_strides[0] + i * argmax_strides[2] + j * argmax_strides[3]
    argmax_ptrs = argmax_ptr + argmax_pixel[:, None] + (k * argmax_strides[1])[None, :]
    tl.store(argmax_ptrs, winner.to(tl.uint8), mask=inside)


@triton.jit
def _kernel(
    input_ptr, input_strides, input_size, argmax_ptr, argmax_strides,
    weight_ptr, weight_strides, weight_group_stride, bias_ptr, bias_stride,
    output_ptr, output_strides, output_size, output_argmax_ptr, output_argmax_strides,
    input_descriptor, weight_descriptor,
    images, size, channels, filters, stride, padding, dilation, tap_step, blocks, phases,
    R: tl.constexpr, S: tl.constexpr, FLATTENED_CHANNELS: tl.constexpr, LOADER: tl.constexpr,
    GRADIENT: tl.constexpr, POOLED: tl.constexpr,
    POOL_H: tl.constexpr, POOL_W: tl.constexpr, POSITIONS: tl.constexpr,
    BIAS: tl.constexpr, ACTIVATION: tl.constexpr, STORE_ARGMAX: tl.constexpr, BFLOAT16: tl.constexpr,
    EVEN_CHANNELS: tl.constexpr, EVEN_FILTERS: tl.constexpr, INDEX: tl.constexpr, PRECISION: tl.constexpr,
    PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    # Blocks that share pixels follow each other: the input comes from memory once, and the weight stays in the cache.
    filter_block, block = tl.program_id(0) % blocks[0], tl.program_id(0) // blocks[0] % blocks[1]
    group = tl.program_id(0) // blocks[0] // blocks[1] % blocks[2]
    phase = tl.program_id(0) // blocks[0] // blocks[1] // blocks[2]
    phase_h, phase_w = phase // phases[1], phase % phases[1]
    k, k_in = block_columns(filter_block * COLUMNS, filters, COLUMNS, EVEN_FILTERS, INDEX)
    first_channel = group.to(INDEX) * channels
    WINDOWS: tl.constexpr = ROWS // POSITIONS
    n, i, j, window_in = pixel_coordinates(tl.arange(0, WINDOWS), block, images, size, WINDOWS, PATCH_W, INDEX)

    if LOADER == "descriptors":
        value = _described_product(
            input_descriptor, weight_descriptor, block, group, filter_block, (size[0] * POOL_H, size[1] * POOL_W),
            channels, filters, padding,
            R, S, GRADIENT, PRECISION, PATCH_H * POOL_H, PATCH_W * POOL_W, COLUMNS, DEPTH,
        )  # fmt: skip
    else:
        # the pixels of a pooling window are consecutive rows, filled up to a power of two
        row = tl.arange(0, ROWS)
        row_n, row_i, row_j, row_in = pixel_coordinates(row // POSITIONS, block, images, size, WINDOWS, 0, INDEX)
        if POSITIONS > 1:
            position = row % POSITIONS
            row_in &= position < POOL_H * POOL_W
            row_i, row_j = row_i * POOL_H + position // POOL_W, row_j * POOL_W + position % POOL_W
        weight_ptr += group.to(INDEX) * weight_group_stride
        if LOADER == "flattened":
            value = _flattened_product(
                input_ptr, input_strides, input_size, weight_ptr, weight_strides,
                row_n, row_i, row_j, row_in, first_channel, k, k_in, stride, padding, dilation,
                R, S, FLATTENED_CHANNELS, INDEX, PRECISION, DEPTH,
            )  # fmt: skip
        else:
            value = _gathered_product(
                input_ptr, input_strides, input_size, argmax_ptr, argmax_strides, weight_ptr, weight_strides,
                row_n, row_i, row_j, row_in, first_channel, channels, k, k_in, phase_h, phase_w,
                stride, padding, dilation, tap_step,
                R, S, GRADIENT, POOLED, POOL_H if POOLED else 1, POOL_W if POOLED else 1,
                EVEN_CHANNELS, INDEX, PRECISION, DEPTH,
            )  # fmt: skip

    k += group.to(INDEX) * filters
    if BIAS:
        value += tl.load(bias_ptr + k * bias_stride, mask=k_in, other=0.0).to(tl.float32)[None, :]
    value = round_to_output(value, output_ptr, BFLOAT16)
    if LOADER == "descriptors" and POSITIONS > 1:
        # rows of a rectangle -> rows in the order of windows:
        # (PATCH_H, POOL_H, PATCH_W, POOL_W, COLUMNS) -> (PATCH_H, PATCH_W, POOL_H, POOL_W, COLUMNS)
        value = value.reshape(PATCH_H, POOL_H, PATCH_W, POOL_W, COLUMNS).permute(0, 2, 1, 3, 4).reshape(ROWS, COLUMNS)
    if POSITIONS > 1:
        value, winner = max_with_argmax(value, POOL_H * POOL_W, POSITIONS)  # (ROWS, COLUMNS) -> (WINDOWS, COLUMNS)
    else:
        winner = tl.zeros((ROWS, COLUMNS), tl.int32)
    if GRADIENT:
        # a phase's pixels lie a stride apart, and the last may lie outside the image
        i, j = i * stride[0] + phase_h, j * stride[1] + phase_w
        window_in &= (i < output_size[0]) & (j < output_size[1])
        i, j = tl.where(window_in, i, 0), tl.where(window_in, j, 0)
    output_in = window_in[:, None] & k_in[None, :]
    output_pixel = n * output_strides[0] + i * output_strides[2] + j * output_strides[3]
    output_ptrs = output_ptr + (output_pixel[:, None] + (k * output_strides[1])[None, :])
    # activations do not decrease, so they commute with the maximum and are applied to fewer values after it
    activated = activate(value.to(tl.float32), ACTIVATION)
    tl.store(output_ptrs, activated.to(output_ptr.dtype.element_ty), mask=output_in)
    if STORE_ARGMAX:
        _store_argmax(output_argmax_ptr, output_argmax_strides, value, winner, n, i, j, k, output_in, ACTIVATION)


def forward(
    outputs: Outputs,
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    window: Window,
    groups: int,
    activation: Activation = "identity",
    pool: Pair = (1, 1),
    tile: Tile | None = None,
) -> None:
    """Write max_pool2d(activation(conv2d(images, weight, bias)), pool) to outputs[0], in any memory format.

    Args:
        outputs: result, (n, k, i, j), and optionally the argmax of its elements, uint8: `lightconv.kernels.argmax`.
        images: images, (n, c, h, w).
        weight: filters, (k, c, r, s).
        bias: one value per filter, or None.
        window: stride, padding and dilation.
        groups: groups of channels and filters.
        activation: function applied to every element of the result.
        pool: height and width of the pooling window, which is also its stride.
        tile: tile to use instead of the plan's.
    """
    _launch(
        outputs,
        images,
        None,
        weight,
        bias,
        window=window,
        groups=groups,
        gradient=False,
        activation=activation,
        pool=pool,
        # asked here, before the interpreter's tensors are widened to float32
        is_bfloat16=outputs[0].dtype is torch.bfloat16,
        tile=tile,
    )


def input_gradient(
    outputs: Outputs,
    grad_output: Tensor,
    argmax: Tensor | None,
    weight: Tensor,
    *,
    window: Window,
    groups: int,
    pool: Pair = (1, 1),
    tile: Tile | None = None,
) -> None:
    """Write the gradient with respect to the convolution's input to outputs[0], in any memory format.

    Args:
        outputs: gradient, (n, c, h, w).
        grad_output: gradient of the convolution's result; with an argmax, of the pooled map before its activation.
        argmax: bytes that `forward` wrote, or None without pooling and ReLU.
        weight: filters, (k, c, r, s).
        window: stride, padding and dilation.
        groups: groups of channels and filters.
        pool: height and width of the pooling window; ignored without an argmax.
        tile: tile to use instead of the plan's.
    """
    _launch(
        outputs,
        grad_output,
        argmax,
        weight,
        None,
        window=window,
        groups=groups,
        gradient=True,
        pool=pool,
        tile=tile,
    )


@in_float32_when_interpreted
def _launch(
    outputs: Outputs,
    input: Tensor,
    argmax: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    *,
    window: Window,
    groups: int,
    gradient: bool,
    activation: Activation = "identity",
    pool: Pair,
    is_bfloat16: bool = False,
    tile: Tile | None,
) -> None:
    """Launch the kernel; `input` and `outputs` are the product's, so a gradient's are grad_output and grad_input."""
    output = outputs[0]
    output_argmax = outputs[1] if len(outputs) > 1 else None
    pooled = argmax is not None
    if gradient:
        product = input_gradient_product(output, input, weight, window=window, groups=groups, pooled=pooled)
    else:
        product = forward_product(input, weight, size_of(output), window=window, groups=groups, pool=pool)
    target = nearest_architecture(architecture(input))
    precision = dot_precision(input.dtype, target)
    kind = arithmetic(input.dtype, precision)
    index = index_type(*(t for t in (input, argmax, weight, bias, output, output_argmax) if t is not None))
    wide = index is tl.int64
    if tile is None:
        plan = select_plan(input, product, target, kind, wide=wide, pooled=pooled)
    else:
        plan = build_plan(product, target, kind, wide=wide, tile=tile)
    rows, columns, depth, *_ = plan.tile
    input_size = size_of(input)
    pool_h, pool_w = product.pool
    if pooled:
        # the map before pooling, although only the pooled gradient is stored
        pool_h, pool_w = pool
        input_size = (input_size[0] * pool_h, input_size[1] * pool_w)
    blocks = count_blocks(plan, product)
    k_stride, c_stride, r_stride, s_stride = weight.stride()
    weight_strides = (k_stride, c_stride, r_stride, s_stride)  # (produced, summed, r, s)
    if gradient:
        weight_strides = (c_stride, k_stride, r_stride, s_stride)
    input_descriptor = weight_descriptor = None
    if plan.loader == "descriptors":
        input_descriptor, weight_descriptor = describe_operands(input, weight, plan, product)
    with on_device(input):
        _kernel[(math.prod(blocks) * math.prod(product.phases),)](
            input_ptr=input, input_strides=input.stride(), input_size=input_size,
            argmax_ptr=argmax, argmax_strides=strides_of(argmax),
            weight_ptr=weight, weight_strides=weight_strides,
            weight_group_stride=weight.stride(0) * weight.shape[0] // groups,
            bias_ptr=bias, bias_stride=strides_of(bias)[0],
            output_ptr=output, output_strides=output.stride(), output_size=size_of(output),
            output_argmax_ptr=output_argmax, output_argmax_strides=strides_of(output_argmax),
            input_descriptor=input_descriptor, weight_descriptor=weight_descriptor,
            images=product.images, size=product.size, channels=product.channels, filters=product.filters,
            stride=window.stride, padding=padding_of(window, plan, product), dilation=window.dilation,
            tap_step=tap_step_of(window, product), blocks=blocks, phases=product.phases,
            R=product.taps[0], S=product.taps[1],
            FLATTENED_CHANNELS=product.channels if plan.loader == "flattened" else 0, LOADER=plan.loader,
            GRADIENT=gradient, POOLED=pooled, POOL_H=pool_h, POOL_W=pool_w, POSITIONS=product.positions,
            BIAS=bias is not None, ACTIVATION=activation, STORE_ARGMAX=output_argmax is not None, BFLOAT16=is_bfloat16,
            EVEN_CHANNELS=product.channels % depth == 0, EVEN_FILTERS=product.filters % columns == 0,
            INDEX=index, PRECISION=precision, PATCH_H=plan.patch[0], PATCH_W=plan.patch[1],
            ROWS=rows, COLUMNS=columns, DEPTH=depth, **plan.tile.options(target),
        )  # fmt: skip


def describe_operands(
    input: Tensor, weight: Tensor, plan: Plan, product: Product
) -> tuple[TensorDescriptor, TensorDescriptor]:
    """Return descriptors of the input as (n, h, w, c) and of the weight as (k, taps, c)."""
    columns, depth = plan.tile.columns, plan.tile.depth
    input_box = [1, plan.patch[0] * product.pool[0], plan.patch[1] * product.pool[1], depth]
    weight_box = [columns, 1, depth]
    if product.gradient:
        weight_box = [depth, 1, columns]
    taps = _as_descriptors_want(weight).flatten(1, 2)  # (k, r, s, c) -> (k, taps, c)
    return (
        TensorDescriptor.from_tensor(_as_descriptors_want(input), input_box),
        TensorDescriptor.from_tensor(taps, weight_box),
    )


def _as_descriptors_want(image: Tensor) -> Tensor:
    """Return the image as (n, h, w, c), dense and aligned to 16 bytes: a copy if it is not."""
    image = image.contiguous(memory_format=torch.channels_last)
    if image.data_ptr() % 16:
        image = image.clone()
    n, c, h, w = image.shape
    # strides along a side of length 1 may be anything, and a descriptor must not see that
    return image.as_strided((n, h, w, c), (h * w * c, w * c, c, 1))


def strides_of(tensor: Tensor | None) -> tuple[int, ...]:
    """Return a tensor's strides, or zeros in place of a missing image's."""
    if tensor is None:
        return (0, 0, 0, 0)
    return tensor.stride()
