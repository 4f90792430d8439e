"""Window argmax of a pooled block: one byte per output element that backward keeps, in torch expressions.

    0 .. 254    position, row by row, of the maximum in its pooling window
    255         KILLED: ReLU stops the gradient

The gradient of the map before pooling follows from the pooled gradient and the argmax: `unpool`. Its adjoint is `read`.
Windows do not overlap. Pixels beyond the last whole window have no gradient.

A window argmax is not a plane index: torch's max-pooling returns int64 indices into the plane of h * w pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightconv.kernels.argmax import KILLED
from lightconv.kernels.window import Pair


def max_pool(maps: Tensor, pool: Pair, relu: bool) -> tuple[Tensor, Tensor]:
    """Max-pool maps, and compute the window argmax.

    Args:
        maps: maps before pooling and activation.
        pool: size and stride of the pooling window, (h, w).
        relu: True if ReLU follows: the argmax is KILLED for values up to 0.

    Returns:
        (values before their activation, uint8 argmax), both (n, k, h // pool_h, w // pool_w).
    """
    if pool == (1, 1):
        values = maps
        argmax = torch.zeros_like(values, dtype=torch.uint8)
    else:
        values, plane_index = F.max_pool2d(maps, pool, return_indices=True)
        width = maps.shape[3]
        row = plane_index // width % pool[0]
        column = plane_index % width % pool[1]
        argmax = (row * pool[1] + column).to(torch.uint8)
    if relu:
        argmax = torch.where(values <= 0, KILLED, argmax)
    return values, argmax


def unpool(pooled: Tensor, argmax: Tensor, pool: Pair, size: Pair) -> Tensor:
    """Put every pooled element at its pixel of a larger map, with zeros elsewhere.

    Args:
        pooled: elements to place, (n, k, h, w).
        argmax: window argmax of each element, same shape.
        pool: size and stride of the pooling window, (h, w).
        size: height and width of the result.
    """
    # every pixel's own position in its window: (h * pool_h, w * pool_w)
    rows = torch.arange(pooled.shape[2] * pool[0], device=pooled.device) % pool[0]
    columns = torch.arange(pooled.shape[3] * pool[1], device=pooled.device) % pool[1]
    position = rows[:, None] * pool[1] + columns
    # (n, k, h, w) -> (n, k, h * pool_h, w * pool_w)
    values_spread = pooled.repeat_interleave(pool[0], 2).repeat_interleave(pool[1], 3)
    argmax_spread = argmax.repeat_interleave(pool[0], 2).repeat_interleave(pool[1], 3)
    maps = torch.where(argmax_spread == position, values_spread, 0)
    return F.pad(maps, (0, size[1] - maps.shape[3], 0, size[0] - maps.shape[2]))


def read(maps: Tensor, argmax: Tensor, pool: Pair) -> Tensor:
    """Read the pixel that the argmax names in every window, 0 if it is KILLED.

    Args:
        maps: maps of the size before pooling.
        argmax: window argmax, (n, k, h, w).
        pool: size and stride of the pooling window, (h, w).
    """
    height, width = argmax.shape[2:]
    # (n, k, h * pool_h, w * pool_w) -> (n, k, h, w, pool_h * pool_w)
    windows = maps[:, :, : height * pool[0], : width * pool[1]]
    windows = windows.unflatten(3, (width, pool[1])).unflatten(2, (height, pool[0]))
    windows = windows.transpose(3, 4).flatten(4)
    killed = argmax == KILLED
    position = torch.where(killed, 0, argmax).long().unsqueeze(-1)
    return torch.where(killed, 0, windows.gather(4, position).squeeze(-1))
