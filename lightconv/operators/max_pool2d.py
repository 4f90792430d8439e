"""lightconv::max_pool2d, equal to aten::max_pool2d_with_indices, and its gradient.

max_pool2d(x, ..., return_indices)    (values, where): ties give the first, NaN wins over every number and the last NaN
                                      wins over the others, a window of -inf gives its first pixel in the image
max_pool2d_backward(g, where, ...)    g added where it came from: x itself is not needed, only its shape

`where` is an int64 index into the plane if `return_indices`, as in torch; else the position in the window, r * S + s,
one byte in place of eight kept for backward. Its dtype says which. A byte beyond the window names no pixel.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import register_autograd, register_fake

from lightconv.kernels.window import Pair, Window
from lightconv.operators import backend
from lightconv.operators.geometry import empty_image, in_format, is_channels_last, output_sizes
from lightconv.operators.library import LIBRARY

if backend.TRITON:
    from lightconv.kernels import max_pooling

MAX_POSITIONS = 255  # of a window whose positions fit a byte

_WINDOW = "SymInt[2] kernel_size, SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, bool ceil_mode"
LIBRARY.define(f"max_pool2d(Tensor input, {_WINDOW}, bool return_indices) -> (Tensor values, Tensor where)")
LIBRARY.define(
    f"max_pool2d_backward(Tensor grad_output, Tensor where, SymInt[] input_shape, {_WINDOW}, bool channels_last)"
    " -> Tensor"
)


def operator_unsupported_reason(input: Tensor, kernel_size: Pair, window: Window, ceil_mode: bool) -> str | None:
    """Why no kernel can serve this max-pooling; None if one can."""
    if input.dim() != 4:
        return "not a batch of images"
    if min(output_sizes(input.shape[2:], kernel_size, window, ceil_mode)) < 1:
        return "the window is larger than the image"
    return backend.tensor_unsupported_reason(input)


def dispatch(input: Tensor, kernel_size: Pair, window: Window, ceil_mode: bool, indices: bool) -> backend.Dispatch:
    """Who serves this max-pooling, and why."""
    reason = operator_unsupported_reason(input, kernel_size, window, ceil_mode)
    if reason is not None:
        return backend.Dispatch(False, reason)
    call = backend.Call("max_pool2d", input.numel(), indices=indices)
    return backend.dispatch(call, (input,), kernel_size, *window, ceil_mode, indices)


def _max_pool2d(
    input: Tensor,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    ceil_mode: bool,
    return_indices: bool,
) -> tuple[Tensor, Tensor]:
    window = Window.of(stride, padding, dilation)
    channels_last = is_channels_last(input)
    if operator_unsupported_reason(input, kernel_size, window, ceil_mode) is not None:
        values, where = torch.ops.aten.max_pool2d_with_indices(input, kernel_size, *window, ceil_mode)
        if not return_indices:
            where = _positions(where, input.shape[-1], kernel_size, window).to(torch.uint8)
        return in_format(values, channels_last), in_format(where, channels_last)
    values, where = _empty_outputs(input, kernel_size, window, ceil_mode, return_indices)
    max_pooling.forward((values, where), input, kernel_size, *window, channels_last)
    return values, where


def _max_pool2d_backward(
    grad_output: Tensor,
    where: Tensor,
    input_shape: list[int],
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    ceil_mode: bool,
    channels_last: bool,
) -> Tensor:
    window = Window.of(stride, padding, dilation)
    if backend.tensor_unsupported_reason(grad_output) is not None:
        grad_input = _backward_by_torch(grad_output, where, input_shape, kernel_size, *window, ceil_mode)
        return in_format(grad_input, channels_last)
    grad_input = empty_image(grad_output, input_shape, channels_last)
    max_pooling.backward((grad_input,), grad_output, where, kernel_size, *window, channels_last)
    return grad_input


for _key in ("CPU", "CUDA"):
    LIBRARY.impl("max_pool2d", _max_pool2d, _key)
    LIBRARY.impl("max_pool2d_backward", _max_pool2d_backward, _key)


def _empty_outputs(
    input: Tensor, kernel_size: Pair, window: Window, ceil_mode: bool, return_indices: bool
) -> tuple[Tensor, Tensor]:
    shape = (*input.shape[:2], *output_sizes(input.shape[2:], kernel_size, window, ceil_mode))
    values = empty_image(input, shape, is_channels_last(input))
    return values, torch.empty_like(values, dtype=torch.int64 if return_indices else torch.uint8)


def _corners(where: Tensor, window: Window) -> tuple[Tensor, Tensor]:
    """The rows and columns at which windows start, negative in the padding."""
    top, left = (
        torch.arange(count, device=where.device) * stride - padding
        for count, stride, padding in zip(where.shape[-2:], window.stride, window.padding, strict=True)
    )
    return top[:, None], left


def _positions(indices: Tensor, width: int, kernel_size: Pair, window: Window) -> Tensor:
    """The positions in their windows of indices into the plane."""
    top, left = _corners(indices, window)
    r = (indices // width - top) // window.dilation[0]
    s = (indices % width - left) // window.dilation[1]
    # a dilated window may step over a small image, and its index, as torch's, points behind the plane
    return (r * kernel_size[1] + s).clamp(0, kernel_size[0] * kernel_size[1] - 1)


def _indices(where: Tensor, input_shape: Sequence[int], kernel_size: Pair, window: Window) -> tuple[Tensor, Tensor]:
    """Either form of `where` as indices into the plane, and whether they lead to a pixel; 0 where they do not."""
    height, width = input_shape[-2:]
    position = where.long() if where.dtype is torch.uint8 else _positions(where, width, kernel_size, window)
    top, left = _corners(where, window)
    h = top + position // kernel_size[1] * window.dilation[0]
    w = left + position % kernel_size[1] * window.dilation[1]
    inside = (h >= 0) & (h < height) & (w >= 0) & (w < width) & (position < kernel_size[0] * kernel_size[1])
    return torch.where(inside, h * width + w, 0), inside


def _backward_by_torch(
    grad_output: Tensor,
    where: Tensor,
    input_shape: Sequence[int],
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    ceil_mode: bool,
) -> Tensor:
    window = Window.of(stride, padding, dilation)
    indices, inside = _indices(where, input_shape, kernel_size, window)
    return torch.ops.aten.max_pool2d_with_indices_backward(
        torch.where(inside, grad_output, 0),
        grad_output.new_empty(input_shape),
        kernel_size,
        *window,
        ceil_mode,
        indices,
    )


@register_fake("lightconv::max_pool2d", lib=LIBRARY)
def _(input: Tensor, kernel_size: Pair, *options: Any) -> tuple[Tensor, Tensor]:
    *pairs, ceil_mode, return_indices = options
    return _empty_outputs(input, kernel_size, Window.of(*pairs), ceil_mode, return_indices)


@register_fake("lightconv::max_pool2d_backward", lib=LIBRARY)
def _(grad_output: Tensor, where: Tensor, input_shape: list[int], *options: Any) -> Tensor:
    return empty_image(grad_output, input_shape, channels_last=options[-1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, *ctx.options, _ = inputs
    ctx.input_shape, ctx.channels_last = input.shape, is_channels_last(input)
    ctx.set_materialize_grads(False)  # what names the winners has no gradient: none is to be filled with zeros
    ctx.save_for_backward(output[1])


def _backward(ctx: Any, grad_output: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_output is None:
        return (None,) * 7
    (where,) = ctx.saved_tensors
    arguments = (grad_output, where, ctx.input_shape, *ctx.options)
    # the operator would drop a forward-mode tangent of the gradient
    if backend.transform_unsupported_reason() is not None:
        grad_input = _backward_by_torch(*arguments)
    else:
        grad_input = torch.ops.lightconv.max_pool2d_backward(*arguments, ctx.channels_last)
    return grad_input, None, None, None, None, None, None


def _backward_setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, where, ctx.input_shape, ctx.kernel_size, *window, _, _ = inputs
    ctx.window = Window(*window)
    ctx.save_for_backward(where)


def _double_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (where,) = ctx.saved_tensors
    indices, inside = _indices(where, ctx.input_shape, ctx.kernel_size, ctx.window)
    # the gradient of "add at the indices" is "read at the indices"
    planes = (*where.shape[:-2], -1)
    read = grad.reshape(planes).gather(-1, indices.reshape(planes)).view(indices.shape)
    return torch.where(inside, read, 0), None, None, None, None, None, None, None, None


register_autograd("lightconv::max_pool2d", _backward, setup_context=_setup_context, lib=LIBRARY)
register_autograd(
    "lightconv::max_pool2d_backward", _double_backward, setup_context=_backward_setup_context, lib=LIBRARY
)
