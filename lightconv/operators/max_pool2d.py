"""lightconv::max_pool2d, equal to aten::max_pool2d_with_indices, and its gradient.

    max_pool2d(x, ..., return_indices)     (values, argmax)
    max_pool2d_backward(g, argmax, ...)    g added at the pixels named by argmax; needs only the shape of x

The first of equal values wins. NaN wins over every number, and the last NaN over the others. A window of -inf takes its
first pixel in the image.

There are two kinds of `argmax`, told apart by dtype:

    int64    plane index, h * width + w, as in torch, if `return_indices`
    uint8    window argmax, the position r * S + s in the window: one byte to keep for backward instead of eight. A byte
             beyond the window names no pixel, so that window passes no gradient on
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightconv.kernels.argmax import KILLED
from lightconv.kernels.window import Pair, Window
from lightconv.operators import backend
from lightconv.operators.geometry import empty_image, in_format, is_channels_last, output_sizes
from lightconv.operators.library import LIBRARY, backward_of, fake_of, implementation_of
from lightconv.operators.triton_kernels import max_pooling

MAX_POSITIONS = KILLED  # pixels of the largest window with a window argmax: one of the 256 bytes must name no pixel

_WINDOW = "SymInt[2] kernel_size, SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, bool ceil_mode"
LIBRARY.define(f"max_pool2d(Tensor input, {_WINDOW}, bool return_indices) -> (Tensor values, Tensor argmax)")
LIBRARY.define(
    f"max_pool2d_backward(Tensor grad_output, Tensor argmax, SymInt[] input_shape, {_WINDOW}, bool channels_last)"
    " -> Tensor"
)


def operator_unsupported_reason(input: Tensor, kernel_size: Pair, window: Window, ceil_mode: bool) -> str | None:
    """Return the reason no kernel can serve this max-pooling, or None."""
    if input.dim() != 4:
        return "input is not a batch of images, (n, c, h, w)"
    if min(output_sizes(input.shape[2:], kernel_size, window, ceil_mode)) < 1:
        return "the window is larger than the padded image"
    return backend.tensor_unsupported_reason(input)


def dispatch(input: Tensor, kernel_size: Pair, window: Window, ceil_mode: bool, indices: bool) -> backend.Dispatch:
    """Decide if a kernel or torch serves this max-pooling.

    Args:
        input: batch of images, (n, c, h, w).
        kernel_size: height and width of the window.
        window: stride, padding and dilation.
        ceil_mode: True to keep windows that hang over the lower and right edge.
        indices: True if plane indices are returned.
    """
    reason = operator_unsupported_reason(input, kernel_size, window, ceil_mode)
    if reason is not None:
        return backend.Dispatch(False, reason)
    call = backend.Call("max_pool2d", input.numel(), indices=indices)
    return backend.dispatch(call, (input,), kernel_size, *window, ceil_mode, indices)


@implementation_of("max_pool2d")
def _max_pool2d(
    input: Tensor, kernel_size: Pair, window: Window, ceil_mode: bool, return_indices: bool
) -> tuple[Tensor, Tensor]:
    # only in a direct call: lightconv.functional asks before it calls the operator
    if operator_unsupported_reason(input, kernel_size, window, ceil_mode) is not None:
        values, argmax = torch.ops.aten.max_pool2d_with_indices(input, kernel_size, *window, ceil_mode)
        if not return_indices:
            argmax = _window_argmax(argmax, input.shape[-1], kernel_size, window).to(torch.uint8)
        channels_last = is_channels_last(input)
        return in_format(values, channels_last), in_format(argmax, channels_last)
    values, argmax = _empty_outputs(input, kernel_size, window, ceil_mode, return_indices)
    channels_last = is_channels_last(input)
    max_pooling.forward((values, argmax), input, kernel_size=kernel_size, window=window, channels_last=channels_last)
    return values, argmax


@implementation_of("max_pool2d_backward")
def _max_pool2d_backward(
    grad_output: Tensor,
    argmax: Tensor,
    input_shape: list[int],
    kernel_size: Pair,
    window: Window,
    ceil_mode: bool,
    channels_last: bool,
) -> Tensor:
    if backend.tensor_unsupported_reason(grad_output) is not None:
        grad_input = _backward_by_torch(grad_output, argmax, input_shape, kernel_size, window, ceil_mode)
        return in_format(grad_input, channels_last)
    grad_input = empty_image(grad_output, input_shape, channels_last)
    max_pooling.backward(
        (grad_input,), grad_output, argmax, kernel_size=kernel_size, window=window, channels_last=channels_last
    )
    return grad_input


@fake_of("max_pool2d")
def _empty_outputs(
    input: Tensor, kernel_size: Pair, window: Window, ceil_mode: bool, return_indices: bool
) -> tuple[Tensor, Tensor]:
    # (n, c, h, w) -> (n, c, oh, ow)
    shape = (*input.shape[:2], *output_sizes(input.shape[2:], kernel_size, window, ceil_mode))
    values = empty_image(input, shape, is_channels_last(input))
    return values, torch.empty_like(values, dtype=torch.int64 if return_indices else torch.uint8)


@fake_of("max_pool2d_backward")
def _(grad_output: Tensor, argmax: Tensor, input_shape: list[int], *options: Any) -> Tensor:
    *_, channels_last = options
    return empty_image(grad_output, input_shape, channels_last)


def _corners(argmax: Tensor, window: Window) -> tuple[Tensor, Tensor]:
    """Return the top row and the left column of every window, negative in the padding.

    Shape:
        top: (oh, 1); left: (ow,).
    """
    # a window starts every `stride` pixels, counted from the padded image's corner
    rows, columns = argmax.shape[-2:]
    top = torch.arange(rows, device=argmax.device) * window.stride[0] - window.padding[0]
    left = torch.arange(columns, device=argmax.device) * window.stride[1] - window.padding[1]
    return top[:, None], left


def _window_argmax(plane_index: Tensor, width: int, kernel_size: Pair, window: Window) -> Tensor:
    """Convert plane indices to positions in their windows."""
    top, left = _corners(plane_index, window)
    r = (plane_index // width - top) // window.dilation[0]
    s = (plane_index % width - left) // window.dilation[1]
    # a dilated window may step over a small image: its index, as torch's, then points behind the plane
    return (r * kernel_size[1] + s).clamp(0, kernel_size[0] * kernel_size[1] - 1)


def _plane_index(
    argmax: Tensor, input_shape: Sequence[int], kernel_size: Pair, window: Window
) -> tuple[Tensor, Tensor]:
    """Convert either kind of argmax to plane indices.

    Returns:
        (plane index, inside): inside is False, and the index 0, if the argmax names no pixel of the image.
    """
    height, width = input_shape[-2:]
    is_plane_index = argmax.dtype is not torch.uint8
    # to positions first, since torch's index of a window without a pixel lies outside of the plane
    position = _window_argmax(argmax, width, kernel_size, window) if is_plane_index else argmax.long()
    top, left = _corners(argmax, window)
    h = top + position // kernel_size[1] * window.dilation[0]
    w = left + position % kernel_size[1] * window.dilation[1]
    inside = (h >= 0) & (h < height) & (w >= 0) & (w < width) & (position < kernel_size[0] * kernel_size[1])
    return torch.where(inside, h * width + w, 0), inside


def _backward_by_torch(
    grad_output: Tensor,
    argmax: Tensor,
    input_shape: Sequence[int],
    kernel_size: Pair,
    window: Window,
    ceil_mode: bool,
) -> Tensor:
    plane_index, inside = _plane_index(argmax, input_shape, kernel_size, window)
    # torch writes outside of its tensor at an index outside of the plane: such an index is 0 here, its gradient zero
    return torch.ops.aten.max_pool2d_with_indices_backward(
        torch.where(inside, grad_output, 0),
        grad_output.new_empty(input_shape),
        kernel_size,
        *window,
        ceil_mode,
        plane_index,
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, ctx.kernel_size, *window, ctx.ceil_mode, _ = inputs
    _, argmax = output
    ctx.window = Window.of(*window)
    ctx.input_shape = input.shape
    ctx.channels_last = is_channels_last(input)
    # argmax has no gradient: do not allocate zeros for it
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(argmax)


@backward_of("max_pool2d", setup_context=_setup_context)
def _(ctx: Any, grad_output: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_output is None:
        return (None,) * 7
    (argmax,) = ctx.saved_tensors
    arguments = (grad_output, argmax, ctx.input_shape, ctx.kernel_size)
    # the operator would drop a forward-mode tangent of the gradient
    if backend.transform_unsupported_reason() is not None:
        grad_input = _backward_by_torch(*arguments, ctx.window, ctx.ceil_mode)
    else:
        grad_input = torch.ops.lightconv.max_pool2d_backward(*arguments, *ctx.window, ctx.ceil_mode, ctx.channels_last)
    # no gradient: everything after the input
    return grad_input, *[None] * 6


def _backward_setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, argmax, ctx.input_shape, ctx.kernel_size, *window, _, _ = inputs
    ctx.window = Window.of(*window)
    ctx.save_for_backward(argmax)


@backward_of("max_pool2d_backward", setup_context=_backward_setup_context)
def _(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (argmax,) = ctx.saved_tensors
    plane_index, inside = _plane_index(argmax, ctx.input_shape, ctx.kernel_size, ctx.window)
    # the gradient of "add at the indices" is "read at the indices"
    # (n, c, h, w) -> (n, c, h * w), read at (n, c, oh * ow) -> (n, c, oh, ow)
    planes = (*argmax.shape[:-2], -1)
    read = grad.reshape(planes).gather(-1, plane_index.reshape(planes)).view(plane_index.shape)
    # no gradient: everything after grad_output
    return torch.where(inside, read, 0), *[None] * 8
