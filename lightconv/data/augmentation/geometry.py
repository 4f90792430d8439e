"""All moves of an image composed into one map from seen places to source places, with one resampling.

Coordinates are grid_sample's: -1 at the left and upper edge of an image, 1 at the right and lower edge.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, pad

from lightconv.data.augmentation.boxes import draw_sides

PaddingMode = Literal["zeros", "border", "reflection"]
PADDING_MODES: tuple[str, ...] = get_args(PaddingMode)


@dataclass(frozen=True)
class Geometry:
    """Random moves of every image: mirror, crop, shift, rotate, shear, scale and squeeze, in this order.

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
    padding_mode: PaddingMode

    def __call__(self, images: Float[Tensor, "n c h w"], generator: torch.Generator) -> Float[Tensor, "n c h w"]:
        """Return moved copies of the images."""
        moves_fractions = any((self.rotation, self.scale, self.shift, self.squeeze, self.shear, self.crop_area))
        pads_values = self.crop and self.padding_mode != "zeros"
        if moves_fractions or pads_values:
            # (n, 2, 3) -> (n, h, w, 2)
            maps = self.draw_maps(len(images), (images.shape[2], images.shape[3]), generator)
            grid = affine_grid(maps, list(images.shape), align_corners=False)
            return grid_sample(images, grid, padding_mode=self.padding_mode, align_corners=False)
        # whole pixels: indexing is exact and quicker than resampling
        for axis, mirrored in self._draw_mirrored(len(images), generator).items():
            images = torch.where(mirrored[:, None, None, None], images.flip(axis), images)
        if self.crop:
            images = cut_windows(images, self._draw_corners(len(images), generator), self.crop)
        return images

    def draw_maps(self, n: int, size: tuple[int, int], generator: torch.Generator) -> Float[Tensor, "n 2 3"]:
        """Draw the map of each image, as affine_grid takes it.

        Args:
            n: number of images.
            size: height and width of the images, in pixels.
            generator: source of randomness.
        """
        half, centre = self.draw_window(n, size, generator)
        linear, shift = self.draw_distortion(n, size, generator)
        # the window scales and moves whatever the distortion maps: (n, 2, 2) and (n, 2, 1) -> (n, 2, 3)
        linear = half[:, :, None] * linear
        constant = half * shift + centre
        return torch.cat((linear, constant[:, :, None]), 2)

    def draw_window(self, n: int, size: tuple[int, int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw the visible window of each image: half its sides, negative if mirrored, and its centre.

        Shape:
            - returned: (n, 2) each, horizontal before vertical, in units of half the image's sides.
        """
        height, width = size
        half = torch.ones(n, 2, device=generator.device)
        for axis, mirrored in self._draw_mirrored(n, generator).items():
            # axis 3 of images is horizontal, 2 vertical
            half[:, 3 - axis] = 1 - 2 * mirrored.float()
        centre = torch.zeros_like(half)
        if self.crop:
            rows, columns = self._draw_corners(n, generator) - self.crop
            centre = 2 * half * torch.stack((columns / width, rows / height), 1)
        if self.crop_area:
            sides = draw_sides(n, size, self.crop_area, self.crop_aspect, generator)
            places = 2 * torch.rand(n, 2, generator=generator, device=half.device) - 1
            centre = centre + half * (1 - sides) * places
            half = half * sides
        return half, centre

    def draw_distortion(self, n: int, size: tuple[int, int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw the linear map about the centre of the window, (n, 2, 2), and the shift of this centre, (n, 2)."""
        angle, scale, *shift = 2 * torch.rand(4, n, generator=generator, device=generator.device) - 1
        squeeze, slant = 2 * torch.rand(2, n, generator=generator, device=generator.device) - 1
        angle = math.radians(self.rotation) * angle
        slant = torch.tan(math.radians(self.shear) * slant)
        scale = 1 + self.scale * scale
        squeeze = (1 + self.squeeze) ** (squeeze / 2)
        across = scale * squeeze
        down = scale / squeeze
        cosine = torch.cos(angle)
        sine = torch.sin(angle)
        # Angles are between pixels, but both axes run from -1 to 1 whatever the number of pixels. The aspect ratio
        # therefore enters off the diagonal.
        aspect = size[0] / size[1]
        entries = (
            cosine / across,
            (cosine * slant - sine) * aspect / down,
            sine / aspect / across,
            (sine * slant + cosine) / down,
        )
        # four times (n,) -> (n, 2, 2)
        linear = torch.stack(entries, 1).view(n, 2, 2)
        return linear, 2 * self.shift * torch.stack(shift, 1)

    def _draw_mirrored(self, n: int, generator: torch.Generator) -> dict[int, Bool[Tensor, " n"]]:
        """Draw the images to mirror, for each axis with a probability; the axis counts in (n, c, h, w)."""
        mirrored = {}
        for axis, probability in ((3, self.flip), (2, self.vertical_flip)):
            if probability:
                mirrored[axis] = torch.rand(n, generator=generator, device=generator.device) < probability
        return mirrored

    def _draw_corners(self, n: int, generator: torch.Generator) -> Int64[Tensor, "2 n"]:
        """Draw upper and left edge of the window in each padded image, in pixels."""
        return torch.randint(2 * self.crop + 1, (2, n), generator=generator, device=generator.device)


def cut_windows(
    images: Float[Tensor, "n c h w"], corners: Int64[Tensor, "2 n"], padding: int
) -> Float[Tensor, "n c h w"]:
    """Pad images with zeros and cut one window of the old size out of each.

    Args:
        images: images to crop.
        corners: upper and left edge of each window in the padded image, in pixels.
        padding: zeros added on each side, in pixels.
    """
    n, _, height, width = images.shape
    # index of (n, h, w) pixels in the padded images: (n, 1, 1), (n, h, 1) and (n, 1, w) broadcast
    image = torch.arange(n, device=images.device)[:, None, None]
    rows = corners[0, :, None, None] + torch.arange(height, device=images.device)[:, None]
    columns = corners[1, :, None, None] + torch.arange(width, device=images.device)
    # (n, c, h + 2p, w + 2p) -> (n, h, w, c) -> (n, c, h, w)
    padded = pad(images, [padding] * 4).permute(0, 2, 3, 1)
    return padded[image, rows, columns].permute(0, 3, 1, 2)
