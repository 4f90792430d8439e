"""Gradients with respect to a convolution's weight and bias, as one product over all pixels.

    grad_weight[k, tap, c] = sum over n and pixels of  grad_output[pixel, k] x input[pixel * stride + tap, c]
    grad_bias[k]           = sum over n and pixels of  grad_output[pixel, k]

The sum is long and the result is small. So the sum is split over blocks: each writes its part to a float32 workspace,
and a second kernel adds the parts in order (`lightconv.kernels.ordered_sum`). The sizes alone decide the number of
parts, and there are no atomics: the same bits every time. After a pooling, grad_output is the gradient of the pooled
map, and argmax says which pixel of each window it belongs to: the loader un-pools it.

A step of the loop takes a rectangle of pixels, so its rows and columns are found by counting instead of division. Few
channels are flattened with their taps into the columns of the product. Tile tables and plans:
`lightconv.kernels.weight_gradient_plan`. Names: `lightconv.kernels`.
"""

import math

import triton
import triton.language as tl
from torch import Tensor

from lightconv.kernels import autotune, ordered_sum
from lightconv.kernels.implicit_gemm import strides_of
from lightconv.kernels.jit_helpers import block_columns, unpool
from lightconv.kernels.launch import (
    architecture,
    dot_precision,
    in_float32_when_interpreted,
    index_type,
    on_device,
)
from lightconv.kernels.tiles import Tile, arithmetic, nearest_architecture
from lightconv.kernels.weight_gradient_plan import build_plan, candidate_plans
from lightconv.kernels.window import Pair, Window

BIAS_COLUMNS = tl.constexpr(16)  # columns of the product that sums the bias: the fewest of a matrix instruction


@triton.jit
def _first(one, other):
    """Return one of two equal numbers."""
    return one


@triton.jit
def _load_gradient(
    grad_output_ptr, grad_output_strides, argmax_ptr, argmax_strides, filter_offset, group, filters, k, n, i, j, inside,
    POOL_H: tl.constexpr, POOL_W: tl.constexpr, POOLED: tl.constexpr,
):  # fmt: skip
    """Load a (filters, pixels) tile of the convolution's gradient; un-pool a POOLED one."""
    grad_row = n * grad_output_strides[0] + i // POOL_H * grad_output_strides[2]
    grad_pixel = grad_row + j // POOL_W * grad_output_strides[3]
    grad_tile = tl.load(grad_output_ptr + filter_offset + grad_pixel[None, :], mask=inside, other=0.0)
    if POOLED:
        argmax_row = n * argmax_strides[0] + i // POOL_H * argmax_strides[2]
        argmax_pixel = argmax_row + j // POOL_W * argmax_strides[3]
        argmax_offset = ((group * filters + k) * argmax_strides[1])[:, None] + argmax_pixel[None, :]
        argmax_ptrs = argmax_ptr + argmax_offset
        position = (i % POOL_H * POOL_W + j % POOL_W)[None, :]
        grad_tile = unpool(grad_tile, argmax_ptrs, inside, position)
    return grad_tile


@triton.jit
def _store_weight(weight_ptr, weight_strides, value, group, group_stride, k, k_in, c, c_in, r, s):
    """Store a (filters, columns) tile of the weight's gradient."""
    tap_offset = r * weight_strides[2] + s * weight_strides[3]
    row_offset = group * group_stride + (k * weight_strides[0])[:, None]
    weight_offset = row_offset + (c * weight_strides[1])[None, :] + tap_offset
    inside = k_in[:, None] & c_in[None, :]
    tl.store(weight_ptr + weight_offset, value.to(weight_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _kernel(
    grad_output_ptr, grad_output_strides, argmax_ptr, argmax_strides, input_ptr, input_strides, input_size,
    grad_weight_ptr, grad_weight_strides, grad_weight_group_stride, grad_bias_ptr, split_stride,
    images, size, channels, filters, stride, padding, dilation, blocks, units,
    R: tl.constexpr, S: tl.constexpr, POOL_H: tl.constexpr, POOL_W: tl.constexpr, POOLED: tl.constexpr,
    FLATTENED_CHANNELS: tl.constexpr, BIAS: tl.constexpr, EVEN_FILTERS: tl.constexpr, EVEN_CHANNELS: tl.constexpr,
    INDEX: tl.constexpr, PRECISION: tl.constexpr,
    PATCH_W: tl.constexpr, FILTERS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    # blocks that read the same pixels follow each other
    column_block = tl.program_id(0) % blocks[0]
    filter_block = tl.program_id(0) // blocks[0] % blocks[1]
    group = (tl.program_id(0) // blocks[0] // blocks[1] % blocks[2]).to(INDEX)
    split = tl.program_id(0) // blocks[0] // blocks[1] // blocks[2]
    k, k_in = block_columns(filter_block * FILTERS, filters, FILTERS, EVEN_FILTERS, INDEX)
    if FLATTENED_CHANNELS:
        # every column has a channel and a tap of its own: r and s are (1, COLUMNS)
        t, c_in = block_columns(column_block * COLUMNS, R * S * FLATTENED_CHANNELS, COLUMNS, False, INDEX)
        c = t % FLATTENED_CHANNELS
        r = (t // FLATTENED_CHANNELS // S)[None, :]
        s = (t // FLATTENED_CHANNELS % S)[None, :]
    else:
        # all columns have the same tap: r and s are scalars
        channel_blocks = tl.cdiv(channels, COLUMNS)
        tap = column_block // channel_blocks
        c, c_in = block_columns(column_block % channel_blocks * COLUMNS, channels, COLUMNS, EVEN_CHANNELS, INDEX)
        r, s = tap // S, tap % S
    filter_offset = ((group * filters + k) * grad_output_strides[1])[:, None]
    channel_offset = ((group * channels + c) * input_strides[1])[None, :]

    PATCH_H: tl.constexpr = DEPTH // PATCH_W
    down = tl.cdiv(size[0], PATCH_H)
    pixel = tl.arange(0, DEPTH)
    accumulator = tl.zeros((FILTERS, COLUMNS), tl.float32)
    # Hazard: the bias gradient is grad_output @ ones. In half precision it is computed by BIAS_COLUMNS more columns of
    # the product, which is exact. In TF32 the product would round grad_output before the sum, which torch does not. So
    # float32 is summed separately: each element per pixel of a step, then over the DEPTH pixels at the end.
    HALF: tl.constexpr = grad_output_ptr.dtype.element_ty != tl.float32
    bias = tl.zeros((FILTERS, BIAS_COLUMNS if HALF else DEPTH), tl.float32)
    first = split * units
    for unit in range(first, tl.minimum(first + units, images * down)):
        n = tl.full((), 0, INDEX) + unit // down
        i = unit % down * PATCH_H + pixel // PATCH_W
        i_in = i < size[0]
        i = tl.where(i_in, i, 0).to(INDEX)
        # (DEPTH, 1) for one tap, (DEPTH, COLUMNS) for flattened taps; the mask is (DEPTH, COLUMNS)
        h = (i * stride[0] - padding[0])[:, None] + r * dilation[0]
        h_in = i_in[:, None] & c_in[None, :] & (h >= 0) & (h < input_size[0])
        row_offset = n * input_strides[0] + tl.where(h_in, h, 0) * input_strides[2] + channel_offset
        for left in range(0, size[1], PATCH_W):
            j = left + pixel % PATCH_W
            pixel_in = i_in & (j < size[1])
            j = tl.where(pixel_in, j, 0).to(INDEX)
            w = (j * stride[1] - padding[1])[:, None] + s * dilation[1]
            # Hazard: on sm_100 a masked copy still dereferences its address (pytorch/pytorch#187081, #187222), so
            # coordinates are clamped into the tensor as well as masked.
            input_in = h_in & pixel_in[:, None] & (w >= 0) & (w < input_size[1])
            input_ptrs = input_ptr + row_offset + tl.where(input_in, w, 0) * input_strides[3]
            input_tile = tl.load(input_ptrs, mask=input_in, other=0.0)
            # Hazard: tl.trans after a masked load is not pipelined: the product would wait for its own step's load. So
            # grad_output is loaded as the product takes it, (FILTERS, DEPTH), although its channels are neighbours.
            grad_in = k_in[:, None] & pixel_in[None, :]
            grad_tile = _load_gradient(
                grad_output_ptr, grad_output_strides, argmax_ptr, argmax_strides,
                filter_offset, group, filters, k, n, i, j, grad_in, POOL_H, POOL_W, POOLED,
            )  # fmt: skip
            # (FILTERS, DEPTH) x (DEPTH, COLUMNS)
            accumulator = tl.dot(grad_tile, input_tile, accumulator, input_precision=PRECISION)
            if BIAS and column_block == 0:
                if HALF:
                    # (FILTERS, DEPTH) x (DEPTH, BIAS_COLUMNS): all columns are equal
                    bias = tl.dot(grad_tile, tl.full((DEPTH, BIAS_COLUMNS), 1, grad_tile.dtype), bias)
                else:
                    bias += grad_tile

    grad_weight_ptr += split.to(tl.int64) * split_stride
    _store_weight(
        grad_weight_ptr, grad_weight_strides, accumulator, group, grad_weight_group_stride, k, k_in, c, c_in, r, s
    )  # fmt: skip
    if BIAS and column_block == 0:
        grad_bias_ptr += split.to(tl.int64) * split_stride
        total = tl.reduce(bias, 1, _first) if HALF else tl.sum(bias, 1)  # -> (FILTERS,)
        tl.store(grad_bias_ptr + group * filters + k, total.to(grad_bias_ptr.dtype.element_ty), mask=k_in)


@in_float32_when_interpreted
def weight_gradient(
    outputs: tuple[Tensor, Tensor | None],
    grad_output: Tensor,
    argmax: Tensor | None,
    input: Tensor,
    *,
    window: Window,
    groups: int,
    pool: Pair = (1, 1),
    tile: Tile | None = None,
) -> None:
    """Write the gradients with respect to the convolution's weight and bias.

    Args:
        outputs: gradient of the weight, (k, c, r, s), dense in memory; gradient of the bias, (k,), or None.
        grad_output: gradient of the convolution's result; with an argmax, of the pooled map before its activation.
        argmax: bytes that `implicit_gemm.forward` wrote, or None without pooling and ReLU.
        input: images, (n, c, h, w).
        window: stride, padding and dilation.
        groups: groups of channels and filters.
        pool: height and width of the pooling window; ignored without an argmax.
        tile: tile to use instead of the plan's.
    """
    grad_weight, grad_bias = outputs
    pooled = argmax is not None
    pool_h, pool_w = pool if pooled else (1, 1)
    size = (grad_output.shape[2] * pool_h, grad_output.shape[3] * pool_w)
    target = nearest_architecture(architecture(input))
    precision = dot_precision(input.dtype, target)
    kind = arithmetic(input.dtype, precision)
    index = index_type(*(t for t in (grad_output, argmax, input, grad_weight) if t is not None))
    careful = index is tl.int64 or input.stride(1) != 1 or grad_output.stride(1) != 1
    sizes = (input.shape[0], size, tuple(grad_weight.shape), groups, target, kind)
    if tile is None and autotune.is_enabled(input):
        key = (
            "implicit GEMM", "weight gradient", pooled, grad_bias is not None, window.stride, window.dilation,
            *sizes, careful,
        )  # fmt: skip
        plan = autotune.select(input, key, candidate_plans(*sizes, careful=careful))
    else:
        plan = build_plan(*sizes, careful=careful, tile=tile)
    filters, channels = grad_weight.shape[0] // groups, grad_weight.shape[1]
    parts = ordered_sum.allocate_parts(plan.splits, grad_weight, grad_bias)
    with on_device(input):
        _kernel[(math.prod(plan.blocks) * plan.splits,)](
            grad_output_ptr=grad_output, grad_output_strides=grad_output.stride(),
            argmax_ptr=argmax, argmax_strides=strides_of(argmax),
            input_ptr=input, input_strides=input.stride(), input_size=tuple(input.shape[2:]),
            grad_weight_ptr=parts.weight, grad_weight_strides=grad_weight.stride(),
            grad_weight_group_stride=grad_weight.stride(0) * filters,
            # without BIAS the kernel does not use it
            grad_bias_ptr=parts.weight if parts.bias is None else parts.bias, split_stride=parts.stride,
            images=input.shape[0], size=size, channels=channels, filters=filters,
            stride=window.stride, padding=window.padding, dilation=window.dilation,
            blocks=plan.blocks, units=plan.units,
            R=grad_weight.shape[2], S=grad_weight.shape[3], POOL_H=pool_h, POOL_W=pool_w, POOLED=pooled,
            FLATTENED_CHANNELS=channels if plan.flattened else 0, BIAS=grad_bias is not None,
            EVEN_FILTERS=filters % plan.tile.rows == 0, EVEN_CHANNELS=channels % plan.tile.columns == 0,
            INDEX=index, PRECISION=precision,
            PATCH_W=plan.patch_w, FILTERS=plan.tile.rows, COLUMNS=plan.tile.columns, DEPTH=plan.tile.depth,
            **plan.tile.options(target),
        )  # fmt: skip
    ordered_sum.add_parts(parts, grad_weight, grad_bias)
