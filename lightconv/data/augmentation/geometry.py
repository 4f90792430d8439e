"""Every move of an image as one map from where a pixel is seen to where it comes from, and one resampling.

Places are grid_sample's: from -1 at the left and upper edge of an image to 1 at the right and lower one.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, pad

from lightconv.data.augmentation.boxes import draw_sides

PADDING_MODES = ("zeros", "border", "reflection")


@dataclass(frozen=True)
class Geometry:
    """Move every image by its own random amount: mirror, crop, shift, rotate, shear, scale and squeeze, in this order.

    Attributes are the arguments of Augmentation.
    """

    flip: float
    vertical_flip: float
    crop: int
    crop_area: tuple[float, float] | None
    crop_aspect: tuple[float, float]
    shift: float
    rotation: float
    shear: float
    scale: float
    squeeze: float
    padding_mode: str

    def __call__(self, images: Float[Tensor, "n c h w"], generator: torch.Generator) -> Float[Tensor, "n c h w"]:
        """Return moved copies of the images."""
        if self._moves_whole_pixels():
            return self._moved(images, generator)
        sources = self.sources(len(images), (images.shape[2], images.shape[3]), generator)
        grid = affine_grid(sources, list(images.shape), align_corners=False)
        return grid_sample(images, grid, padding_mode=self.padding_mode, align_corners=False)

    def sources(self, n: int, size: tuple[int, int], generator: torch.Generator) -> Float[Tensor, "n 2 3"]:
        """Draw the map of each image, as affine_grid takes it.

        Args:
            n: how many.
            size: height and width of the images in pixels.
            generator: of the draws.
        """
        half, centre = self._window(n, size, generator)
        linear, shift = self._distortion(n, size, generator)
        return torch.cat((half[:, :, None] * linear, (half * shift + centre)[:, :, None]), 2)

    def _window(self, n: int, size: tuple[int, int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The part of each image that is seen, half its sides, negative where mirrored, and its centre: (n, 2) each."""
        height, width = size
        half = torch.ones(n, 2, device=generator.device)
        for axis, mirrored in self._mirrored(n, generator).items():
            half[:, 3 - axis] = 1 - 2 * mirrored.float()
        centre = torch.zeros_like(half)
        if self.crop:
            rows, columns = self._corners(n, generator)[..., 0] - self.crop
            centre = 2 * half * torch.stack((columns / width, rows / height), 1)
        if self.crop_area:
            sides = draw_sides(n, size, self.crop_area, self.crop_aspect, generator)
            places = 2 * torch.rand(n, 2, generator=generator, device=half.device) - 1
            centre = centre + half * (1 - sides) * places
            half = half * sides
        return half, centre

    def _distortion(self, n: int, size: tuple[int, int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The map (n, 2, 2) about the centre of what is seen, and the shift (n, 2) of that centre."""
        angle, scale, *shift = 2 * torch.rand(4, n, generator=generator, device=generator.device) - 1
        squeeze, slant = 2 * torch.rand(2, n, generator=generator, device=generator.device) - 1
        angle, slant = math.radians(self.rotation) * angle, torch.tan(math.radians(self.shear) * slant)
        scale, squeeze = 1 + self.scale * scale, (1 + self.squeeze) ** (squeeze / 2)
        across, down, aspect = scale * squeeze, scale / squeeze, size[0] / size[1]
        cosine, sine = torch.cos(angle), torch.sin(angle)
        # an angle is one between pixels, of which height and width may have different numbers
        upper = cosine / across, (cosine * slant - sine) * aspect / down
        lower = sine / aspect / across, (sine * slant + cosine) / down
        return torch.stack((*upper, *lower), 1).view(n, 2, 2), 2 * self.shift * torch.stack(shift, 1)

    def _mirrored(self, n: int, generator: torch.Generator) -> dict[int, Bool[Tensor, " n"]]:
        """Which images are mirrored along each axis of the batch along which any may be."""
        shares = {3: self.flip, 2: self.vertical_flip}
        return {
            axis: torch.rand(n, generator=generator, device=generator.device) < share
            for axis, share in shares.items()
            if share
        }

    def _corners(self, n: int, generator: torch.Generator) -> Tensor:
        """Upper and left edge (2, n, 1) of the window in each padded image."""
        return torch.randint(2 * self.crop + 1, (2, n, 1), generator=generator, device=generator.device)

    def _moves_whole_pixels(self) -> bool:
        resampled = self.rotation, self.scale, self.shift, self.squeeze, self.shear, self.crop_area
        return not any(resampled) and (self.padding_mode == "zeros" or not self.crop)

    def _moved(self, images: Tensor, generator: torch.Generator) -> Tensor:
        for axis, mirrored in self._mirrored(len(images), generator).items():
            images = torch.where(mirrored[:, None, None, None], images.flip(axis), images)
        return self._cropped(images, generator) if self.crop else images

    def _cropped(self, images: Tensor, generator: torch.Generator) -> Tensor:
        n, _, height, width = images.shape
        corners = self._corners(n, generator)
        rows = corners[0] + torch.arange(height, device=images.device)
        columns = corners[1] + torch.arange(width, device=images.device)
        padded = pad(images, [self.crop] * 4)
        image = torch.arange(n, device=images.device)[:, None, None]
        return padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
