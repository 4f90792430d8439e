"""The second pass of every split sum: partial results, one after the other, always in the same order.

    output[i] = sum over splits of  workspace[split, i]

Splitting a long sum over blocks fills the GPU; adding the parts with atomics would be slower and would give other bits
each time (see torch.use_deterministic_algorithms).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightconv.kernels.launch import on_device

_BLOCK = 256
_WARPS = 4


@triton.jit
def _kernel(workspace, weight, bias, weights, elements, splits, BLOCK: tl.constexpr):
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = element < elements
    clamped = tl.where(inside, element, 0)
    total = tl.zeros((BLOCK,), tl.float32)
    for split in range(splits):
        part = workspace + tl.full((), split, tl.int64) * elements
        total += tl.load(part + clamped, mask=inside, other=0.0)
    is_weight = element < weights
    is_bias = inside & (element >= weights)
    tl.store(weight + tl.where(is_weight, element, 0), total.to(weight.dtype.element_ty), mask=is_weight)
    tl.store(bias + tl.where(is_bias, element - weights, 0), total.to(bias.dtype.element_ty), mask=is_bias)


def workspace(splits: int, weight: Tensor, bias: Tensor) -> Tensor:
    """Room for the parts: a row a split, the weight's elements in their order in memory, then the bias's."""
    return torch.empty((splits, weight.numel() + bias.numel()), dtype=torch.float32, device=weight.device)


def ordered_sum(parts: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Write the sum over a workspace's rows into a dense weight and its (perhaps empty) bias."""
    splits, elements = parts.shape
    with on_device(parts):
        _kernel[(triton.cdiv(elements, _BLOCK),)](
            parts, weight, bias if bias.numel() else weight, weight.numel(), elements, splits, _BLOCK, num_warps=_WARPS
        )
