"""lightconv::conv2d, equal to torch.nn.functional.conv2d, and its two gradients as operators of their own.

    conv2d(x, w, b)                 aten::convolution(x, w, b, stride, padding, dilation, False, [0, 0], groups)
    conv2d_input_gradient(g, w)     aten::convolution_backward(g, x, w, ...)[0], needing only the shape of x
    conv2d_weight_gradient(g, x)    aten::convolution_backward(g, x, w, ...)[1:], needing only the shape of w

The three are linear in each of their tensors and each one's gradients are the other two, so derivatives of any
order stay within them.
"""

from typing import Any

import torch
from torch import Tensor
from torch.library import register_autograd, register_fake

from lightconv.operators import backend
from lightconv.operators.geometry import (
    Pair,
    Window,
    empty_image,
    in_format,
    is_channels_last,
    is_integer,
    output_sizes,
)
from lightconv.operators.library import LIBRARY

if backend.TRITON:
    from lightconv.kernels import convolution

_WINDOW = "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, SymInt groups"
LIBRARY.define(f"conv2d(Tensor input, Tensor weight, Tensor? bias, {_WINDOW}) -> Tensor")
LIBRARY.define(
    "conv2d_input_gradient(Tensor grad_output, Tensor weight, SymInt[] input_shape, "
    f"{_WINDOW}, bool channels_last) -> Tensor"
)
LIBRARY.define(
    "conv2d_weight_gradient(Tensor grad_output, Tensor input, SymInt[] weight_shape, "
    f"{_WINDOW}, bool channels_last, bool bias) -> (Tensor, Tensor)"
)


def refusal(input: Tensor, weight: Tensor, bias: Tensor | None, window: Window, groups: int) -> str | None:
    """Why no kernel can serve this convolution; None if one can."""
    if input.dim() != 4 or weight.dim() != 4:
        return "not a batch of images, or not a bank of two-dimensional filters"
    filters, channels = weight.shape[:2]
    if not is_integer(groups):
        return "groups is not an integer"
    if groups < 1 or channels * groups != input.shape[1] or filters % groups != 0:
        return "channels, filters and groups do not fit each other"
    if bias is not None and bias.shape != (filters,):
        return "the bias does not have one value a filter"
    if min(output_sizes(input.shape[2:], weight.shape[2:], window)) < 1:
        return "the filter is larger than the image"
    # the grids' second axes count blocks of filters or channels, never more than there are of either
    return backend.refusal(input, weight, bias) or backend.grid_refusal(filters, groups * channels)


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> Tensor:
    window = Window(stride, padding, dilation)
    channels_last = is_channels_last(input, weight)
    if refusal(input, weight, bias, window, groups) is not None:
        output = torch.convolution(input, weight, bias, stride, padding, dilation, False, (0, 0), groups)
        return in_format(output, channels_last)
    output = _empty_output(input, weight, window, channels_last)
    convolution.forward((output,), input, weight, bias, *window, groups)
    return output


def _conv2d_input_gradient(
    grad_output: Tensor,
    weight: Tensor,
    input_shape: list[int],
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    channels_last: bool,
) -> Tensor:
    grad_input = empty_image(grad_output, input_shape, channels_last)
    if backend.refusal(grad_output, weight) is None:
        convolution.input_gradient((grad_input,), grad_output, weight, stride, padding, dilation, groups)
        return grad_input
    window = (stride, padding, dilation, False, (0, 0), groups)
    gradients = torch.ops.aten.convolution_backward(
        grad_output, grad_input, weight, None, *window, (True, False, False)
    )
    return in_format(gradients[0], channels_last)


def _conv2d_weight_gradient(
    grad_output: Tensor,
    input: Tensor,
    weight_shape: list[int],
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    channels_last: bool,
    bias: bool,
) -> tuple[Tensor, Tensor]:
    grad_weight = empty_image(input, weight_shape, channels_last)
    grad_bias = input.new_empty(weight_shape[0] if bias else 0)
    if backend.refusal(grad_output, input) is None:
        convolution.weight_gradient((grad_weight, grad_bias), grad_output, input, stride, padding, dilation, groups)
        return grad_weight, grad_bias
    window = (stride, padding, dilation, False, (0, 0), groups)
    gradients = torch.ops.aten.convolution_backward(
        grad_output, input, grad_weight, [weight_shape[0]], *window, (False, True, bias)
    )
    return in_format(gradients[1], channels_last), gradients[2] if bias else grad_bias


for _key in ("CPU", "CUDA"):
    LIBRARY.impl("conv2d", _conv2d, _key)
    LIBRARY.impl("conv2d_input_gradient", _conv2d_input_gradient, _key)
    LIBRARY.impl("conv2d_weight_gradient", _conv2d_weight_gradient, _key)


def _empty_output(input: Tensor, weight: Tensor, window: Window, channels_last: bool) -> Tensor:
    sizes = output_sizes(input.shape[2:], weight.shape[2:], window)
    return empty_image(input, (input.shape[0], weight.shape[0], *sizes), channels_last)


@register_fake("lightconv::conv2d", lib=LIBRARY)
def _(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> Tensor:
    return _empty_output(input, weight, Window(stride, padding, dilation), is_channels_last(input, weight))


@register_fake("lightconv::conv2d_input_gradient", lib=LIBRARY)
def _(
    grad_output: Tensor,
    weight: Tensor,
    input_shape: list[int],
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    channels_last: bool,
) -> Tensor:
    return empty_image(grad_output, input_shape, channels_last)


@register_fake("lightconv::conv2d_weight_gradient", lib=LIBRARY)
def _(
    grad_output: Tensor,
    input: Tensor,
    weight_shape: list[int],
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    channels_last: bool,
    bias: bool,
) -> tuple[Tensor, Tensor]:
    return empty_image(input, weight_shape, channels_last), input.new_empty(weight_shape[0] if bias else 0)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weight, _, *ctx.options = inputs
    ctx.input_shape, ctx.weight_shape = input.shape, weight.shape
    ctx.channels_last = is_channels_last(input, weight)
    needs_input, needs_weight = ctx.needs_input_grad[:2]
    ctx.save_for_backward(input if needs_weight else None, weight if needs_input else None)


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    input, weight = ctx.saved_tensors
    needs_input, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    grad_input = grad_weight = grad_bias = None
    if needs_input:
        grad_input = torch.ops.lightconv.conv2d_input_gradient(
            grad_output, weight, ctx.input_shape, *ctx.options, ctx.channels_last
        )
    if needs_weight:
        grad_weight, grad_bias = torch.ops.lightconv.conv2d_weight_gradient(
            grad_output, input, ctx.weight_shape, *ctx.options, ctx.channels_last, needs_bias
        )
    elif needs_bias:
        grad_bias = grad_output.sum((0, 2, 3))
    return grad_input, grad_weight, grad_bias if needs_bias else None, None, None, None, None


def _input_gradient_setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad_output, weight, _, *ctx.options, ctx.channels_last = inputs
    ctx.weight_shape = weight.shape
    ctx.save_for_backward(grad_output, weight)


def _input_gradient_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_output, weight = ctx.saved_tensors
    needs_grad_output, needs_weight = ctx.needs_input_grad[:2]
    to_grad_output = torch.ops.lightconv.conv2d(grad, weight, None, *ctx.options) if needs_grad_output else None
    to_weight = None
    if needs_weight:
        to_weight, _ = torch.ops.lightconv.conv2d_weight_gradient(
            grad_output, grad, ctx.weight_shape, *ctx.options, ctx.channels_last, False
        )
    return to_grad_output, to_weight, None, None, None, None, None, None


def _weight_gradient_setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    grad_output, input, _, *ctx.options, ctx.channels_last, ctx.bias = inputs
    ctx.input_shape = input.shape
    ctx.save_for_backward(grad_output, input)


def _weight_gradient_backward(ctx: Any, grad: Tensor, grad_bias: Tensor) -> tuple[Tensor | None, ...]:
    grad_output, input = ctx.saved_tensors
    needs_grad_output, needs_input = ctx.needs_input_grad[:2]
    to_grad_output = to_input = None
    if needs_grad_output:
        bias = grad_bias if ctx.bias else None
        to_grad_output = torch.ops.lightconv.conv2d(input, grad, bias, *ctx.options)
    if needs_input:
        to_input = torch.ops.lightconv.conv2d_input_gradient(
            grad_output, grad, ctx.input_shape, *ctx.options, ctx.channels_last
        )
    return to_grad_output, to_input, None, None, None, None, None, None, None


register_autograd("lightconv::conv2d", _backward, setup_context=_setup_context, lib=LIBRARY)
register_autograd(
    "lightconv::conv2d_input_gradient",
    _input_gradient_backward,
    setup_context=_input_gradient_setup_context,
    lib=LIBRARY,
)
register_autograd(
    "lightconv::conv2d_weight_gradient",
    _weight_gradient_backward,
    setup_context=_weight_gradient_setup_context,
    lib=LIBRARY,
)


def lowered(device: str, *tensors: Tensor | None) -> list[Any]:
    """Cast as torch's convolution does under autocast: everything floating but float64."""
    dtype = torch.get_autocast_dtype(device)
    return [
        t.to(dtype) if t is not None and t.is_floating_point() and t.dtype is not torch.float64 else t for t in tensors
    ]


def _register_autocast(device: str) -> None:
    # torch.library.register_autocast fixes the dtype once; torch's own convolution follows the context's
    key = f"Autocast{device.upper()}"

    def autocast(input: Tensor, weight: Tensor, bias: Tensor | None, *window: Any) -> Tensor:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))):
            return torch.ops.lightconv.conv2d(*lowered(device, input, weight, bias), *window)

    LIBRARY.impl("conv2d", autocast, key)


_register_autocast("cpu")
_register_autocast("cuda")
