"""Random erasing.

Zhong, Zheng, Kang, Li, Yang: Random erasing data augmentation, AAAI (2020).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from lightconv.data.augmentation.boxes import draw_sides, pixels_inside

_AREA = (0.02, 1 / 3)
_ASPECT = (0.3, 1 / 0.3)


def erase(images: Float[Tensor, "n c h w"], probability: float, generator: torch.Generator) -> Float[Tensor, "n c h w"]:
    """Replace a rectangle of 2 to 33 % of the area by noise in 0..1, the best filling in the paper.

    The noise is drawn once per batch, the rectangle per image.

    Args:
        images: images in 0..1.
        probability: probability of erasing, per image.
        generator: source of randomness.
    """
    n, channels, height, width = images.shape
    device = generator.device
    chosen = torch.rand(n, generator=generator, device=device) < probability
    sides = draw_sides(n, (height, width), _AREA, _ASPECT, generator)
    # (n, 2): left and upper edge, anywhere inside the image
    start = (1 - sides) * torch.rand(n, 2, generator=generator, device=device)
    noise = torch.rand(channels, height, width, generator=generator, device=device)
    erased = pixels_inside(start, sides, (height, width)) & chosen[:, None, None, None]
    return torch.where(erased, noise, images)
