"""Max-pooling by gathering. A block owns a run of output elements in the order of memory.

    forward     Walk the window of each output element. Keep the largest value and its argmax: the index in the plane
                (int64, as torch), or the position in the window, r * S + s, which fits a byte.
    backward    Walk the windows over each input element. Add the gradients of those with this element as argmax.
                If windows lie side by side, an element has one window, and a division finds it.

No sum uses atomics: the same bits every time.

Hazard: tl.max does not follow torch's rule, so the comparisons spell it out. The first of equal values wins. NaN wins
over every number, and the last NaN over the others. A window of -inf has its first element in the image as argmax.

Hazard: a masked load on sm_100 may still dereference its address (pytorch/pytorch#187081). Every masked address is
therefore also clamped into its tensor. In channels_last with a multiple of 16 channels, clamps and masks change only at
multiples of 16 elements, so the compiler sees runs of neighbours and moves 16 bytes at once. An element must be clamped
after its division into coordinates: clamped before, the compiler would not see the runs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightconv.kernels.launch import architecture, in_float32_when_interpreted, index_type, on_device
from lightconv.kernels.tiles import register_limit
from lightconv.kernels.window import Pair, Window

_BLOCK = 1024
_FORWARD_REGISTERS = 64  # enough for four blocks: left alone, ptxas spills to fit a fifth


@triton.jit
def _elements(elements, RUN: tl.constexpr, INDEX: tl.constexpr, BLOCK: tl.constexpr):
    """Return the elements of this block, their (clamped) offsets to store at, and a mask of the existing ones."""
    element = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    element_in = element < elements
    return element, tl.where(element_in, element, tl.arange(0, BLOCK) % RUN), element_in


@triton.jit
def _coordinates(element, element_in, shape, CHANNELS_LAST: tl.constexpr):
    """Return the image, channel, row and column of each element of a batch of images.

    ``shape`` is (channels, height, width) of one image.
    """
    if CHANNELS_LAST:
        c = element % shape[0]
        pixel = element // shape[0]
        n = pixel // shape[2] // shape[1]
        h = pixel // shape[2] % shape[1]
        w = pixel % shape[2]
    else:
        w = element % shape[2]
        h = element // shape[2] % shape[1]
        # two divisions: the product of height and width may not fit their integer type
        plane = element // shape[2] // shape[1]
        n = plane // shape[0]
        c = plane % shape[0]
    # beyond the last element, only the image is out of range
    return tl.where(element_in, n, 0), c, h, w


@triton.jit
def _first_tap(start, dilation):
    """Return a window's first tap in the image. The start of the window is negative in the padding."""
    return tl.where(start < 0, (dilation - 1 - start) // dilation, 0)


@triton.jit
def _forward_kernel(
    input_ptr,
    output_ptr,
    argmax_ptr,
    elements,
    input_shape,
    output_shape,
    input_strides,
    stride,
    padding,
    dilation,
    R: tl.constexpr,
    S: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDICES: tl.constexpr,
    RUN: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK: tl.constexpr,
):
    element, offset, element_in = _elements(elements, RUN, INDEX, BLOCK)
    n, c, i, j = _coordinates(element, element_in, output_shape, CHANNELS_LAST)
    plane = n * input_strides[0] + c * input_strides[1]
    top = i * stride[0] - padding[0]
    left = j * stride[1] - padding[1]
    # a window of -inf keeps its first element in the image
    first_r = _first_tap(top, dilation[0])
    first_s = _first_tap(left, dilation[1])
    if INDICES:
        argmax = (top + first_r * dilation[0]) * input_shape[2] + left + first_s * dilation[1]
    else:
        argmax = (first_r * S + first_s).to(tl.int32)
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    for r in range(R):
        h = top + r * dilation[0]
        row_in = element_in & (h >= 0) & (h < input_shape[1])
        row = plane + tl.where(row_in, h, 0) * input_strides[2]
        for s in range(S):
            w = left + s * dilation[1]
            inside = row_in & (w >= 0) & (w < input_shape[2])
            pixel = row + tl.where(inside, w, 0) * input_strides[3]
            value = tl.load(input_ptr + pixel, mask=inside, other=float("-inf")).to(tl.float32)
            # value != value: a NaN
            wins = inside & ((value > best) | (value != value))
            best = tl.where(wins, value, best)
            argmax = tl.where(wins, h * input_shape[2] + w if INDICES else r * S + s, argmax)
    tl.store(output_ptr + offset, best.to(output_ptr.dtype.element_ty), mask=element_in)
    tl.store(argmax_ptr + offset, argmax.to(argmax_ptr.dtype.element_ty), mask=element_in)


@triton.jit
def _window_at(start, stride, windows, mask):
    """Return the window with this start in the padded image, 0 if there is none, and a mask of the existing ones."""
    mask &= start >= 0
    start = tl.where(mask, start, 0)
    window = start // stride
    mask &= (window * stride == start) & (window < windows)
    return tl.where(mask, window, 0), mask


@triton.jit
def _gradient_if_argmax(grad_output_ptr, argmax_ptr, grad_offset, argmax_offset, mask, position):
    """Return a window's gradient if this position is its argmax, else 0."""
    argmax = tl.load(argmax_ptr + argmax_offset, mask=mask, other=0)
    # The load is not masked by the comparison: it would wait for the argmax, and fall apart into single elements.
    gradient = tl.load(grad_output_ptr + grad_offset, mask=mask, other=0.0).to(tl.float32)
    return tl.where(argmax == position, gradient, 0.0)


@triton.jit
def _backward_kernel(
    grad_output_ptr,
    argmax_ptr,
    grad_input_ptr,
    elements,
    input_shape,
    output_shape,
    grad_output_strides,
    argmax_strides,
    stride,
    padding,
    dilation,
    R: tl.constexpr,
    S: tl.constexpr,
    SIDE_BY_SIDE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDICES: tl.constexpr,
    RUN: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK: tl.constexpr,
):
    element, offset, element_in = _elements(elements, RUN, INDEX, BLOCK)
    n, c, h, w = _coordinates(element, element_in, input_shape, CHANNELS_LAST)
    grad_output_ptr += n * grad_output_strides[0] + c * grad_output_strides[1]
    argmax_ptr += n * argmax_strides[0] + c * argmax_strides[1]
    if SIDE_BY_SIDE:
        i = h // R
        j = w // S
        covered = element_in & (i < output_shape[1]) & (j < output_shape[2])
        i = tl.where(covered, i, 0)
        j = tl.where(covered, j, 0)
        grad_offset = i * grad_output_strides[2] + j * grad_output_strides[3]
        argmax_offset = i * argmax_strides[2] + j * argmax_strides[3]
        position = h * input_shape[2] + w if INDICES else h % R * S + w % S
        total = _gradient_if_argmax(grad_output_ptr, argmax_ptr, grad_offset, argmax_offset, covered, position)
    else:
        total = tl.zeros((BLOCK,), tl.float32)
        # the window with this element at its position (r, s), if the stride has one there
        for r in range(R):
            i, row_covered = _window_at(h + padding[0] - r * dilation[0], stride[0], output_shape[1], element_in)
            grad_row = i * grad_output_strides[2]
            argmax_row = i * argmax_strides[2]
            for s in range(S):
                j, covered = _window_at(w + padding[1] - s * dilation[1], stride[1], output_shape[2], row_covered)
                grad_offset = grad_row + j * grad_output_strides[3]
                argmax_offset = argmax_row + j * argmax_strides[3]
                position = h * input_shape[2] + w if INDICES else r * S + s
                total += _gradient_if_argmax(grad_output_ptr, argmax_ptr, grad_offset, argmax_offset, covered, position)
    tl.store(grad_input_ptr + offset, total.to(grad_input_ptr.dtype.element_ty), mask=element_in)


@in_float32_when_interpreted
def forward(
    outputs: tuple[Tensor, Tensor],
    images: Tensor,
    *,
    kernel_size: Pair,
    window: Window,
    channels_last: bool,
) -> None:
    """Write the pooled maps and the argmax of every window.

    Args:
        outputs: pooled maps, and argmax: indices into the plane if int64, positions in the window if uint8.
        images: batch of images.
        kernel_size: size of a window, (h, w); at most 256 positions for uint8.
        window: stride, padding and dilation.
        channels_last: memory format of the dense outputs.

    Shape:
        - outputs: (n, c, oh, ow) each
        - images: (n, c, h, w)
    """
    output, argmax = outputs
    with on_device(images):
        _forward_kernel[(triton.cdiv(output.numel(), _BLOCK),)](
            input_ptr=images,
            output_ptr=output,
            argmax_ptr=argmax,
            elements=output.numel(),
            input_shape=_shape(images),
            output_shape=_shape(output),
            input_strides=images.stride(),
            stride=window.stride,
            padding=window.padding,
            dilation=window.dilation,
            R=kernel_size[0],
            S=kernel_size[1],
            CHANNELS_LAST=channels_last,
            INDICES=_has_indices(argmax),
            RUN=_contiguous_run(output),
            INDEX=index_type(images, output),
            BLOCK=_BLOCK,
            num_warps=_warps(output, channels_last),
            **register_limit(_FORWARD_REGISTERS, architecture(images)),
        )


@in_float32_when_interpreted
def backward(
    outputs: tuple[Tensor],
    grad_output: Tensor,
    argmax: Tensor,
    *,
    kernel_size: Pair,
    window: Window,
    channels_last: bool,
) -> None:
    """Write the gradient with respect to the images.

    Args:
        outputs: gradient of the images.
        grad_output: gradient of the pooled maps.
        argmax: argmax of every window, as `forward` wrote it.
        kernel_size: size of a window, (h, w).
        window: stride, padding and dilation.
        channels_last: memory format of the dense output.

    Shape:
        - outputs: (n, c, h, w)
        - grad_output: (n, c, oh, ow)
        - argmax: (n, c, oh, ow)
    """
    (grad_input,) = outputs
    side_by_side = window == Window(stride=(kernel_size[0], kernel_size[1]), padding=(0, 0), dilation=(1, 1))
    with on_device(grad_output):
        _backward_kernel[(triton.cdiv(grad_input.numel(), _BLOCK),)](
            grad_output_ptr=grad_output,
            argmax_ptr=argmax,
            grad_input_ptr=grad_input,
            elements=grad_input.numel(),
            input_shape=_shape(grad_input),
            output_shape=_shape(grad_output),
            grad_output_strides=grad_output.stride(),
            argmax_strides=argmax.stride(),
            stride=window.stride,
            padding=window.padding,
            dilation=window.dilation,
            R=kernel_size[0],
            S=kernel_size[1],
            SIDE_BY_SIDE=side_by_side,
            CHANNELS_LAST=channels_last,
            INDICES=_has_indices(argmax),
            RUN=_contiguous_run(grad_input),
            INDEX=index_type(grad_output, argmax, grad_input),
            BLOCK=_BLOCK,
            num_warps=_warps(grad_input, channels_last),
        )


def _shape(images: Tensor) -> tuple[int, ...]:
    """Return (channels, height, width)."""
    return tuple(images.shape[1:])


def _contiguous_run(output: Tensor) -> int:
    # Triton itself sees that a mask changes only at multiples of 16; clamping to a multiple of 16 keeps it so
    return 16 if output.numel() % 16 == 0 else 1


def _warps(output: Tensor, channels_last: bool) -> int:
    # 8 elements per thread if that is one access of 16 bytes, else 4: their addresses take registers
    return 4 if channels_last and output.itemsize == 2 else 8


def _has_indices(argmax: Tensor) -> bool:
    return argmax.dtype is not torch.uint8
