"""Colours of a batch changed, each image's by its own amount, as torchvision changes those of one image.

torchvision's transforms draw one amount for a whole batch, and its functions take one number.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.transforms.v2.functional import rgb_to_grayscale

# what torchvision's adjust_hue is made of, which itself takes one number
from torchvision.transforms.v2.functional._color import _hsv_to_rgb, _rgb_to_hsv


@dataclass(frozen=True)
class Color:
    """Change brightness, contrast, saturation and hue, in this order, and take colour away.

    Grey images have brightness and contrast alone. Attributes are the arguments of Augmentation.
    """

    brightness: float
    contrast: float
    saturation: float
    hue: float
    grayscale: float

    def __call__(self, images: Float[Tensor, "n c h w"], generator: torch.Generator) -> Float[Tensor, "n c h w"]:
        """Return changed copies of images in 0..1."""
        draw = torch.rand(5, len(images), generator=generator, device=generator.device)
        either_way = 2 * draw - 1
        if self.brightness:
            images = adjust_brightness(images, 1 + self.brightness * either_way[0])
        if self.contrast:
            images = adjust_contrast(images, 1 + self.contrast * either_way[1])
        if self.saturation:
            images = adjust_saturation(images, 1 + self.saturation * either_way[2])
        if self.hue:
            images = adjust_hue(images, self.hue * either_way[3])
        if self.grayscale:
            images = torch.where((draw[4] < self.grayscale)[:, None, None, None], grey(images), images)
        return images


def grey(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n _ h w"]:
    """The one channel of brightness that RGB images have; others as they are."""
    return rgb_to_grayscale(images) if images.shape[1] == 3 else images


def adjust_brightness(images: Float[Tensor, "n c h w"], factors: Float[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
    """Multiply colours: 0 is black."""
    return (images * factors[:, None, None, None]).clamp_(0, 1)


def adjust_contrast(images: Float[Tensor, "n c h w"], factors: Float[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
    """Multiply the distance from an image's mean grey: 0 is all of that grey."""
    mean = grey(images).mean((1, 2, 3), keepdim=True)
    return torch.lerp(mean, images, factors[:, None, None, None]).clamp_(0, 1)


def adjust_saturation(images: Float[Tensor, "n c h w"], factors: Float[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
    """Multiply the distance from each pixel's own grey: 0 is without colour. Grey images stay as they are."""
    if images.shape[1] != 3:
        return images
    return torch.lerp(grey(images), images, factors[:, None, None, None]).clamp_(0, 1)


def adjust_hue(images: Float[Tensor, "n c h w"], turns: Float[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
    """Turn the circle of colours, by 1 for once around. Grey images stay as they are."""
    if images.shape[1] != 3:
        return images
    hue, saturation, value = _rgb_to_hsv(images).unbind(1)
    turned = (hue + turns[:, None, None]).remainder_(1)
    return _hsv_to_rgb(torch.stack((turned, saturation, value), 1))
