"""The byte that a pooled block keeps of every element of its result, in torch expressions.

    0 .. 254    the position, row by row, of the pixel in its pooling window that was kept
    255         ReLU stopped the gradient

With it the gradient of the map before pooling is known from the pooled map's gradient: `expanded`. Its adjoint,
`selected`, reads a map where the bytes say. Windows do not overlap; what they leave over has no gradient.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightconv.kernels.window import Pair

KILLED = 255


def pooled_with_code(maps: Tensor, pool: Pair, relu: bool) -> tuple[Tensor, Tensor]:
    """Max-pool by torch: the values before their activation, and the byte of each."""
    values, indices = F.max_pool2d(maps, pool, return_indices=True) if pool != (1, 1) else (maps, None)
    if indices is None:
        position = torch.zeros_like(values, dtype=torch.uint8)
    else:
        width = maps.shape[3]
        position = (indices // width % pool[0] * pool[1] + indices % width % pool[1]).to(torch.uint8)
    return values, torch.where(values <= 0, KILLED, position) if relu else position


def expanded(pooled: Tensor, code: Tensor, pool: Pair, size: Pair) -> Tensor:
    """Put every pooled element at its pixel of a map of the given size, zeros elsewhere."""
    rows, columns = (torch.arange(n * p, device=pooled.device) % p for n, p in zip(pooled.shape[2:], pool, strict=True))
    position = rows[:, None] * pool[1] + columns
    spread = [t.repeat_interleave(pool[0], 2).repeat_interleave(pool[1], 3) for t in (pooled, code)]
    maps = torch.where(spread[1] == position, spread[0], 0)
    return F.pad(maps, (0, size[1] - maps.shape[3], 0, size[0] - maps.shape[2]))


def selected(maps: Tensor, code: Tensor, pool: Pair) -> Tensor:
    """Read every window's pixel, 0 where the byte is 255."""
    (height, width), (p, q) = code.shape[2:], pool
    windows = maps[:, :, : height * p, : width * q].unflatten(3, (width, q)).unflatten(2, (height, p))
    windows = windows.transpose(3, 4).flatten(4)
    at = torch.where(code == KILLED, 0, code).long().unsqueeze(-1)
    return torch.where(code == KILLED, 0, windows.gather(4, at).squeeze(-1))
