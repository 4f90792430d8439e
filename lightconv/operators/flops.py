"""Formulas for torch.utils.flop_counter and Lightning's summaries: lightconv's convolutions count as torch's."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from lightconv.kernels.window import Window
from lightconv.operators import conv2d, conv_block  # noqa: F401 - define the operators
from lightconv.operators.geometry import output_sizes


def _flops(input_shape: Sequence[int], weight_shape: Sequence[int], options: Sequence[Any]) -> int:
    """Count two operations per product that a convolution, or one of its gradients, sums."""
    stride, padding, dilation, *_ = options
    height, width = output_sizes(input_shape[2:], weight_shape[2:], Window.of(stride, padding, dilation))
    return 2 * input_shape[0] * height * width * math.prod(weight_shape)


@register_flop_formula([torch.ops.lightconv.conv2d, torch.ops.lightconv.conv_block])
def _(input_shape: Any, weight_shape: Any, bias_shape: Any, *options: Any, **_: Any) -> int:
    return _flops(input_shape, weight_shape, options)


@register_flop_formula(torch.ops.lightconv.conv2d_input_gradient)
def _(grad_shape: Any, argmax_shape: Any, weight_shape: Any, input_shape: Any, *options: Any, **_: Any) -> int:
    return _flops(input_shape, weight_shape, options)


@register_flop_formula(torch.ops.lightconv.conv2d_weight_gradient)
def _(grad_shape: Any, argmax_shape: Any, input_shape: Any, weight_shape: Any, *options: Any, **_: Any) -> int:
    return _flops(input_shape, weight_shape, options)
