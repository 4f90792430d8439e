"""Rectangles, one an image, in shares of its width and height."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_TRIES = 10


def draw_sides(
    n: int, size: tuple[int, int], area: tuple[float, float], aspect: tuple[float, float], generator: torch.Generator
) -> Float[Tensor, "n 2"]:
    """Draw rectangles whose area is uniform, and the logarithm of their aspect too.

    Of ten tries, the first that fits into the image counts, as in torchvision's RandomResizedCrop and RandomErasing; if
    none does, the first is cut to the image.

    Args:
        n: how many.
        size: height and width of the images in pixels.
        area: smallest and largest share of the image's area.
        aspect: smallest and largest width over height, in pixels.
        generator: of the draws.

    Returns:
        Width and height of each.
    """
    height, width = size
    drawn = torch.rand(2, n, _TRIES, generator=generator, device=generator.device)
    areas = area[0] + (area[1] - area[0]) * drawn[0]
    aspects = torch.exp(math.log(aspect[0]) + math.log(aspect[1] / aspect[0]) * drawn[1]) * height / width
    sides = torch.stack(((areas * aspects).sqrt(), (areas / aspects).sqrt()), 2)
    first = (sides <= 1).all(2).int().argmax(1)  # the first of equals
    return sides.gather(1, first[:, None, None].expand(-1, 1, 2))[:, 0].clamp(max=1)


def within(start: Float[Tensor, "n 2"], sides: Float[Tensor, "n 2"], size: tuple[int, int]) -> Bool[Tensor, "n 1 h w"]:
    """Which pixels have their centres in rectangles.

    Args:
        start: left and top edge of each.
        sides: width and height of each.
        size: height and width of the images in pixels.
    """
    height, width = size
    columns, rows = (
        ((torch.arange(length, device=start.device) + 0.5) / length - start[:, axis, None]).unsqueeze(1)
        for axis, length in ((0, width), (1, height))
    )
    inside_columns = (columns >= 0) & (columns < sides[:, :1, None])
    inside_rows = (rows >= 0) & (rows < sides[:, 1:, None])
    return inside_rows[..., None] & inside_columns[:, :, None]
