"""Augmentation of training images: geometry, then colour, then erasing."""

from collections.abc import Sequence
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from lightconv.data.augmentation.color import Color
from lightconv.data.augmentation.erasing import erase
from lightconv.data.augmentation.geometry import PADDING_MODES, Geometry, PaddingMode
from lightconv.errors import InputError

Number = TypeVar("Number", int, float)

# largest value of each argument; 1 for all others
_LARGEST = {"crop": 1024, "rotation": 180, "scale": 0.9, "shear": 60, "hue": 0.5}


class Augmentation:
    """Vary every image of a batch by its own random amounts.

    All moves of an image are composed into one map, in the order of the arguments below, and share one bilinear
    resampling. Mirroring and cropping alone move whole pixels.

    Args:
        flip: probability of a left-right mirror image.
        vertical_flip: probability of an upside-down mirror image.
        crop: padding in pixels before a window of the old size is cut out at random (Krizhevsky, Sutskever, Hinton
            2012, with the padding usual since); for small images.
        crop_area: smallest and largest fraction of the image's area cut out at random and enlarged to the old size
            (Szegedy and others 2015, with 0.08 to 1); for photographs.
        crop_aspect: smallest and largest width over height of the window cut out by ``crop_area``.
        shift: largest horizontal and vertical displacement, either way, as a fraction of the side.
        rotation: largest angle, either way, in degrees.
        shear: largest slant of upright lines, either way, in degrees.
        scale: largest relative change of size, either way: 0.1 for factors 0.9 to 1.1.
        squeeze: largest relative change of width over height at constant area, either way: 0.2 for 1 / 1.2 to 1.2.
        padding_mode: pixels from outside the image: "zeros", the nearest pixel ("border"), or the mirror image
            ("reflection").
        brightness: largest relative change of every colour, either way.
        contrast: largest relative change of the distance from the image's mean grey, either way.
        saturation: largest relative change of the distance from a pixel's own grey, either way.
        hue: largest turn of the colour circle, either way, in turns: 0.5 is half of it.
        grayscale: probability of replacing colours by their grey.
        erasing: probability of replacing a rectangle by noise (Zhong and others 2020).

    Shape:
        - images: (n, c, h, w) float32 in 0..1, with a generator on the same device; returned: the same shape and range.
        - images with other than 3 channels keep their colours except for brightness and contrast.

    Raises:
        InputError: If a number is out of range or the padding mode is unknown.

    Example:
        >>> import torch
        >>> augmentation = Augmentation(flip=0.5, rotation=10, brightness=0.2)
        >>> images = torch.rand(8, 3, 32, 32)
        >>> augmentation(images, torch.Generator().manual_seed(0)).shape
        torch.Size([8, 3, 32, 32])
    """

    def __init__(
        self,
        flip: float = 0.0,
        crop: int = 0,
        rotation: float = 0.0,
        scale: float = 0.0,
        shift: float = 0.0,
        *,
        vertical_flip: float = 0.0,
        crop_area: Sequence[float] | None = None,
        crop_aspect: Sequence[float] = (3 / 4, 4 / 3),
        shear: float = 0.0,
        squeeze: float = 0.0,
        padding_mode: PaddingMode = "zeros",
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
        grayscale: float = 0.0,
        erasing: float = 0.0,
    ) -> None:
        if padding_mode not in PADDING_MODES:
            raise InputError(f"augmentation: padding_mode={padding_mode}: choose one of {', '.join(PADDING_MODES)}")
        self.geometry = Geometry(
            flip=_amount("flip", flip),
            vertical_flip=_amount("vertical_flip", vertical_flip),
            crop=_amount("crop", crop),
            crop_area=None if crop_area is None else _interval("crop_area", crop_area, largest=1),
            crop_aspect=_interval("crop_aspect", crop_aspect, largest=100),
            shift=_amount("shift", shift),
            rotation=_amount("rotation", rotation),
            shear=_amount("shear", shear),
            scale=_amount("scale", scale),
            squeeze=_amount("squeeze", squeeze),
            padding_mode=padding_mode,
        )
        self.color = Color(
            brightness=_amount("brightness", brightness),
            contrast=_amount("contrast", contrast),
            saturation=_amount("saturation", saturation),
            hue=_amount("hue", hue),
            grayscale=_amount("grayscale", grayscale),
        )
        self.erasing = _amount("erasing", erasing)

    def __call__(self, images: Float[Tensor, "n c h w"], generator: torch.Generator) -> Float[Tensor, "n c h w"]:
        """Return varied copies of images in 0..1."""
        images = self.geometry(images, generator)
        images = self.color(images, generator)
        if self.erasing:
            images = erase(images, self.erasing, generator)
        return images

    # cached features are stored under these words, so every setting is in them
    def __repr__(self) -> str:
        return f"Augmentation({self.geometry}, {self.color}, erasing={self.erasing})"


def _amount(name: str, value: Number) -> Number:
    """Return the value of an argument.

    Raises:
        InputError: If the value is out of range.
    """
    largest = _LARGEST.get(name, 1)
    if not 0 <= value <= largest:
        raise InputError(f"augmentation: {name}={value} is not between 0 and {largest}")
    return value


def _interval(name: str, values: Sequence[float], largest: float) -> tuple[float, float]:
    """Return smallest and largest value of an argument.

    Raises:
        InputError: If these are not two ascending numbers in range.
    """
    if len(values) != 2 or not 0 < values[0] <= values[1] <= largest:
        raise InputError(f"augmentation: {name}={values}: set [SMALLEST,LARGEST], above 0 and up to {largest}")
    return values[0], values[1]
