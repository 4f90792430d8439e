"""Max-pooling by gathering: every program owns a run of elements of its output, in the order of memory.

    forward    walks the window of each pooled element; backward walks the windows that cover each input element and
               adds the gradients of those whose index names it. No atomics: the same bits every time.

The comparisons spell out torch's rule, which tl.max does not follow: the first of equal values wins, NaN beats every
number, the last NaN beats the others, and a window of -inf still names its first element.
"""

import triton
import triton.language as tl
from torch import Tensor

from lightconv.kernels.launch import Outputs, in_float32_when_interpreted, index_type, on_device, window_at

_BLOCK = 1024
_WARPS = 4


@triton.jit
def _coordinates(element, channels, height, width, CHANNELS_LAST: tl.constexpr):
    if CHANNELS_LAST:
        c, pixel = element % channels, element // channels
        n, h, w = pixel // width // height, pixel // width % height, pixel % width
    else:
        w, h = element % width, element // width % height
        plane = element // width // height  # divided step by step: the product of the sizes may not fit their type
        n, c = plane // channels, plane % channels
    return n, c, h, w


@triton.jit
def _first_tap(start, dilation):
    """Where a window that starts at this coordinate, perhaps in the padding, first meets the image."""
    return tl.where(start < 0, start + (dilation - 1 - start) // dilation * dilation, start)


@triton.jit
def _forward_kernel(
    x, y, index,
    elements, channels, height, width, out_height, out_width,
    x_n, x_c, x_h, x_w,
    stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w,
    R: tl.constexpr, S: tl.constexpr, CHANNELS_LAST: tl.constexpr, INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    element = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    element_in = element < elements
    element = tl.where(element_in, element, 0)
    n, c, oh, ow = _coordinates(element, channels, out_height, out_width, CHANNELS_LAST)
    plane = n * x_n + c * x_c
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    top, left = oh * stride_h - padding_h, ow * stride_w - padding_w
    where = _first_tap(top, dilation_h) * width + _first_tap(left, dilation_w)
    for r in range(R):
        h = top + r * dilation_h
        row_in = element_in & (h >= 0) & (h < height)
        row = plane + tl.where(row_in, h, 0) * x_h
        for s in range(S):
            w = left + s * dilation_w
            inside = row_in & (w >= 0) & (w < width)
            value = tl.load(x + row + tl.where(inside, w, 0) * x_w, mask=inside, other=float("-inf")).to(tl.float32)
            wins = inside & ((value > best) | (value != value))
            best = tl.where(wins, value, best)
            where = tl.where(wins, h * width + w, where)
    tl.store(y + element, best.to(y.dtype.element_ty), mask=element_in)
    tl.store(index + element, where.to(tl.int64), mask=element_in)


@triton.jit
def _backward_kernel(
    g, index, dx,
    elements, channels, height, width, out_height, out_width,
    g_n, g_c, g_h, g_w, i_n, i_c, i_h, i_w,
    stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w,
    R: tl.constexpr, S: tl.constexpr, CHANNELS_LAST: tl.constexpr, INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    element = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    element_in = element < elements
    element = tl.where(element_in, element, 0)
    n, c, h, w = _coordinates(element, channels, height, width, CHANNELS_LAST)
    here = (h * width + w).to(tl.int64)
    total = tl.zeros((BLOCK,), tl.float32)
    # the windows that see this element at their position (r, s), where the stride left one
    for r in range(R):
        oh, row_seen = window_at(h + padding_h - r * dilation_h, stride_h, out_height, element_in)
        index_row, g_row = n * i_n + c * i_c + oh * i_h, n * g_n + c * g_c + oh * g_h
        for s in range(S):
            ow, seen = window_at(w + padding_w - s * dilation_w, stride_w, out_width, row_seen)
            seen &= tl.load(index + index_row + ow * i_w, mask=seen, other=-1) == here
            total += tl.load(g + g_row + ow * g_w, mask=seen, other=0.0).to(tl.float32)
    tl.store(dx + element, total.to(dx.dtype.element_ty), mask=element_in)


@in_float32_when_interpreted
def forward(
    outputs: Outputs,
    input: Tensor,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    channels_last: bool,
) -> None:
    """Write the pooled maps and their indices into outputs, both dense in the stated memory format."""
    values, indices = outputs
    elements = values.numel()
    with on_device(input):
        _forward_kernel[(triton.cdiv(elements, _BLOCK),)](
            input, values, indices,
            elements, *input.shape[1:], *values.shape[2:],
            *input.stride(), *stride, *padding, *dilation,
            *kernel_size, channels_last, index_type(input, values), _BLOCK, num_warps=_WARPS,
        )  # fmt: skip


@in_float32_when_interpreted
def backward(
    outputs: Outputs,
    grad_output: Tensor,
    indices: Tensor,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    channels_last: bool,
) -> None:
    """Write the gradient with respect to max-pooling's input into outputs[0], dense in the stated memory format."""
    (grad_input,) = outputs
    elements = grad_input.numel()
    with on_device(grad_output):
        _backward_kernel[(triton.cdiv(elements, _BLOCK),)](
            grad_output, indices, grad_input,
            elements, *grad_input.shape[1:], *grad_output.shape[2:],
            *grad_output.stride(), *indices.stride(), *stride, *padding, *dilation,
            *kernel_size, channels_last, index_type(grad_output, indices, grad_input), _BLOCK, num_warps=_WARPS,
        )  # fmt: skip
