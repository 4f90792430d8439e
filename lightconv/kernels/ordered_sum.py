"""Second pass of a split sum: add partial results in a fixed order.

    output[i] = sum over splits of  workspace[split, i]

A long sum is split over blocks to fill the GPU. Adding the parts with atomics would be slower and would give other bits
each time (see torch.use_deterministic_algorithms).
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightconv.kernels.launch import on_device

# A block loads many parts side by side: one after the other, each would wait for memory.
_LOADED_AT_ONCE = 1024  # elements per block and step
_MOST_PARTS_AT_ONCE = 32
_WARPS = 4


@triton.jit
def _kernel(
    workspace_ptr, weight_ptr, bias_ptr, weights, elements, splits, PARTS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = element < elements
    # clamped and masked: on sm_100 a masked copy still dereferences its address (pytorch/pytorch#187081)
    clamped = tl.where(inside, element, 0)
    total = tl.zeros((PARTS, BLOCK), tl.float32)
    for first in range(0, splits, PARTS):
        split = first + tl.arange(0, PARTS)
        part_in = (split < splits)[:, None] & inside[None, :]
        # a workspace may have more than 2**31 elements
        part_offset = tl.where(split < splits, split, 0).to(tl.int64) * elements
        # a tile of PARTS parts by BLOCK elements
        total += tl.load(workspace_ptr + part_offset[:, None] + clamped[None, :], mask=part_in, other=0.0)
    total = tl.sum(total, 0)  # (PARTS, BLOCK) -> (BLOCK,)
    # a part holds the weight's elements, then the bias's
    is_weight = element < weights
    is_bias = inside & (element >= weights)
    weight_ptrs = weight_ptr + tl.where(is_weight, element, 0)
    tl.store(weight_ptrs, total.to(weight_ptr.dtype.element_ty), mask=is_weight)
    bias_ptrs = bias_ptr + tl.where(is_bias, element - weights, 0)
    tl.store(bias_ptrs, total.to(bias_ptr.dtype.element_ty), mask=is_bias)


class Parts(NamedTuple):
    """Memory for the parts of a sum.

    Attributes:
        weight: first part of the weight; the parts of all splits if there are several.
        bias: first part of the bias; None without a bias.
        stride: elements from one part to the next; 0 for a single part.
    """

    weight: Tensor
    bias: Tensor | None
    stride: int


def allocate_parts(splits: int, weight: Tensor, bias: Tensor | None) -> Parts:
    """Allocate memory for the parts of a dense weight and its bias. A single part is written to its destination.

    A part holds the weight's elements in their order in memory, then the bias's.
    """
    if splits == 1:
        return Parts(weight, bias, 0)
    elements = weight.numel()
    if bias is not None:
        elements += bias.numel()
    workspace = torch.empty((splits, elements), dtype=torch.float32, device=weight.device)
    bias_parts = None if bias is None else workspace[:, weight.numel() :]
    return Parts(workspace, bias_parts, workspace.stride(0))


def add_parts(parts: Parts, weight: Tensor, bias: Tensor | None) -> None:
    """Write the sum of the parts to the weight and the bias. A single part is there already."""
    if parts.weight is weight:
        return
    splits, elements = parts.weight.shape
    parts_at_once = min(_MOST_PARTS_AT_ONCE, triton.next_power_of_2(splits))
    block = _LOADED_AT_ONCE // parts_at_once
    with on_device(weight):
        _kernel[(triton.cdiv(elements, block),)](
            workspace_ptr=parts.weight,
            weight_ptr=weight,
            bias_ptr=weight if bias is None else bias,  # without a bias its mask is False everywhere
            weights=weight.numel(),
            elements=elements,
            splits=splits,
            PARTS=parts_at_once,
            BLOCK=block,
            num_warps=_WARPS,
        )
