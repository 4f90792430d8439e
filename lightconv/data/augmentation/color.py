"""Colour changes of a batch, each image by its own amount, equal to torchvision's of one image.

torchvision's transforms draw one amount per batch, and its functions take one number.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.transforms.v2.functional import rgb_to_grayscale

# torchvision's adjust_hue takes one number only; these private functions are its parts
from torchvision.transforms.v2.functional._color import _hsv_to_rgb, _rgb_to_hsv


@dataclass(frozen=True)
class Color:
    """Change of brightness, contrast, saturation and hue, in this order, then replacement of colours by grey.

    Grey images change in brightness and contrast only. Attributes are the arguments of Augmentation.
    """

    brightness: float
    contrast: float
    saturation: float
    hue: float
    grayscale: float

    def __call__(self, images: Float[Tensor, "n c h w"], generator: torch.Generator) -> Float[Tensor, "n c h w"]:
        """Return changed copies of images in 0..1."""
        # every amount is drawn, used or not, so that one setting does not change the draws of another
        uniform = torch.rand(5, len(images), generator=generator, device=generator.device)
        either_way = 2 * uniform - 1
        if self.brightness:
            images = adjust_brightness(images, 1 + self.brightness * either_way[0])
        if self.contrast:
            images = adjust_contrast(images, 1 + self.contrast * either_way[1])
        if self.saturation:
            images = adjust_saturation(images, 1 + self.saturation * either_way[2])
        if self.hue:
            images = adjust_hue(images, self.hue * either_way[3])
        if self.grayscale:
            chosen = uniform[4] < self.grayscale
            images = torch.where(chosen[:, None, None, None], to_grey(images), images)
        return images


def to_grey(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n _ h w"]:
    """Return the brightness of RGB images as one channel; other images are returned unchanged."""
    return rgb_to_grayscale(images) if images.shape[1] == 3 else images


def adjust_brightness(images: Float[Tensor, "n c h w"], factors: Float[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
    """Multiply colours by one factor per image: 0 is black."""
    return (images * factors[:, None, None, None]).clamp_(0, 1)


def adjust_contrast(images: Float[Tensor, "n c h w"], factors: Float[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
    """Multiply the distance from the image's mean grey by one factor per image: 0 is uniformly grey."""
    # (n, 1, h, w) -> (n, 1, 1, 1)
    mean = to_grey(images).mean((1, 2, 3), keepdim=True)
    return torch.lerp(mean, images, factors[:, None, None, None]).clamp_(0, 1)


def adjust_saturation(images: Float[Tensor, "n c h w"], factors: Float[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
    """Multiply the distance from each pixel's own grey by one factor per image: 0 removes colour.

    Images that are not RGB are returned unchanged.
    """
    if images.shape[1] != 3:
        return images
    return torch.lerp(to_grey(images), images, factors[:, None, None, None]).clamp_(0, 1)


def adjust_hue(images: Float[Tensor, "n c h w"], turns: Float[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
    """Turn the colour circle by one angle per image, in turns: 1 is once around.

    Images that are not RGB are returned unchanged.
    """
    if images.shape[1] != 3:
        return images
    # (n, 3, h, w) -> three times (n, h, w)
    hue, saturation, value = _rgb_to_hsv(images).unbind(1)
    hue = (hue + turns[:, None, None]).remainder_(1)
    return _hsv_to_rgb(torch.stack((hue, saturation, value), 1))
