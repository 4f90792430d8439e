"""lightconv::conv_block: convolution, bias, activation and non-overlapping max-pooling as one operator.

    conv_block(x, w, b)    (max_pool2d(activation(conv2d(x, w, b)), pool), argmax), see `window_argmax`

A non-decreasing activation commutes with the maximum, so it is applied to the pooled map. The map before pooling is
never written. (If rounding makes two activations of one window equal, the gradient goes to the larger input instead of
the first.)

Backward multiplies the activation's derivative, taken from the result, into the pooled gradient. Then it calls the two
gradients of conv2d. With few channels, these un-pool the gradient as they read, so that the gradient of the map before
pooling is not written either.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightconv.kernels.window import Pair, Window
from lightconv.operators import backend, conv2d, window_argmax
from lightconv.operators.geometry import empty_image, in_format, is_channels_last, output_sizes
from lightconv.operators.library import LIBRARY, backward_of, fake_of, implementation_of
from lightconv.operators.triton_kernels import implicit_gemm

NON_DECREASING: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "relu": torch.relu,
    "leaky_relu": torch.nn.functional.leaky_relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}
# (grad, result) -> grad. Identity has no factor, and ReLU's is in the argmax: neither needs the result.
_DERIVATIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "leaky_relu": lambda grad, result: torch.ops.aten.leaky_relu_backward(grad, result, 0.01, True),
    "tanh": torch.ops.aten.tanh_backward,
    "sigmoid": torch.ops.aten.sigmoid_backward,
}
MAX_WINDOW = 16  # pixels of the largest pooling window: one block of the kernel holds the whole window

LIBRARY.define(
    "conv_block(Tensor input, Tensor weight, Tensor? bias, SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, "
    "SymInt groups, str activation, SymInt[2] pool) -> (Tensor output, Tensor argmax)"
)


def operator_unsupported_reason(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Window,
    groups: int,
    activation: str,
    pool: Pair,
) -> str | None:
    """Return the reason no kernel can serve this block as a whole, or None."""
    if activation not in NON_DECREASING:
        return f"no kernel for {activation}"
    if pool[0] * pool[1] > MAX_WINDOW:
        return f"a pooling window of more than {MAX_WINDOW} pixels"
    reason = conv2d.operator_unsupported_reason(input, weight, bias, window, groups)
    if reason is not None:
        return reason
    if groups > 1 and weight.shape[1] == 1:
        return "no fused kernel for depthwise convolution"
    if min(_pooled_size(input, weight, window, pool)) < 1:
        return "the pooling window is larger than the map"
    return None


def dispatch(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Window,
    groups: int,
    activation: str,
    pool: Pair,
) -> backend.Dispatch:
    """Decide if one kernel serves this block as a whole. If not, it is composed of convolution, activation and pooling.

    Args:
        input: batch of images, (n, c, h, w).
        weight: filters, (k, c / groups, r, s).
        bias: one value per filter, or None.
        window: stride, padding and dilation of the convolution.
        groups: number of independent groups of channels and filters.
        activation: name of the activation.
        pool: size and stride of the pooling window, (h, w).
    """
    reason = operator_unsupported_reason(input, weight, bias, window, groups, activation, pool)
    if reason is not None:
        return backend.Dispatch(False, reason)
    call = backend.Call("conv_block", input.numel(), products=math.prod(weight.shape[1:]), pooled=pool != (1, 1))
    return backend.dispatch(call, (input, weight, bias), *window, groups, activation, pool)


def _pooled_size(input: Tensor, weight: Tensor, window: Window, pool: Pair) -> Pair:
    height, width = output_sizes(input.shape[2:], weight.shape[2:], window)
    # rows and columns beyond the last whole window are dropped
    return height // pool[0], width // pool[1]


def _keeps_argmax(activation: str, pool: Pair) -> bool:
    """Return True if backward needs the window argmax."""
    return activation == "relu" or tuple(pool) != (1, 1)


@implementation_of("conv_block")
def _conv_block(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Window,
    groups: int,
    activation: str,
    pool: Pair,
) -> tuple[Tensor, Tensor]:
    # the dispatcher passes a list, and a list equals no tuple
    pool = (pool[0], pool[1])
    if operator_unsupported_reason(input, weight, bias, window, groups, activation, pool) is None:
        output, argmax = _empty_outputs(input, weight, bias, window, groups, activation, pool)
        outputs = (output, argmax) if _keeps_argmax(activation, pool) else (output,)
        implicit_gemm.forward(
            outputs,
            input,
            weight,
            bias,
            window=window,
            groups=groups,
            activation=activation,  # type: ignore[arg-type]
            pool=pool,
        )
        return output, argmax
    # only in a direct call: lightconv.functional asks before it calls the operator
    channels_last = is_channels_last(input, weight)
    maps = torch.convolution(input, weight, bias, *window, False, (0, 0), groups)
    values, argmax = window_argmax.max_pool(maps, pool, relu=activation == "relu")
    output = in_format(NON_DECREASING[activation](values), channels_last)
    if not _keeps_argmax(activation, pool):
        return output, _no_argmax(input)
    return output, in_format(argmax, channels_last)


@fake_of("conv_block")
def _empty_outputs(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Window,
    groups: int,
    activation: str,
    pool: Pair,
) -> tuple[Tensor, Tensor]:
    # (n, c, h, w) -> (n, k, oh // pool_h, ow // pool_w)
    shape = (input.shape[0], weight.shape[0], *_pooled_size(input, weight, window, pool))
    output = empty_image(input, shape, is_channels_last(input, weight))
    if not _keeps_argmax(activation, pool):
        return output, _no_argmax(input)
    return output, torch.empty_like(output, dtype=torch.uint8)


def _no_argmax(like: Tensor) -> Tensor:
    """Return the empty tensor that the schema's second output is if backward needs no argmax."""
    return like.new_empty(0, dtype=torch.uint8)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, weight, _, *window, groups, ctx.activation, ctx.pool = inputs
    result, argmax = output
    conv2d.save_for_gradients(ctx, input, weight, window, groups)
    # argmax has no gradient: do not allocate zeros for it
    ctx.set_materialize_grads(False)
    needs_input, needs_weight, *_ = ctx.needs_input_grad
    # the gradient of the weight reads the input, and the gradient of the input reads the weight
    ctx.save_for_backward(
        input if needs_weight else None,
        weight if needs_input else None,
        argmax if _keeps_argmax(ctx.activation, ctx.pool) else None,
        result if ctx.activation in _DERIVATIVES else None,
    )


@backward_of("conv_block", setup_context=_setup_context)
def _(ctx: Any, grad_output: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_output is None:
        return (None,) * 9
    input, weight, argmax, result = ctx.saved_tensors
    if ctx.activation in _DERIVATIVES:
        grad_output = _DERIVATIVES[ctx.activation](grad_output, result)
    # no gradient: stride, padding, dilation, groups, activation, pool
    return *conv2d.gradients(ctx, grad_output, argmax, input, weight, ctx.pool), *[None] * 6


conv2d.register_autocast("conv_block")
