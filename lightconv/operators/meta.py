"""Tensors on torch's meta device: shape, strides and dtype without memory."""

import torch
from torch import Tensor


def on_meta(tensor: Tensor) -> Tensor:
    """Return a leaf tensor of the same shape, strides, dtype and ``requires_grad`` on the meta device."""
    twin = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    return twin.requires_grad_(tensor.requires_grad)
