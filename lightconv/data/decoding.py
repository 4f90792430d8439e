"""An image file of whatever kind as a square of RGB bytes, or in words why it is none."""

import os
import stat
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

VERSION = 1  # goes up with every change of the bytes that come out: caches then decode anew
FITS = ("crop", "squash")


class UnreadableError(Exception):
    """A file gives no image; the message says why."""


def decode(path: Path, side: int, fit: str = "crop") -> UInt8[Tensor, "3 side side"]:
    """Read the first frame upright, as RGB, transparency over white, with antialias in the asked size.

    Args:
        path: a file; what its name ends with does not matter.
        side: height and width in pixels of what is returned.
        fit: "crop" scales the shorter side and cuts the longer one on both ends; "squash" scales each side by itself,
            so that nothing is lost and shapes change.

    Raises:
        UnreadableError: if the file is damaged, no image, or not a file.
    """
    try:
        _check_file(path)
        with Image.open(path, formats=_formats()) as image:
            image.draft(None, (2 * side, 2 * side))  # libjpeg scales down by 2, 4 or 8 while it decodes
            ImageOps.exif_transpose(image, in_place=True)
            square = squared(rgb(image), side, fit)
    except UnreadableError:
        raise
    except Exception as error:  # of damaged files, decoders raise everything that there is
        raise UnreadableError(_reason(error)) from error
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)


def rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB: transparent pixels over white, 16 bits scaled to 8.

    Raises:
        UnreadableError: for numbers whose range nothing tells.
    """
    if image.mode == "F":
        raise UnreadableError("floating-point pixels, whose range nothing tells")
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def squared(image: Image.Image, side: int, fit: str) -> Image.Image:
    """Bring an image to a square by "crop" or "squash"."""
    if fit == "crop":
        return ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)
    return image.resize((side, side), Image.Resampling.BICUBIC)


def _eight_bits(image: Image.Image) -> Image.Image:
    # PIL's own convert("L") clips: all that is brighter than 255 of 65535 would be white
    values = np.asarray(image).astype(np.int64)
    if values.max() > 65535:
        raise UnreadableError("whole numbers beyond 16 bits, whose range nothing tells")
    return Image.fromarray(((values.clip(0) + 128) // 257).astype(np.uint8))


def _formats() -> list[str]:
    Image.init()
    return [name for name in Image.ID if name != "EPS"]  # for which PIL would start Ghostscript


def _check_file(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise UnreadableError("a link to nothing")
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise UnreadableError("a folder, not a file")
    if not stat.S_ISREG(status.st_mode):  # to open a pipe is to wait forever
        raise UnreadableError("not a regular file")
    if status.st_size == 0:
        raise UnreadableError("empty")


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or of a kind that PIL does not read"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
