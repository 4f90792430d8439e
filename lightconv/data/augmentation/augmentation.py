"""What one may do to training images: geometry, then colour, then erasing."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightconv.data.augmentation.color import Color
from lightconv.data.augmentation.erasing import erase
from lightconv.data.augmentation.geometry import PADDING_MODES, Geometry
from lightconv.errors import InputError

_LARGEST = {"crop": 1024, "rotation": 180, "scale": 0.9, "shear": 60, "hue": 0.5}  # of all others: 1


class Augmentation:
    """Vary every image by its own random amounts.

    All that moves an image is composed into one map, in the order in which it is described here, and shares one
    bilinear resampling. Mirroring and cropping alone move whole pixels.

    Args:
        flip: probability of a left-right mirror image.
        vertical_flip: probability of an upside-down mirror image.
        crop: pixels put around the image before one of the old size is cut out anywhere
            (Krizhevsky, Sutskever, Hinton 2012, with the padding usual since): for small images.
        crop_area: smallest and largest share of the image's area that is cut out anywhere and enlarged to the old size
            (Szegedy and others 2015, who took 0.08 to 1): for photographs.
        crop_aspect: smallest and largest width over height of what ``crop_area`` cuts out.
        shift: largest displacement as a fraction of the side, either way, horizontally and vertically.
        rotation: largest angle in degrees, either way.
        shear: largest angle in degrees by which upright lines slant, either way.
        scale: largest relative change of size, either way: 0.1 for 0.9 to 1.1 times.
        squeeze: largest relative change of width over height at the same area, either way: 0.2 for 1 / 1.2 to 1.2.
        padding_mode: what enters the image: zeros, the nearest pixel (border), or its mirror image (reflection).
        brightness: largest relative change, either way, of every colour.
        contrast: the same of the distance from the image's mean grey.
        saturation: the same of the distance from a pixel's own grey.
        hue: largest turn of the colour circle, either way; 0.5 is half of it.
        grayscale: probability that colours are replaced by their grey.
        erasing: probability that a rectangle is replaced by noise (Zhong and others 2020).

    Raises:
        InputError: for a number out of range, or an unknown padding mode.
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
        padding_mode: str = "zeros",
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
        grayscale: float = 0.0,
        erasing: float = 0.0,
    ) -> None:
        moves: dict[str, Any] = {"flip": flip, "vertical_flip": vertical_flip, "crop": crop, "shift": shift}
        moves |= {"rotation": rotation, "shear": shear, "scale": scale, "squeeze": squeeze}
        colours = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
        colours |= {"grayscale": grayscale}
        _check({**moves, **colours, "erasing": erasing})
        if padding_mode not in PADDING_MODES:
            raise InputError(f"augmentation: padding_mode={padding_mode}: choose one of {', '.join(PADDING_MODES)}")
        moves["crop_area"] = None if crop_area is None else _interval("crop_area", crop_area, largest=1)
        moves["crop_aspect"] = _interval("crop_aspect", crop_aspect, largest=100)
        self.geometry = Geometry(**moves, padding_mode=padding_mode)
        self.color = Color(**colours)
        self.erasing = erasing

    def __call__(self, images: Float[Tensor, "n c h w"], generator: torch.Generator) -> Float[Tensor, "n c h w"]:
        """Return varied copies of images in 0..1."""
        images = self.color(self.geometry(images, generator), generator)
        return erase(images, self.erasing, generator) if self.erasing else images

    def __repr__(self) -> str:
        return f"Augmentation({self.geometry}, {self.color}, erasing={self.erasing})"


def _check(amounts: Mapping[str, float]) -> None:
    for name, value in amounts.items():
        largest = _LARGEST.get(name, 1)
        if not 0 <= value <= largest:
            raise InputError(f"augmentation: {name}={value} is not between 0 and {largest}")


def _interval(name: str, values: Sequence[float], largest: float) -> tuple[float, float]:
    if len(values) != 2 or not 0 < values[0] <= values[1] <= largest:
        raise InputError(f"augmentation: {name}={values}: give [SMALLEST,LARGEST], above 0 and up to {largest}")
    return values[0], values[1]
