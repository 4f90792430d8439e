"""Random variations of training images, drawn per image and applied to the batch as a whole."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, pad

from lightconv.errors import InputError


class Augmentation:
    """Mirror, crop, rotate, scale and shift every image by its own random amount.

    What leaves the image is lost, what enters is zero. Mirroring and cropping move whole pixels; the others share one
    bilinear resampling.

    Args:
        flip: probability of a left-right mirror image.
        crop: pixels of zeros put around the image before one of the old size is cut out anywhere
            (Krizhevsky, Sutskever, Hinton 2012, with the padding usual since).
        rotation: largest angle in degrees, either way.
        scale: largest relative change of size, either way: 0.1 for 0.9 to 1.1 times.
        shift: largest displacement as a fraction of the side, either way, horizontally and vertically.

    Raises:
        InputError: for a number out of range.
    """

    def __init__(
        self, flip: float = 0.0, crop: int = 0, rotation: float = 0.0, scale: float = 0.0, shift: float = 0.0
    ) -> None:
        for name, value, largest in (
            ("flip", flip, 1),
            ("crop", crop, 1024),
            ("rotation", rotation, 180),
            ("scale", scale, 0.9),
            ("shift", shift, 1),
        ):
            if not 0 <= value <= largest:
                raise InputError(f"augmentation: {name}={value} is not between 0 and {largest}")
        self.flip, self.crop = flip, crop
        self.rotation, self.scale, self.shift = rotation, scale, shift

    def __call__(self, images: Float[Tensor, "n c h w"], generator: torch.Generator) -> Float[Tensor, "n c h w"]:
        """Return varied copies of the images."""
        if self.flip:
            mirrored = torch.rand(len(images), generator=generator, device=images.device) < self.flip
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        if self.crop:
            images = self._cropped(images, generator)
        if self.rotation or self.scale or self.shift:
            images = self._resampled(images, generator)
        return images

    def _cropped(self, images: Tensor, generator: torch.Generator) -> Tensor:
        n, _, height, width = images.shape
        corner = torch.randint(2 * self.crop + 1, (2, n, 1), generator=generator, device=images.device)
        rows = corner[0] + torch.arange(height, device=images.device)
        columns = corner[1] + torch.arange(width, device=images.device)
        padded = pad(images, [self.crop] * 4)
        image = torch.arange(n, device=images.device)[:, None, None]
        return padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

    def _resampled(self, images: Tensor, generator: torch.Generator) -> Tensor:
        n, device = len(images), images.device
        angle, size, x, y = 2 * torch.rand(4, n, generator=generator, device=device) - 1
        angle, size = math.radians(self.rotation) * angle, 1 + self.scale * size
        # grid_sample asks where each output pixel comes from, in units of half the image: the inverse map
        cosine, sine = torch.cos(angle) / size, torch.sin(angle) / size
        rows = [cosine, -sine, 2 * self.shift * x, sine, cosine, 2 * self.shift * y]
        grid = affine_grid(torch.stack(rows, 1).view(n, 2, 3), list(images.shape), align_corners=False)
        return grid_sample(images, grid, align_corners=False)
