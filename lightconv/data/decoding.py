"""Decode an image file of any kind into a square of RGB bytes, or give the reason why it is none."""

import os
import stat
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

VERSION = 1  # raised with every change of the decoded bytes, so that caches decode again
Fit = Literal["crop", "squash"]
FITS: tuple[str, ...] = get_args(Fit)


class UnreadableError(Exception):
    """A file that gives no image; the message is the reason."""


def decode(path: Path, side: int, fit: Fit = "crop") -> UInt8[Tensor, "3 side side"]:
    """Read the first frame of an image file: upright, RGB, transparency over white, resized with antialiasing.

    Args:
        path: image file; its suffix does not matter.
        side: height and width of the result, in pixels.
        fit: "crop" scales the shorter side and cuts both ends of the longer one; "squash" scales each side by its own
            factor: nothing is cut, shapes change.

    Raises:
        UnreadableError: If the file is damaged, not an image, or not a file.
    """
    try:
        check_file(path)
        Image.init()  # fills Image.ID
        formats = [name for name in Image.ID if name != "EPS"]  # PIL would start Ghostscript for EPS
        with Image.open(path, formats=formats) as image:
            image.draft(None, (2 * side, 2 * side))  # libjpeg scales by 1/2, 1/4 or 1/8 while it decodes
            ImageOps.exif_transpose(image, in_place=True)
            square = to_square(to_rgb(image), side, fit)
    except UnreadableError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableError("not an image, or of a kind that PIL does not read") from error
    except Exception as error:  # decoders raise exceptions of any type for damaged files
        message = getattr(error, "strerror", None) or str(error)
        raise UnreadableError(" ".join(message.split()) or type(error).__name__) from error
    # (side, side, 3) -> (3, side, side)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB: transparent pixels over white, 16 bits scaled to 8.

    Raises:
        UnreadableError: If the range of the pixel values is unknown.
    """
    if image.mode == "F":
        raise UnreadableError("floating-point pixels of unknown range")
    if image.mode.startswith("I"):
        # PIL's own convert("L") clips: everything brighter than 255 of 65535 would be white
        values = np.asarray(image).astype(np.int64)
        if values.max() > 65535:
            raise UnreadableError("whole numbers beyond 16 bits, of unknown range")
        image = Image.fromarray(((values.clip(0) + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def to_square(image: Image.Image, side: int, fit: Fit) -> Image.Image:
    """Resize an image to a square by "crop" or "squash"; see `decode`."""
    if fit == "crop":
        return ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)
    return image.resize((side, side), Image.Resampling.BICUBIC)


def check_file(path: Path) -> None:
    """Raise UnreadableError unless the path is a regular file with content.

    Pipes are refused before they are opened, since opening one waits forever.
    """
    if path.is_symlink() and not path.exists():
        raise UnreadableError("a link to nothing")
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise UnreadableError("a folder, not a file")
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableError("not a regular file")
    if status.st_size == 0:
        raise UnreadableError("empty")
