"""lightconv::conv2d, equal to torch.nn.functional.conv2d, and its two gradients as separate operators.

    conv2d(x, w, b)                       aten::convolution(x, w, b, stride, padding, dilation, False, [0, 0], groups)
    conv2d_input_gradient(g, argmax, w)   aten::convolution_backward(g, x, w, ...)[0]; needs only the shape of x
    conv2d_weight_gradient(g, argmax, x)  aten::convolution_backward(g, x, w, ...)[1:]; needs only the shape of w

Each of the three is linear in each of its tensors, and its gradients are the other two. Derivatives of any order
therefore stay within them.

With an argmax, `g` is the gradient of a pooled map: see `lightconv.operators.window_argmax`. Both gradients can un-pool
it as they read, once per tap and per block of channels or filters. With few channels, that moves fewer bytes than
writing the un-pooled gradient once; with many channels, it moves more.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightconv.kernels.argmax import KILLED
from lightconv.kernels.window import Pair, Window
from lightconv.operators import backend, window_argmax
from lightconv.operators.geometry import empty_image, in_format, is_channels_last, is_integer, output_sizes
from lightconv.operators.library import LIBRARY, backward_of, fake_of, implementation_of
from lightconv.operators.triton_kernels import depthwise, implicit_gemm, weight_gradient

_UNPOOL_CHANNELS = (
    16  # channels per group from which the un-pooled gradient is written once, for both gradients to read
)

# torch.library has no type for a Window: its parts are three int lists here, and only here
_WINDOW = "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, SymInt groups"
_POOLED = f"{_WINDOW}, SymInt[2] pool, bool channels_last"
LIBRARY.define(f"conv2d(Tensor input, Tensor weight, Tensor? bias, {_WINDOW}) -> Tensor")
LIBRARY.define(
    f"conv2d_input_gradient(Tensor grad_output, Tensor? argmax, Tensor weight, SymInt[] input_shape, {_POOLED})"
    " -> Tensor"
)
LIBRARY.define(
    "conv2d_weight_gradient(Tensor grad_output, Tensor? argmax, Tensor input, SymInt[] weight_shape, "
    f"{_POOLED}, bool bias) -> (Tensor, Tensor)"
)

Algorithm = Literal["depthwise", "matrix product", "implicit GEMM"]
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Gradients of the input, the weight and the bias; None for a gradient that is not needed."""


def operator_unsupported_reason(
    input: Tensor, weight: Tensor, bias: Tensor | None, window: Window, groups: int
) -> str | None:
    """Return the reason no kernel can serve this convolution, or None."""
    if input.dim() != 4 or weight.dim() != 4:
        return "input is not a batch of images, (n, c, h, w), or weight not a bank of filters, (k, c, r, s)"
    filters, channels = weight.shape[:2]
    if not is_integer(groups):
        return "groups is not an integer"
    if groups < 1 or channels * groups != input.shape[1] or filters % groups != 0:
        return "the channels or the filters do not match the groups"
    if bias is not None and bias.shape != (filters,):
        return "the bias does not have one value per filter"
    if min(output_sizes(input.shape[2:], weight.shape[2:], window)) < 1:
        return "the filter is larger than the padded image"
    return backend.tensor_unsupported_reason(input, weight, bias)


def dispatch(input: Tensor, weight: Tensor, bias: Tensor | None, window: Window, groups: int) -> backend.Dispatch:
    """Decide if a kernel or torch serves this convolution.

    Args:
        input: batch of images, (n, c, h, w).
        weight: filters, (k, c / groups, r, s).
        bias: one value per filter, or None.
        window: stride, padding and dilation.
        groups: number of independent groups of channels and filters.
    """
    reason = operator_unsupported_reason(input, weight, bias, window, groups)
    if reason is not None:
        return backend.Dispatch(False, reason)
    call = backend.Call(
        "conv2d",
        input.numel(),
        products=math.prod(weight.shape[1:]),
        depthwise=_is_depthwise(weight.shape, groups),
        channels_last=is_channels_last(input, weight),
    )
    return backend.dispatch(call, (input, weight, bias), *window, groups)


def algorithm(weight_shape: Sequence[int], window: Window, groups: int, like: Tensor) -> Algorithm:
    """Return lightconv's algorithm for a convolution and its gradients.

    A 1x1 convolution is already a matrix product, and torch computes it. There are two exceptions: torch's switches ask
    for different precisions of convolutions and matrix products, or for deterministic algorithms, under which torch may
    reject the product.

    Args:
        weight_shape: shape of the filters, (k, c / groups, r, s).
        window: stride, padding and dilation.
        groups: number of independent groups.
        like: any of the convolution's tensors, for device and dtype.
    """
    if _is_depthwise(weight_shape, groups):
        return "depthwise"
    if groups > 1 or tuple(weight_shape[2:]) != (1, 1) or window != Window((1, 1), (0, 0), (1, 1)):
        return "implicit GEMM"
    # a meta tensor has a shape alone: answer as for a GPU
    if like.device.type not in {"cuda", "meta"}:
        return "matrix product"
    if torch.are_deterministic_algorithms_enabled():
        return "implicit GEMM"
    if like.dtype is torch.float32:
        convolution_precision = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
        product_precision = torch.backends.cuda.matmul.fp32_precision
        if (convolution_precision == "tf32") != (product_precision == "tf32"):
            return "implicit GEMM"
    return "matrix product"


def _is_depthwise(weight_shape: Sequence[int], groups: int) -> bool:
    return groups > 1 and weight_shape[1] == 1


@implementation_of("conv2d")
def _conv2d(input: Tensor, weight: Tensor, bias: Tensor | None, window: Window, groups: int) -> Tensor:
    # only in a direct call: lightconv.functional asks before it calls the operator
    if operator_unsupported_reason(input, weight, bias, window, groups) is not None:
        output = torch.convolution(input, weight, bias, *window, False, (0, 0), groups)
        return in_format(output, is_channels_last(input, weight))
    chosen = algorithm(weight.shape, window, groups, input)
    if chosen == "matrix product":
        return _matrix_product(input, weight.flatten(1), bias, is_channels_last(input, weight))
    output = _empty_output(input, weight, bias, window, groups)
    if chosen == "depthwise":
        depthwise.forward((output,), input, weight, bias, window=window)
    else:
        implicit_gemm.forward((output,), input, weight, bias, window=window, groups=groups)
    return output


def _matrix_product(input: Tensor, weight: Tensor, bias: Tensor | None, channels_last: bool) -> Tensor:
    """Convolve images, (n, c, h, w), with 1x1 filters, (k, c)."""
    if channels_last:
        # (n, h, w, c) @ (c, k) -> (n, h, w, k) -> (n, k, h, w): the strides are channels_last
        maps = F.linear(input.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)
        return in_format(maps, channels_last)
    filters = weight.expand(input.shape[0], -1, -1)  # (k, c) -> (n, k, c)
    pixels = input.flatten(2)  # (n, c, h, w) -> (n, c, h * w)
    # (n, k, c) @ (n, c, h * w) -> (n, k, h * w)
    maps = torch.bmm(filters, pixels) if bias is None else torch.baddbmm(bias[:, None], filters, pixels)
    return in_format(maps.unflatten(2, input.shape[2:]), channels_last)


@implementation_of("conv2d_input_gradient")
def _conv2d_input_gradient(
    grad_output: Tensor,
    argmax: Tensor | None,
    weight: Tensor,
    input_shape: list[int],
    window: Window,
    groups: int,
    pool: Pair,
    channels_last: bool,
) -> Tensor:
    if not _kernel_serves_gradient("conv2d_input_gradient", grad_output, argmax, weight, weight.shape, window, groups):
        grad_input, _, _ = _gradients_by_torch(
            grad_output,
            argmax,
            input=empty_image(grad_output, input_shape, channels_last),  # only its shape counts
            weight=weight,
            window=window,
            groups=groups,
            pool=pool,
            needed=(True, False, False),
        )
        return in_format(grad_input, channels_last)
    chosen = _gradient_algorithm(argmax, weight.shape, window, groups, grad_output)
    if chosen == "matrix product":
        # (k, c) -> (c, k): the gradient is itself a 1x1 convolution, with channels and filters exchanged
        return _matrix_product(grad_output, weight.flatten(1).t(), None, channels_last)
    grad_input = empty_image(grad_output, input_shape, channels_last)
    if chosen == "depthwise":
        depthwise.input_gradient((grad_input,), grad_output, weight, window=window)
    else:
        implicit_gemm.input_gradient(
            (grad_input,),
            grad_output,
            argmax,
            weight,
            window=window,
            groups=groups,
            pool=(pool[0], pool[1]),
        )
    return grad_input


@implementation_of("conv2d_weight_gradient")
def _conv2d_weight_gradient(
    grad_output: Tensor,
    argmax: Tensor | None,
    input: Tensor,
    weight_shape: list[int],
    window: Window,
    groups: int,
    pool: Pair,
    channels_last: bool,
    bias: bool,
) -> tuple[Tensor, Tensor]:
    if not _kernel_serves_gradient("conv2d_weight_gradient", grad_output, argmax, input, weight_shape, window, groups):
        _, grad_weight, grad_bias = _gradients_by_torch(
            grad_output,
            argmax,
            input=input,
            weight=empty_image(input, weight_shape, channels_last),  # only its shape counts
            window=window,
            groups=groups,
            pool=pool,
            needed=(False, True, bias),
        )
        return in_format(grad_weight, channels_last), grad_bias if bias else input.new_empty(0)
    chosen = _gradient_algorithm(argmax, weight_shape, window, groups, input)
    if chosen == "matrix product":
        # (n, k, oh, ow), (n, c, oh, ow) -> (k, c)
        product = torch.tensordot(grad_output, input, dims=([0, 2, 3], [0, 2, 3])).view(weight_shape)
        grad_bias = grad_output.sum((0, 2, 3)) if bias else input.new_empty(0)
        return in_format(product, channels_last), grad_bias
    grad_weight, grad_bias = _empty_weight_gradient(grad_output, argmax, input, weight_shape, channels_last, bias)
    outputs = (grad_weight, grad_bias if bias else None)
    if chosen == "depthwise":
        depthwise.weight_gradient(outputs, grad_output, input, window=window)
    else:
        weight_gradient.weight_gradient(
            outputs,
            grad_output,
            argmax,
            input,
            window=window,
            groups=groups,
            pool=(pool[0], pool[1]),
        )
    return grad_weight, grad_bias


def _kernel_serves_gradient(
    operator: str,
    grad_output: Tensor,
    argmax: Tensor | None,
    other: Tensor,
    weight_shape: Sequence[int],
    window: Window,
    groups: int,
) -> bool:
    """Return True if a kernel serves a gradient.

    Backend "auto" may take cuDNN's gradient after a fused forward pass, but only if the un-pooled gradient was written.
    """
    if backend.tensor_unsupported_reason(grad_output, other) is not None:
        return False
    # Interpreter: use the kernel even if use_backend() wrapped only the forward pass.
    if grad_output.device.type == "cpu":
        return True
    call = backend.Call(
        operator,
        grad_output.numel(),
        products=math.prod(weight_shape[1:]),
        depthwise=_is_depthwise(weight_shape, groups),
        channels_last=is_channels_last(grad_output, other),
        pooled=argmax is not None,
    )
    return backend.dispatch(call, (grad_output, other), *window, groups, argmax is not None).use_kernel


def _gradient_algorithm(
    argmax: Tensor | None, weight_shape: Sequence[int], window: Window, groups: int, like: Tensor
) -> Algorithm:
    # only the implicit GEMM un-pools as it reads
    if argmax is not None:
        return "implicit GEMM"
    return algorithm(weight_shape, window, groups, like)


def _gradients_by_torch(
    grad_output: Tensor,
    argmax: Tensor | None,
    *,
    input: Tensor,
    weight: Tensor,
    window: Window,
    groups: int,
    pool: Pair,
    needed: tuple[bool, bool, bool],
) -> Any:
    """Return the gradients of the input, the weight and the bias by torch, None for those not needed.

    If no needed gradient depends on a tensor's values, its shape is enough.
    """
    if argmax is not None:
        size = output_sizes(input.shape[2:], weight.shape[2:], window)
        grad_output = window_argmax.unpool(grad_output, argmax, pool, size)
    return torch.ops.aten.convolution_backward(
        grad_output, input, weight, [weight.shape[0]], *window, False, (0, 0), groups, needed
    )


@fake_of("conv2d")
def _empty_output(input: Tensor, weight: Tensor, bias: Tensor | None, window: Window, groups: int) -> Tensor:
    height, width = output_sizes(input.shape[2:], weight.shape[2:], window)
    shape = (input.shape[0], weight.shape[0], height, width)
    return empty_image(input, shape, is_channels_last(input, weight))


@fake_of("conv2d_input_gradient")
def _(grad_output: Tensor, argmax: Tensor | None, weight: Tensor, input_shape: list[int], *options: Any) -> Tensor:
    *_, channels_last = options
    return empty_image(grad_output, input_shape, channels_last)


@fake_of("conv2d_weight_gradient")
def _empty_weight_gradient(
    grad_output: Tensor, argmax: Tensor | None, input: Tensor, weight_shape: list[int], *options: Any
) -> tuple[Tensor, Tensor]:
    *_, channels_last, bias = options
    # the schema returns two tensors: without a bias, the second is empty
    grad_bias = input.new_empty(weight_shape[0] if bias else 0)
    return empty_image(input, weight_shape, channels_last), grad_bias


def save_for_gradients(ctx: Any, input: Tensor, weight: Tensor, window: Sequence[Any], groups: int) -> None:
    """Keep a convolution's geometry on a context, for `gradients`.

    Args:
        ctx: autograd context of an operator whose first arguments are input, weight and bias.
        input: images.
        weight: filters.
        window: stride, padding and dilation, as the dispatcher passes them.
        groups: number of independent groups.
    """
    ctx.input_shape = input.shape
    ctx.weight_shape = weight.shape
    ctx.window = Window.of(*window)
    ctx.groups = groups
    ctx.channels_last = is_channels_last(input, weight)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weight, _, *window, groups = inputs
    save_for_gradients(ctx, input, weight, window, groups)
    needs_input, needs_weight, *_ = ctx.needs_input_grad
    # the gradient of the weight reads the input, and the gradient of the input reads the weight
    ctx.save_for_backward(input if needs_weight else None, weight if needs_input else None)


@backward_of("conv2d", setup_context=_setup_context)
def _(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    input, weight = ctx.saved_tensors
    # no gradient: stride, padding, dilation, groups
    return *gradients(ctx, grad_output, None, input, weight), *[None] * 4


def gradients(
    ctx: Any,
    grad_output: Tensor,
    argmax: Tensor | None,
    input: Tensor | None,
    weight: Tensor | None,
    pool: Pair = (1, 1),
) -> Gradients:
    """Compute the needed gradients of a convolution or a block.

    Args:
        ctx: context filled by `save_for_gradients`.
        grad_output: gradient of the convolution's output; with an argmax, of the pooled output before its activation.
        argmax: window argmax of the pooled output, or None.
        input: images; None unless the gradient of the weight is needed.
        weight: filters; None unless the gradient of the input is needed.
        pool: size and stride of the pooling window, (h, w).
    """
    needs_input, needs_weight, needs_bias, *_ = ctx.needs_input_grad
    # the operators would drop a forward-mode tangent of the gradient
    if backend.transform_unsupported_reason() is not None:
        return _gradients_by_torch(
            grad_output,
            argmax,
            # a tensor that was not saved is not read: its shape is enough
            input=grad_output.new_empty(ctx.input_shape) if input is None else input,
            weight=grad_output.new_empty(ctx.weight_shape) if weight is None else weight,
            window=ctx.window,
            groups=ctx.groups,
            pool=pool,
            needed=(needs_input, needs_weight, needs_bias),
        )
    if argmax is not None and ctx.weight_shape[1] >= _UNPOOL_CHANNELS and (needs_input or needs_weight):
        grad_output = _unpool(ctx, grad_output, argmax, pool)
        argmax = None
        pool = (1, 1)
    options = (*ctx.window, ctx.groups, pool, ctx.channels_last)
    grad_input = grad_weight = grad_bias = None
    if needs_input:
        grad_input = torch.ops.lightconv.conv2d_input_gradient(grad_output, argmax, weight, ctx.input_shape, *options)
    if needs_weight:
        grad_weight, grad_bias = torch.ops.lightconv.conv2d_weight_gradient(
            grad_output, argmax, input, ctx.weight_shape, *options, needs_bias
        )
    elif needs_bias:
        # the bias alone needs no product: it is a sum over images and pixels
        alive = grad_output
        if argmax is not None:
            alive = torch.where(argmax == KILLED, 0, grad_output)
        grad_bias = alive.sum((0, 2, 3))
    return grad_input, grad_weight, grad_bias if needs_bias else None


def _unpool(ctx: Any, grad_output: Tensor, argmax: Tensor, pool: Pair) -> Tensor:
    """Write the gradient of the map before pooling: KILLED names no pixel, so those windows leave zeros."""
    size = output_sizes(ctx.input_shape[2:], ctx.weight_shape[2:], ctx.window)
    map_shape = (*grad_output.shape[:2], *size)
    side_by_side = Window(stride=pool, padding=(0, 0), dilation=(1, 1))
    return torch.ops.lightconv.max_pool2d_backward(
        grad_output, argmax, map_shape, pool, *side_by_side, False, ctx.channels_last
    )


def _input_gradient_setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad_output, argmax, weight, _, *ctx.window_and_groups, ctx.pool, ctx.channels_last = inputs
    ctx.weight_shape = weight.shape
    ctx.save_for_backward(grad_output, argmax, weight)


@backward_of("conv2d_input_gradient", setup_context=_input_gradient_setup_context)
def _(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_output, argmax, weight = ctx.saved_tensors
    needs_grad_output, _, needs_weight, *_ = ctx.needs_input_grad
    grad_grad_output = grad_weight = None
    if needs_grad_output:
        maps = torch.ops.lightconv.conv2d(grad, weight, None, *ctx.window_and_groups)
        # the adjoint of un-pooling
        grad_grad_output = _read(maps, argmax, ctx.pool)
    if needs_weight:
        grad_weight, _ = torch.ops.lightconv.conv2d_weight_gradient(
            grad_output, argmax, grad, ctx.weight_shape, *ctx.window_and_groups, ctx.pool, ctx.channels_last, False
        )
    # no gradient: argmax, and everything after the weight
    return grad_grad_output, None, grad_weight, *[None] * 7


def _weight_gradient_setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    grad_output, argmax, input, _, *ctx.window_and_groups, ctx.pool, ctx.channels_last, ctx.bias = inputs
    ctx.input_shape = input.shape
    ctx.save_for_backward(grad_output, argmax, input)


@backward_of("conv2d_weight_gradient", setup_context=_weight_gradient_setup_context)
def _(ctx: Any, grad: Tensor, grad_bias: Tensor) -> tuple[Tensor | None, ...]:
    grad_output, argmax, input = ctx.saved_tensors
    needs_grad_output, _, needs_input, *_ = ctx.needs_input_grad
    grad_grad_output = grad_input = None
    if needs_grad_output:
        # without a bias, the second output is the empty tensor of the schema
        bias = grad_bias if ctx.bias else None
        maps = torch.ops.lightconv.conv2d(input, grad, bias, *ctx.window_and_groups)
        grad_grad_output = _read(maps, argmax, ctx.pool)
    if needs_input:
        grad_input = torch.ops.lightconv.conv2d_input_gradient(
            grad_output, argmax, grad, ctx.input_shape, *ctx.window_and_groups, ctx.pool, ctx.channels_last
        )
    # no gradient: argmax, and everything after the input
    return grad_grad_output, None, grad_input, *[None] * 8


def _read(maps: Tensor, argmax: Tensor | None, pool: Pair) -> Tensor:
    return maps if argmax is None else window_argmax.read(maps, argmax, pool)


def cast_for_autocast(device: str, *tensors: Tensor | None) -> list[Any]:
    """Cast tensors as torch's convolution does under autocast: all floating dtypes but float64 to autocast's."""
    dtype = torch.get_autocast_dtype(device)
    result: list[Any] = []
    for tensor in tensors:
        if tensor is not None and tensor.is_floating_point() and tensor.dtype is not torch.float64:
            result.append(tensor.to(dtype))
        else:
            result.append(tensor)
    return result


def register_autocast(name: str) -> None:
    """Apply `cast_for_autocast` to input, weight and bias of an operator, on every device.

    torch.library.register_autocast fixes the dtype at registration; torch's own convolution follows the context's.
    """
    for device in ("cpu", "cuda"):
        key = f"Autocast{device.upper()}"
        LIBRARY.impl(name, _autocast_call(name, device, getattr(torch._C.DispatchKey, key)), key)


def _autocast_call(name: str, device: str, key: Any) -> Callable[..., Any]:
    keys = torch._C.DispatchKeySet(key)

    def call(input: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Any:
        # without its own key, the call reaches the next one: autograd
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return getattr(torch.ops.lightconv, name)(*cast_for_autocast(device, input, weight, bias), *options)

    return call


register_autocast("conv2d")
