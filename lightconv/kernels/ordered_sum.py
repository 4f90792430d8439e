"""The second pass of every split sum: partial results, added always in the same order.

    output[i] = sum over splits of  workspace[split, i]

Splitting a long sum over blocks fills the GPU; adding the parts with atomics would be slower and would give other bits
each time (see torch.use_deterministic_algorithms).
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightconv.kernels.launch import on_device

_AT_ONCE = 1024  # elements that a block loads; of many parts, as one after the other would each wait for memory
_PARTS_AT_ONCE = 32
_WARPS = 4


@triton.jit
def _kernel(workspace, weight, bias, weights, elements, splits, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = element < elements
    clamped = tl.where(inside, element, 0)
    total = tl.zeros((PARTS, BLOCK), tl.float32)
    for first in range(0, splits, PARTS):
        split = first + tl.arange(0, PARTS)
        there = (split < splits)[:, None] & inside[None, :]
        part = tl.where(split < splits, split, 0).to(tl.int64) * elements
        total += tl.load(workspace + part[:, None] + clamped[None, :], mask=there, other=0.0)
    total = tl.sum(total, 0)
    is_weight = element < weights
    is_bias = inside & (element >= weights)
    tl.store(weight + tl.where(is_weight, element, 0), total.to(weight.dtype.element_ty), mask=is_weight)
    tl.store(bias + tl.where(is_bias, element - weights, 0), total.to(bias.dtype.element_ty), mask=is_bias)


class Parts(NamedTuple):
    """Where the parts of a sum are written: the weight's and the bias's first part, and how far apart parts lie."""

    weight: Tensor
    bias: Tensor
    stride: int


def parts_of(splits: int, weight: Tensor, bias: Tensor) -> Parts:
    """Room for the parts of a dense weight and its (perhaps empty) bias; a single part is written where it belongs.

    A part holds the weight's elements in their order in memory, then the bias's.
    """
    if splits == 1:
        return Parts(weight, bias, 0)
    room = torch.empty((splits, weight.numel() + bias.numel()), dtype=torch.float32, device=weight.device)
    return Parts(room, room[:, weight.numel() :], room.stride(0))


def add(parts: Parts, weight: Tensor, bias: Tensor) -> None:
    """Write the sum of the parts into the weight and the bias, unless the only one stands there already."""
    if parts.weight is weight:
        return
    splits, elements = parts.weight.shape
    together = min(_PARTS_AT_ONCE, triton.next_power_of_2(splits))
    block = _AT_ONCE // together
    with on_device(weight):
        _kernel[(triton.cdiv(elements, block),)](
            parts.weight, weight, bias if bias.numel() else weight, weight.numel(), elements, splits,
            together, block, num_warps=_WARPS,
        )  # fmt: skip
