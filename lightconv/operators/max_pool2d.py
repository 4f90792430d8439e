"""lightconv::max_pool2d, equal to aten::max_pool2d_with_indices, and its gradient.

max_pool2d(x, ...)                (values, indices): ties give the first index, NaN wins over every number and the
                                  last NaN gives the index, a window of -inf gives its first index in the image
max_pool2d_backward(g, indices)   g added at the indices: x itself is not needed, only its shape
"""

from typing import Any

import torch
from torch import Tensor
from torch.library import register_autograd, register_fake

from lightconv.operators import backend
from lightconv.operators.geometry import Pair, Window, empty_image, in_format, is_channels_last, output_sizes
from lightconv.operators.library import LIBRARY

if backend.TRITON:
    from lightconv.kernels import max_pooling

_WINDOW = "SymInt[2] kernel_size, SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, bool ceil_mode"
LIBRARY.define(f"max_pool2d(Tensor input, {_WINDOW}) -> (Tensor, Tensor)")
LIBRARY.define(
    f"max_pool2d_backward(Tensor grad_output, Tensor indices, SymInt[] input_shape, {_WINDOW}, bool channels_last)"
    " -> Tensor"
)


def refusal(input: Tensor, kernel_size: Pair, window: Window, ceil_mode: bool) -> str | None:
    """Why no kernel can serve this max-pooling; None if one can."""
    if input.dim() != 4:
        return "not a batch of images"
    if min(output_sizes(input.shape[2:], kernel_size, window, ceil_mode)) < 1:
        return "the window is larger than the image"
    return backend.refusal(input)


def _max_pool2d(
    input: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool
) -> tuple[Tensor, Tensor]:
    window = Window(stride, padding, dilation)
    channels_last = is_channels_last(input)
    if refusal(input, kernel_size, window, ceil_mode) is not None:
        values, indices = torch.ops.aten.max_pool2d_with_indices(input, kernel_size, *window, ceil_mode)
        return in_format(values, channels_last), in_format(indices, channels_last)
    values, indices = _empty_outputs(input, kernel_size, window, ceil_mode)
    max_pooling.forward((values, indices), input, kernel_size, *window, channels_last)
    return values, indices


def _max_pool2d_backward(
    grad_output: Tensor,
    indices: Tensor,
    input_shape: list[int],
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    ceil_mode: bool,
    channels_last: bool,
) -> Tensor:
    grad_input = empty_image(grad_output, input_shape, channels_last)
    if backend.refusal(grad_output) is None:
        max_pooling.backward((grad_input,), grad_output, indices, kernel_size, stride, padding, dilation, channels_last)
        return grad_input
    grad_input = torch.ops.aten.max_pool2d_with_indices_backward(
        grad_output, grad_input, kernel_size, stride, padding, dilation, ceil_mode, indices
    )
    return in_format(grad_input, channels_last)


for _key in ("CPU", "CUDA"):
    LIBRARY.impl("max_pool2d", _max_pool2d, _key)
    LIBRARY.impl("max_pool2d_backward", _max_pool2d_backward, _key)


def _empty_outputs(input: Tensor, kernel_size: Pair, window: Window, ceil_mode: bool) -> tuple[Tensor, Tensor]:
    shape = (*input.shape[:2], *output_sizes(input.shape[2:], kernel_size, window, ceil_mode))
    values = empty_image(input, shape, is_channels_last(input))
    return values, torch.empty_like(values, dtype=torch.int64)


@register_fake("lightconv::max_pool2d", lib=LIBRARY)
def _(
    input: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool
) -> tuple[Tensor, Tensor]:
    return _empty_outputs(input, kernel_size, Window(stride, padding, dilation), ceil_mode)


@register_fake("lightconv::max_pool2d_backward", lib=LIBRARY)
def _(
    grad_output: Tensor,
    indices: Tensor,
    input_shape: list[int],
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    ceil_mode: bool,
    channels_last: bool,
) -> Tensor:
    return empty_image(grad_output, input_shape, channels_last)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, *ctx.options = inputs
    ctx.input_shape, ctx.channels_last = input.shape, is_channels_last(input)
    ctx.save_for_backward(output[1])


def _backward(ctx: Any, grad_output: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    (indices,) = ctx.saved_tensors
    grad_input = torch.ops.lightconv.max_pool2d_backward(
        grad_output, indices, ctx.input_shape, *ctx.options, ctx.channels_last
    )
    return grad_input, None, None, None, None, None


def _backward_setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _double_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (indices,) = ctx.saved_tensors
    # the gradient of "add at the indices" is "read at the indices"
    to_grad_output = grad.flatten(2).gather(2, indices.flatten(2)).view(indices.shape)
    return to_grad_output, None, None, None, None, None, None, None, None


register_autograd("lightconv::max_pool2d", _backward, setup_context=_setup_context, lib=LIBRARY)
register_autograd(
    "lightconv::max_pool2d_backward", _double_backward, setup_context=_backward_setup_context, lib=LIBRARY
)
