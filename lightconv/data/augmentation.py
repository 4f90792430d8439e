"""Random variations of training images, drawn per image and applied to the batch as a whole."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from lightconv.errors import InputError


class Augmentation:
    """Mirror, rotate, scale and shift every image by its own random amount, in one resampling.

    What leaves the image is lost, what enters is zero. Mirroring alone moves pixels without resampling them.

    Args:
        flip: probability of a left-right mirror image.
        rotation: largest angle in degrees, either way.
        scale: largest relative change of size, either way: 0.1 for 0.9 to 1.1 times.
        shift: largest displacement as a fraction of the side, either way, horizontally and vertically.

    Raises:
        InputError: for a number out of range.
    """

    def __init__(self, flip: float = 0.0, rotation: float = 0.0, scale: float = 0.0, shift: float = 0.0) -> None:
        limits = {"flip": (flip, 1), "rotation": (rotation, 180), "scale": (scale, 0.9), "shift": (shift, 1)}
        for name, (value, largest) in limits.items():
            if not 0 <= value <= largest:
                raise InputError(f"augmentation: {name}={value} is not between 0 and {largest}")
        self.flip, self.rotation, self.scale, self.shift = flip, rotation, scale, shift

    def __call__(self, images: Float[Tensor, "n c h w"], generator: torch.Generator) -> Float[Tensor, "n c h w"]:
        """Return varied copies of the images."""
        n, device = len(images), images.device
        if self.flip:
            mirrored = torch.rand(n, generator=generator, device=device) < self.flip
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        if not (self.rotation or self.scale or self.shift):
            return images
        angle, size, x, y = 2 * torch.rand(4, n, generator=generator, device=device) - 1
        angle, size = math.radians(self.rotation) * angle, 1 + self.scale * size
        # grid_sample asks where each output pixel comes from, in units of half the image: the inverse map
        cosine, sine = torch.cos(angle) / size, torch.sin(angle) / size
        rows = [cosine, -sine, 2 * self.shift * x, sine, cosine, 2 * self.shift * y]
        grid = affine_grid(torch.stack(rows, 1).view(n, 2, 3), list(images.shape), align_corners=False)
        return grid_sample(images, grid, align_corners=False)
