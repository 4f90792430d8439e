"""Random rectangles, one per image, in fractions of its width and height."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_TRIES = 10


def draw_sides(
    n: int,
    size: tuple[int, int],
    area: tuple[float, float],
    aspect: tuple[float, float],
    generator: torch.Generator,
) -> Float[Tensor, "n 2"]:
    """Draw rectangles with uniform area and uniform logarithm of the aspect ratio.

    The first of ten tries that fits into the image counts, as in torchvision's RandomResizedCrop and RandomErasing. If
    none fits, the first try is clipped to the image.

    Args:
        n: number of rectangles.
        size: height and width of the images, in pixels.
        area: smallest and largest area, as fractions of the image's area.
        aspect: smallest and largest width over height, both in pixels.
        generator: source of randomness.

    Returns:
        Width and height of each rectangle, as fractions of the image's.
    """
    height, width = size
    # (n, tries) each
    uniform = torch.rand(2, n, _TRIES, generator=generator, device=generator.device)
    areas = area[0] + (area[1] - area[0]) * uniform[0]
    aspects = torch.exp(math.log(aspect[0]) + math.log(aspect[1] / aspect[0]) * uniform[1])
    aspects = aspects * height / width  # fractions of the sides instead of pixels
    # twice (n, tries) -> (n, tries, 2)
    sides = torch.stack(((areas * aspects).sqrt(), (areas / aspects).sqrt()), 2)
    fits = (sides <= 1).all(2)
    first = fits.int().argmax(1)  # of equal values, argmax returns the first
    # (n, tries, 2) -> (n, 2)
    return sides[torch.arange(n, device=sides.device), first].clamp(max=1)


def pixels_inside(
    start: Float[Tensor, "n 2"], sides: Float[Tensor, "n 2"], size: tuple[int, int]
) -> Bool[Tensor, "n 1 h w"]:
    """Return a mask of the pixels with their centres inside the rectangles.

    Args:
        start: left and upper edge of each rectangle, as fractions of the image's sides.
        sides: width and height of each rectangle, as fractions of the image's sides.
        size: height and width of the images, in pixels.
    """
    height, width = size
    # centres of the pixels, as fractions from the left or upper edge of the rectangle: (n, 1, w) and (n, 1, h)
    columns = (torch.arange(width, device=start.device) + 0.5) / width - start[:, None, :1]
    rows = (torch.arange(height, device=start.device) + 0.5) / height - start[:, None, 1:]
    inside_columns = (columns >= 0) & (columns < sides[:, None, :1])
    inside_rows = (rows >= 0) & (rows < sides[:, None, 1:])
    # (n, 1, h, 1) & (n, 1, 1, w) -> (n, 1, h, w)
    return inside_rows[..., None] & inside_columns[:, :, None]
