"""lightconv::conv2d, equal to torch.nn.functional.conv2d, and its two gradients as operators of their own.

    conv2d(x, w, b)                       aten::convolution(x, w, b, stride, padding, dilation, False, [0, 0], groups)
    conv2d_input_gradient(g, code, w)     aten::convolution_backward(g, x, w, ...)[0], needing only the shape of x
    conv2d_weight_gradient(g, code, x)    aten::convolution_backward(g, x, w, ...)[1:], needing only the shape of w

The three are linear in each of their tensors and each one's gradients are the other two, so derivatives of any order
stay within them. With a code, `g` is the gradient of a pooled map: see `lightconv.operators.codes`. Both gradients can
expand it as they read, once for every tap and block of channels or filters; that is less than writing the expanded map
where there are few channels, and more where there are many.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import register_autograd, register_fake

from lightconv.kernels.window import Pair, Window
from lightconv.operators import backend, codes
from lightconv.operators.geometry import empty_image, in_format, is_channels_last, is_integer, output_sizes
from lightconv.operators.library import LIBRARY

if backend.TRITON:
    from lightconv.kernels import depthwise, implicit_gemm, weight_gradient

_EXPANDED_FROM = 16  # channels of a group: the map's gradient is written, for the gradients to read it as any other

_WINDOW = "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, SymInt groups"
_CODED = f"{_WINDOW}, SymInt[2] pool, bool channels_last"
LIBRARY.define(f"conv2d(Tensor input, Tensor weight, Tensor? bias, {_WINDOW}) -> Tensor")
LIBRARY.define(
    f"conv2d_input_gradient(Tensor grad_output, Tensor? code, Tensor weight, SymInt[] input_shape, {_CODED}) -> Tensor"
)
LIBRARY.define(
    "conv2d_weight_gradient(Tensor grad_output, Tensor? code, Tensor input, SymInt[] weight_shape, "
    f"{_CODED}, bool bias) -> (Tensor, Tensor)"
)


def operator_unsupported_reason(
    input: Tensor, weight: Tensor, bias: Tensor | None, window: Window, groups: int
) -> str | None:
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
    return backend.tensor_unsupported_reason(input, weight, bias)


def dispatch(input: Tensor, weight: Tensor, bias: Tensor | None, window: Window, groups: int) -> backend.Dispatch:
    """Who serves this convolution, and why."""
    reason = operator_unsupported_reason(input, weight, bias, window, groups)
    if reason is not None:
        return backend.Dispatch(False, reason)
    depthwise, last = groups > 1 and weight.shape[1] == 1, is_channels_last(input, weight)
    call = backend.Call("conv2d", input.numel(), math.prod(weight.shape[1:]), depthwise, last)
    return backend.dispatch(call, (input, weight, bias), *window, groups)


def algorithm(weight_shape: tuple[int, ...], window: Window, groups: int, like: Tensor) -> str:
    """How lightconv computes a convolution, and its gradients: "depthwise", "matrix product" or "implicit GEMM".

    A convolution of single pixels is a matrix product already, which torch computes, unless torch's switches ask for
    one precision of convolutions and for another of matrix products, or torch would refuse it as not deterministic.
    """
    if groups > 1 and weight_shape[1] == 1:
        return "depthwise"
    if groups > 1 or tuple(weight_shape[2:]) != (1, 1) or window != Window((1, 1), (0, 0), (1, 1)):
        return "implicit GEMM"
    on_gpu = like.device.type in {"cuda", "meta"}  # meta: shapes alone, as a GPU would be served
    if on_gpu and torch.are_deterministic_algorithms_enabled():
        return "implicit GEMM"
    switches = {s.fp32_precision == "tf32" for s in (torch.backends.cudnn.conv, torch.backends.cuda.matmul)}  # type: ignore[attr-defined]
    return "implicit GEMM" if on_gpu and like.dtype is torch.float32 and len(switches) > 1 else "matrix product"


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> Tensor:
    window = Window.of(stride, padding, dilation)
    channels_last = is_channels_last(input, weight)
    if operator_unsupported_reason(input, weight, bias, window, groups) is not None:
        output = torch.convolution(input, weight, bias, stride, padding, dilation, False, (0, 0), groups)
        return in_format(output, channels_last)
    chosen = algorithm(weight.shape, window, groups, input)
    if chosen == "matrix product":
        return in_format(_by_matrix_product(input, weight.flatten(1), bias, channels_last), channels_last)
    output = _empty_output(input, weight, window, channels_last)
    if chosen == "depthwise":
        depthwise.forward((output,), input, weight, bias, *window)
    else:
        implicit_gemm.forward((output,), input, weight, bias, *window, groups)
    return output


def _by_matrix_product(input: Tensor, weight: Tensor, bias: Tensor | None, channels_last: bool) -> Tensor:
    if channels_last:
        return F.linear(input.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)
    filters = weight.expand(input.shape[0], -1, -1)
    pixels = input.flatten(2)
    maps = torch.bmm(filters, pixels) if bias is None else torch.baddbmm(bias[:, None], filters, pixels)
    return maps.unflatten(2, input.shape[2:])


def _conv2d_input_gradient(
    grad_output: Tensor,
    code: Tensor | None,
    weight: Tensor,
    input_shape: list[int],
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    pool: Pair,
    channels_last: bool,
) -> Tensor:
    window = Window.of(stride, padding, dilation)
    if not _by_kernel("conv2d_input_gradient", grad_output, weight, code, weight.shape, window, groups):
        input = empty_image(grad_output, input_shape, channels_last)
        needed = (True, False, False)
        gradients = _gradients_by_torch(grad_output, code, pool, input, weight, window, groups, needed)
        return in_format(gradients[0], channels_last)
    chosen = "implicit GEMM" if code is not None else algorithm(weight.shape, window, groups, grad_output)
    if chosen == "matrix product":
        return in_format(_by_matrix_product(grad_output, weight.flatten(1).t(), None, channels_last), channels_last)
    grad_input = empty_image(grad_output, input_shape, channels_last)
    if chosen == "depthwise":
        depthwise.input_gradient((grad_input,), grad_output, weight, *window)
    else:
        implicit_gemm.input_gradient((grad_input,), grad_output, code, weight, *window, groups, (pool[0], pool[1]))
    return grad_input


def _conv2d_weight_gradient(
    grad_output: Tensor,
    code: Tensor | None,
    input: Tensor,
    weight_shape: list[int],
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    pool: Pair,
    channels_last: bool,
    bias: bool,
) -> tuple[Tensor, Tensor]:
    window = Window.of(stride, padding, dilation)
    grad_bias = input.new_empty(weight_shape[0] if bias else 0)
    if not _by_kernel("conv2d_weight_gradient", grad_output, input, code, weight_shape, window, groups):
        weight = empty_image(input, weight_shape, channels_last)
        needed = (False, True, bias)
        gradients = _gradients_by_torch(grad_output, code, pool, input, weight, window, groups, needed)
        return in_format(gradients[1], channels_last), gradients[2] if bias else grad_bias
    chosen = "implicit GEMM" if code is not None else algorithm(tuple(weight_shape), window, groups, input)
    if chosen == "matrix product":
        product = torch.tensordot(grad_output, input, dims=([0, 2, 3], [0, 2, 3])).view(weight_shape)
        return in_format(product, channels_last), grad_output.sum((0, 2, 3)) if bias else grad_bias
    outputs = (empty_image(input, weight_shape, channels_last), grad_bias)
    if chosen == "depthwise":
        depthwise.weight_gradient(outputs, grad_output, input, *window)
    else:
        weight_gradient.weight_gradient(outputs, grad_output, code, input, *window, groups, (pool[0], pool[1]))
    return outputs


def _by_kernel(
    operator: str,
    grad_output: Tensor,
    other: Tensor,
    code: Tensor | None,
    weight_shape: Sequence[int],
    window: Window,
    groups: int,
) -> bool:
    """Whether a kernel serves a gradient; "auto" takes cuDNN's after a fused forward pass, if it can read the map."""
    if backend.tensor_unsupported_reason(grad_output, other) is not None:
        return False
    if grad_output.device.type == "cpu":  # interpreted, also where the backend was asked for around the forward pass
        return True
    depthwise, last = groups > 1 and weight_shape[1] == 1, is_channels_last(grad_output, other)
    terms = math.prod(weight_shape[1:])
    call = backend.Call(operator, grad_output.numel(), terms, depthwise, last, pooled=code is not None)
    return backend.dispatch(call, (grad_output, other), *window, groups, code is not None).kernel


def _gradients_by_torch(
    grad_output: Tensor,
    code: Tensor | None,
    pool: Pair,
    input: Tensor,
    weight: Tensor,
    window: Window,
    groups: int,
    needed: Sequence[bool],
) -> Any:
    """Of the input, the weight and the bias; a tensor that the needed ones do not depend on gives its shape alone."""
    if code is not None:
        size = output_sizes(input.shape[2:], weight.shape[2:], window)
        grad_output = codes.expanded(grad_output, code, pool, size)
    return torch.ops.aten.convolution_backward(
        grad_output, input, weight, [weight.shape[0]], *window, False, (0, 0), groups, needed
    )


for _key in ("CPU", "CUDA"):
    LIBRARY.impl("conv2d", _conv2d, _key)
    LIBRARY.impl("conv2d_input_gradient", _conv2d_input_gradient, _key)
    LIBRARY.impl("conv2d_weight_gradient", _conv2d_weight_gradient, _key)


def _empty_output(input: Tensor, weight: Tensor, window: Window, channels_last: bool) -> Tensor:
    sizes = output_sizes(input.shape[2:], weight.shape[2:], window)
    return empty_image(input, (input.shape[0], weight.shape[0], *sizes), channels_last)


@register_fake("lightconv::conv2d", lib=LIBRARY)
def _(input: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    return _empty_output(input, weight, Window.of(*options[:3]), is_channels_last(input, weight))


@register_fake("lightconv::conv2d_input_gradient", lib=LIBRARY)
def _(grad_output: Tensor, code: Tensor | None, weight: Tensor, input_shape: list[int], *options: Any) -> Tensor:
    return empty_image(grad_output, input_shape, channels_last=options[-1])


@register_fake("lightconv::conv2d_weight_gradient", lib=LIBRARY)
def _(
    grad_output: Tensor, code: Tensor | None, input: Tensor, weight_shape: list[int], *options: Any
) -> tuple[Tensor, Tensor]:
    *_, channels_last, bias = options
    return empty_image(input, weight_shape, channels_last), input.new_empty(weight_shape[0] if bias else 0)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weight, _, *ctx.options = inputs
    ctx.input_shape, ctx.weight_shape = input.shape, weight.shape
    ctx.channels_last = is_channels_last(input, weight)
    needs_input, needs_weight = ctx.needs_input_grad[:2]
    ctx.save_for_backward(input if needs_weight else None, weight if needs_input else None)


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    return *gradients(ctx, grad_output, None, *ctx.saved_tensors), None, None, None, None


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def gradients(
    ctx: Any,
    grad_output: Tensor,
    code: Tensor | None,
    input: Tensor | None,
    weight: Tensor | None,
    pool: Pair = (1, 1),
) -> Gradients:
    """The gradients that a convolution's context asks for: of the input, the weight and the bias."""
    needs_input, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    # the operators would drop a forward-mode tangent of the gradient
    if backend.transform_unsupported_reason() is not None:
        input = grad_output.new_empty(ctx.input_shape) if input is None else input
        weight = grad_output.new_empty(ctx.weight_shape) if weight is None else weight
        *pairs, groups = ctx.options
        needed = (needs_input, needs_weight, needs_bias)
        return _gradients_by_torch(grad_output, code, pool, input, weight, Window.of(*pairs), groups, needed)
    if code is not None and ctx.weight_shape[1] >= _EXPANDED_FROM and (needs_input or needs_weight):
        grad_output, code, pool = _expanded(ctx, grad_output, code, pool), None, (1, 1)
    options = (*ctx.options, pool, ctx.channels_last)
    grad_input = grad_weight = grad_bias = None
    if needs_input:
        grad_input = torch.ops.lightconv.conv2d_input_gradient(grad_output, code, weight, ctx.input_shape, *options)
    if needs_weight:
        grad_weight, grad_bias = torch.ops.lightconv.conv2d_weight_gradient(
            grad_output, code, input, ctx.weight_shape, *options, needs_bias
        )
    elif needs_bias:
        alive = grad_output if code is None else torch.where(code == codes.KILLED, 0, grad_output)
        grad_bias = alive.sum((0, 2, 3))
    return grad_input, grad_weight, grad_bias if needs_bias else None


def _expanded(ctx: Any, grad_output: Tensor, code: Tensor, pool: Pair) -> Tensor:
    """The gradient of the map before pooling: windows that ReLU killed name no pixel."""
    size = output_sizes(ctx.input_shape[2:], ctx.weight_shape[2:], Window.of(*ctx.options[:3]))
    shape = (*grad_output.shape[:2], *size)
    return torch.ops.lightconv.max_pool2d_backward(
        grad_output, code, shape, pool, pool, (0, 0), (1, 1), False, ctx.channels_last
    )


def _input_gradient_setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad_output, code, weight, _, *ctx.options, ctx.pool, ctx.channels_last = inputs
    ctx.weight_shape = weight.shape
    ctx.save_for_backward(grad_output, code, weight)


def _input_gradient_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_output, code, weight = ctx.saved_tensors
    needs_grad_output, _, needs_weight = ctx.needs_input_grad[:3]
    to_grad_output = to_weight = None
    if needs_grad_output:
        to_grad_output = _pooled(torch.ops.lightconv.conv2d(grad, weight, None, *ctx.options), code, ctx.pool)
    if needs_weight:
        to_weight, _ = torch.ops.lightconv.conv2d_weight_gradient(
            grad_output, code, grad, ctx.weight_shape, *ctx.options, ctx.pool, ctx.channels_last, False
        )
    return to_grad_output, None, to_weight, *[None] * 7


def _weight_gradient_setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    grad_output, code, input, _, *ctx.options, ctx.pool, ctx.channels_last, ctx.bias = inputs
    ctx.input_shape = input.shape
    ctx.save_for_backward(grad_output, code, input)


def _weight_gradient_backward(ctx: Any, grad: Tensor, grad_bias: Tensor) -> tuple[Tensor | None, ...]:
    grad_output, code, input = ctx.saved_tensors
    needs_grad_output, _, needs_input = ctx.needs_input_grad[:3]
    to_grad_output = to_input = None
    if needs_grad_output:
        maps = torch.ops.lightconv.conv2d(input, grad, grad_bias if ctx.bias else None, *ctx.options)
        to_grad_output = _pooled(maps, code, ctx.pool)
    if needs_input:
        to_input = torch.ops.lightconv.conv2d_input_gradient(
            grad_output, code, grad, ctx.input_shape, *ctx.options, ctx.pool, ctx.channels_last
        )
    return to_grad_output, None, to_input, *[None] * 8


def _pooled(maps: Tensor, code: Tensor | None, pool: Pair) -> Tensor:
    return maps if code is None else codes.selected(maps, code, pool)


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


def register_autocast(name: str) -> None:
    """Let an operator of (input, weight, bias, ...) be lowered as `lowered` says, on every device."""
    # torch.library.register_autocast fixes the dtype once; torch's own convolution follows the context's
    for device in ("cpu", "cuda"):
        key = f"Autocast{device.upper()}"

        def autocast(
            input: Tensor, weight: Tensor, bias: Tensor | None, *options: Any, device: str = device, key: str = key
        ) -> Any:
            with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))):
                return getattr(torch.ops.lightconv, name)(*lowered(device, input, weight, bias), *options)

        LIBRARY.impl(name, autocast, key)


register_autocast("conv2d")
