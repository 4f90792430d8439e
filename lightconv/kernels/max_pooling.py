"""Max-pooling by gathering: every program owns a run of elements of its output, in the order of memory.

    forward    walks the window of each pooled element, and names the winner: by its index in the plane (int64), as
               torch does, or by its position in the window, r * S + s, which fits a byte
    backward   walks the windows that cover each input element and adds the gradients of those that name it; where
               windows lie side by side that is one, found by division. No atomics: the same bits every time

The comparisons spell out torch's rule, which tl.max does not follow: the first of equal values wins, NaN beats every
number, the last NaN beats the others, and a window of -inf still names its first element.

Masked addresses are also clamped into the tensor: on sm_100 a masked copy may still dereference its address
(pytorch/pytorch#187081). In channels_last with a multiple of 16 channels, clamps and masks change only at multiples of
16 elements: the compiler sees runs of neighbours and moves 16 bytes at a time. Clamping an element before it is divided
into coordinates would hide the runs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightconv.kernels.launch import Outputs, architecture, in_float32_when_interpreted, index_type, on_device
from lightconv.kernels.tiles import register_limit
from lightconv.kernels.window import Pair

_BLOCK = 1024
_FORWARD_REGISTERS = 64  # enough for four blocks: left alone, ptxas spills to fit a fifth


@triton.jit
def _elements(elements, RUN: tl.constexpr, INDEX: tl.constexpr, BLOCK: tl.constexpr):
    """The elements of this program, where each is stored, and which of them there are."""
    element = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    element_in = element < elements
    return element, tl.where(element_in, element, tl.arange(0, BLOCK) % RUN), element_in


@triton.jit
def _coordinates(element, element_in, sizes, CHANNELS_LAST: tl.constexpr):
    """Batch, channel, row and column of the elements of an image of sizes (channels, height, width)."""
    if CHANNELS_LAST:
        c, pixel = element % sizes[0], element // sizes[0]
        n, h, w = pixel // sizes[2] // sizes[1], pixel // sizes[2] % sizes[1], pixel % sizes[2]
    else:
        w, h = element % sizes[2], element // sizes[2] % sizes[1]
        plane = element // sizes[2] // sizes[1]  # divided step by step: the product of the sizes may not fit their type
        n, c = plane // sizes[0], plane % sizes[0]
    return tl.where(element_in, n, 0), c, h, w  # behind the last element only the batch is out of bounds


@triton.jit
def _first_tap(start, dilation):
    """The first tap of a window that meets the image, where the window may start in the padding."""
    return tl.where(start < 0, (dilation - 1 - start) // dilation, 0)


@triton.jit
def _forward_kernel(
    x, y, where,
    elements, image, pooled, x_strides, stride, padding, dilation,
    R: tl.constexpr, S: tl.constexpr, CHANNELS_LAST: tl.constexpr, INDICES: tl.constexpr,
    RUN: tl.constexpr, INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    element, place, element_in = _elements(elements, RUN, INDEX, BLOCK)
    n, c, oh, ow = _coordinates(element, element_in, pooled, CHANNELS_LAST)
    plane = n * x_strides[0] + c * x_strides[1]
    top, left = oh * stride[0] - padding[0], ow * stride[1] - padding[1]
    first_r, first_s = _first_tap(top, dilation[0]), _first_tap(left, dilation[1])
    if INDICES:
        winner = (top + first_r * dilation[0]) * image[2] + left + first_s * dilation[1]
    else:
        winner = (first_r * S + first_s).to(tl.int32)
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    for r in range(R):
        h = top + r * dilation[0]
        row_in = element_in & (h >= 0) & (h < image[1])
        row = plane + tl.where(row_in, h, 0) * x_strides[2]
        for s in range(S):
            w = left + s * dilation[1]
            inside = row_in & (w >= 0) & (w < image[2])
            pixel = row + tl.where(inside, w, 0) * x_strides[3]
            value = tl.load(x + pixel, mask=inside, other=float("-inf")).to(tl.float32)
            wins = inside & ((value > best) | (value != value))
            best = tl.where(wins, value, best)
            winner = tl.where(wins, h * image[2] + w if INDICES else r * S + s, winner)
    tl.store(y + place, best.to(y.dtype.element_ty), mask=element_in)
    tl.store(where + place, winner.to(where.dtype.element_ty), mask=element_in)


@triton.jit
def _window_at(start, stride, windows, mask):
    """The window that starts at this padded coordinate, and whether there is one; 0, in bounds, where there is not."""
    mask &= start >= 0
    start = tl.where(mask, start, 0)
    window = start // stride
    mask &= (window * stride == start) & (window < windows)
    return tl.where(mask, window, 0), mask


@triton.jit
def _taken(g, where, g_offset, where_offset, seen, name):
    """What an element of this name takes from a window: its gradient if it won, else nothing."""
    winner = tl.load(where + where_offset, mask=seen, other=0)
    # not masked by who wins: neither waits for the other load nor falls apart into single elements
    gradient = tl.load(g + g_offset, mask=seen, other=0.0).to(tl.float32)
    return tl.where(winner == name, gradient, 0.0)


@triton.jit
def _backward_kernel(
    g, where, dx,
    elements, image, pooled, g_strides, where_strides, stride, padding, dilation,
    R: tl.constexpr, S: tl.constexpr, SIDE_BY_SIDE: tl.constexpr, CHANNELS_LAST: tl.constexpr, INDICES: tl.constexpr,
    RUN: tl.constexpr, INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    element, place, element_in = _elements(elements, RUN, INDEX, BLOCK)
    n, c, h, w = _coordinates(element, element_in, image, CHANNELS_LAST)
    g += n * g_strides[0] + c * g_strides[1]
    where += n * where_strides[0] + c * where_strides[1]
    if SIDE_BY_SIDE:
        oh, ow = h // R, w // S
        seen = element_in & (oh < pooled[1]) & (ow < pooled[2])
        oh, ow = tl.where(seen, oh, 0), tl.where(seen, ow, 0)
        g_offset, where_offset = oh * g_strides[2] + ow * g_strides[3], oh * where_strides[2] + ow * where_strides[3]
        total = _taken(g, where, g_offset, where_offset, seen, h * image[2] + w if INDICES else h % R * S + w % S)
    else:
        total = tl.zeros((BLOCK,), tl.float32)
        # the windows that see this element at their position (r, s), where the stride left one
        for r in range(R):
            oh, row_seen = _window_at(h + padding[0] - r * dilation[0], stride[0], pooled[1], element_in)
            g_row, where_row = oh * g_strides[2], oh * where_strides[2]
            for s in range(S):
                ow, seen = _window_at(w + padding[1] - s * dilation[1], stride[1], pooled[2], row_seen)
                g_offset, where_offset = g_row + ow * g_strides[3], where_row + ow * where_strides[3]
                name = h * image[2] + w if INDICES else r * S + s
                total += _taken(g, where, g_offset, where_offset, seen, name)
    tl.store(dx + place, total.to(dx.dtype.element_ty), mask=element_in)


@in_float32_when_interpreted
def forward(
    outputs: Outputs,
    input: Tensor,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    channels_last: bool,
) -> None:
    """Write the pooled maps and where their values were found into outputs, both dense in the stated memory format.

    Args:
        outputs: the maps, and indices into the plane if int64 or positions in the window if uint8.
        input: a batch of images.
        kernel_size: height and width of the window, at most 256 positions if they are to be written.
        stride: of the windows.
        padding: of the image.
        dilation: of the window.
        channels_last: the memory format of outputs.
    """
    values, where = outputs
    with on_device(input):
        _forward_kernel[(triton.cdiv(values.numel(), _BLOCK),)](
            input, values, where,
            values.numel(), _sizes(input), _sizes(values), input.stride(), stride, padding, dilation,
            *kernel_size, channels_last, _are_indices(where),
            _run(values), index_type(input, values), _BLOCK, num_warps=_warps(values, channels_last),
            **register_limit(_FORWARD_REGISTERS, architecture(input)),
        )  # fmt: skip


@in_float32_when_interpreted
def backward(
    outputs: Outputs,
    grad_output: Tensor,
    where: Tensor,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    channels_last: bool,
) -> None:
    """Write the gradient with respect to max-pooling's input into outputs[0], dense in the stated memory format."""
    (grad_input,) = outputs
    side_by_side = tuple(stride) == tuple(kernel_size) and not any(padding) and max(dilation) == 1
    with on_device(grad_output):
        _backward_kernel[(triton.cdiv(grad_input.numel(), _BLOCK),)](
            grad_output, where, grad_input,
            grad_input.numel(), _sizes(grad_input), _sizes(grad_output), grad_output.stride(), where.stride(),
            stride, padding, dilation,
            *kernel_size, side_by_side, channels_last, _are_indices(where),
            _run(grad_input), index_type(grad_output, where, grad_input), _BLOCK,
            num_warps=_warps(grad_input, channels_last),
        )  # fmt: skip


def _sizes(image: Tensor) -> tuple[int, ...]:
    return tuple(image.shape[1:])


def _run(output: Tensor) -> int:
    # where Triton knows by itself that a mask changes only at multiples of 16, clamping keeps it so
    return 16 if output.numel() % 16 == 0 else 1


def _warps(output: Tensor, channels_last: bool) -> int:
    # 8 elements a thread where that is one access of 16 bytes, else 4: their addresses take registers
    return 4 if channels_last and output.itemsize == 2 else 8


def _are_indices(where: Tensor) -> bool:
    return where.dtype is not torch.uint8
