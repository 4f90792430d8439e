"""lightconv::conv_block: convolution, bias, activation and non-overlapping max-pooling as one operator.

    conv_block(x, w, b)    max_pool2d(activation(conv2d(x, w, b)), pool), and a byte an element (see `codes`)

A non-decreasing activation commutes with the maximum, so it is applied to the pooled map: the map before pooling is
never written. Backward is conv2d's two gradients, after the activation's derivative, taken from the result, has been
multiplied into the pooled gradient; where there are few channels, the map's gradient is not written either, they expand
the bytes as they read. (Where rounding makes two activations of one window equal, the gradient goes to the larger input
instead of the first.)
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import register_autograd, register_fake

from lightconv.kernels.window import Pair, Window
from lightconv.operators import backend, codes, conv2d
from lightconv.operators.geometry import empty_image, in_format, is_channels_last, output_sizes
from lightconv.operators.library import LIBRARY

if backend.TRITON:
    from lightconv.kernels import implicit_gemm

NON_DECREASING: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "relu": torch.relu,
    "leaky_relu": torch.nn.functional.leaky_relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}
# derivatives that need the result; identity has none, and ReLU's is in the byte
_DERIVATIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "leaky_relu": lambda grad, result: torch.ops.aten.leaky_relu_backward(grad, result, 0.01, True),
    "tanh": torch.ops.aten.tanh_backward,
    "sigmoid": torch.ops.aten.sigmoid_backward,
}
MAX_WINDOW = 16  # pixels of a pooling window, all of which one block holds

LIBRARY.define(
    "conv_block(Tensor input, Tensor weight, Tensor? bias, SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, "
    "SymInt groups, str activation, SymInt[2] pool) -> (Tensor, Tensor)"
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
    """Why no kernel can serve this block as a whole; None if one can."""
    if activation not in NON_DECREASING:
        return f"no kernel for {activation}"
    if pool[0] * pool[1] > MAX_WINDOW:
        return f"a pooling window of more than {MAX_WINDOW} pixels"
    reason = conv2d.operator_unsupported_reason(input, weight, bias, window, groups)
    if reason is None and groups > 1 and weight.shape[1] == 1:
        return "depthwise convolution is not fused"
    if reason is None and min(_sizes(input, weight, window, pool)) < 1:
        return "the pooling window is larger than the map"
    return reason


def dispatch(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Window,
    groups: int,
    activation: str,
    pool: Pair,
) -> backend.Dispatch:
    """Who serves this block as a whole, and why; where not a kernel, it is composed of its parts."""
    reason = operator_unsupported_reason(input, weight, bias, window, groups, activation, pool)
    if reason is not None:
        return backend.Dispatch(False, reason)
    terms = math.prod(weight.shape[1:])
    call = backend.Call("conv_block", input.numel(), terms, pooled=pool != (1, 1))
    return backend.dispatch(call, (input, weight, bias), *window, groups, activation, pool)


def _sizes(input: Tensor, weight: Tensor, window: Window, pool: Pair) -> Pair:
    height, width = output_sizes(input.shape[2:], weight.shape[2:], window)
    return height // pool[0], width // pool[1]


def _conv_block(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    activation: str,
    pool: Pair,
) -> tuple[Tensor, Tensor]:
    window, pool = Window.of(stride, padding, dilation), (pool[0], pool[1])
    if operator_unsupported_reason(input, weight, bias, window, groups, activation, pool) is None:
        output, code = _empty_outputs(input, weight, window, activation, pool)
        outputs = (output, code) if code.numel() else (output,)
        implicit_gemm.forward(outputs, input, weight, bias, *window, groups, activation, pool, input.dtype)
        return output, code
    channels_last = is_channels_last(input, weight)
    maps = torch.convolution(input, weight, bias, *window, False, (0, 0), groups)
    values, code = codes.pooled_with_code(maps, pool, relu=activation == "relu")
    output = in_format(NON_DECREASING[activation](values), channels_last)
    return output, in_format(code, channels_last) if _coded(activation, pool) else code.new_empty(0)


for _key in ("CPU", "CUDA"):
    LIBRARY.impl("conv_block", _conv_block, _key)


def _coded(activation: str, pool: Pair) -> bool:
    """Whether backward needs the bytes."""
    return activation == "relu" or tuple(pool) != (1, 1)


def _empty_outputs(input: Tensor, weight: Tensor, window: Window, activation: str, pool: Pair) -> tuple[Tensor, Tensor]:
    shape = (input.shape[0], weight.shape[0], *_sizes(input, weight, window, pool))
    output = empty_image(input, shape, is_channels_last(input, weight))
    code = torch.empty_like(output, dtype=torch.uint8) if _coded(activation, pool) else None
    return output, input.new_empty(0, dtype=torch.uint8) if code is None else code


@register_fake("lightconv::conv_block", lib=LIBRARY)
def _(input: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> tuple[Tensor, Tensor]:
    *pairs, _, activation, pool = options
    return _empty_outputs(input, weight, Window.of(*pairs), activation, pool)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, weight, _, *ctx.options, ctx.activation, ctx.pool = inputs
    result, code = output
    ctx.set_materialize_grads(False)  # the bytes have no gradient: none is to be filled with zeros
    ctx.input_shape, ctx.weight_shape = input.shape, weight.shape
    ctx.channels_last = is_channels_last(input, weight)
    needs_input, needs_weight = ctx.needs_input_grad[:2]
    ctx.save_for_backward(
        input if needs_weight else None,
        weight if needs_input else None,
        code if _coded(ctx.activation, ctx.pool) else None,
        result if ctx.activation in _DERIVATIVES else None,
    )


def _backward(ctx: Any, grad_output: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_output is None:
        return (None,) * 9
    input, weight, code, result = ctx.saved_tensors
    if ctx.activation in _DERIVATIVES:
        grad_output = _DERIVATIVES[ctx.activation](grad_output, result)
    return *conv2d.gradients(ctx, grad_output, code, input, weight, ctx.pool), *[None] * 6


register_autograd("lightconv::conv_block", _backward, setup_context=_setup_context, lib=LIBRARY)
conv2d.register_autocast("conv_block")
