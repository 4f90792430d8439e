"""Decode an image file into a square of RGB bytes, or give the reason why it is none."""

import errno
import math
import os
import stat
import threading
from contextlib import nullcontext, suppress
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from lightconv.data.metadata import without_metadata
from lightconv.errors import InputError

VERSION = 2  # raised with every change of the decoded bytes, so that caches decode again
Fit = Literal["crop", "squash"]
FITS: tuple[str, ...] = get_args(Fit)

# PIL's readers that decode the pixels of their own file. Others start Ghostscript (EPS), open whatever they wrap, an
# EPS too (IPTC, MIC), unpack without a limit (FITS), or need a program of the user's (WMF, HDF5, GRIB, BUFR).
FORMATS = (
    "JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "HEIF", "AVIF", "JPEG2000", "PPM", "ICO", "ICNS", "DIB", "PCX", "PSD",
    "QOI", "SGI", "SUN", "DDS", "TGA",
)  # fmt: skip
# ISO base media files name their kind in bytes 8 to 12
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_LARGE = 2**24  # pixels; larger images are decoded one at a time, whatever the number of threads
_STRIP = 2**22  # pixels converted at a time
_large_image = threading.Lock()
# reasons that lie in the file or its path; all others lie in the machine: open files, memory, a network
_FILE_ERRORS = {
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL,
}  # fmt: skip


class UnreadableError(Exception):
    """A file that gives no image; the message is the reason."""


def decode(path: Path, side: int, fit: Fit = "crop") -> UInt8[Tensor, "3 side side"]:
    """Read the first frame of an image file: upright, RGB, transparency over white, resized with antialiasing.

    Damaged metadata are no reason to fail: the pixels are read, and turned upright if their orientation can be read.

    Args:
        path: image file; its suffix does not matter.
        side: height and width of the result, in pixels.
        fit: "crop" scales the shorter side and cuts both ends of the longer one; "squash" scales each side by its own
            factor: nothing is cut, shapes change.

    Raises:
        UnreadableError: If the file is damaged, has too many pixels, is not an image, or not a file.
        InputError: If memory is short, or the machine cannot read files at the moment.
    """
    try:
        check_file(path)
        square = read_square(path, side, fit)
    except (UnreadableError, InputError):
        raise
    except Exception as error:  # decoders raise exceptions of any type for damaged files
        raise explain(error, path) from error
    # (side, side, 3) -> (3, side, side)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)


def read_square(path: Path, side: int, fit: Fit) -> Image.Image:
    """Read the square of an image; if its metadata are damaged, from a copy without them."""
    try:
        return decode_square(path, path, side, fit)
    except (UnidentifiedImageError, ValueError):
        # PIL gives up on a PNG or JPEG whose colour profile, comments or checksums of these are damaged
        content = without_metadata(path)
        if content is None:
            raise
        return decode_square(BytesIO(content), path, side, fit)


def decode_square(source: Path | BytesIO, path: Path, side: int, fit: Fit) -> Image.Image:
    """Decode an image that lies in a file or in memory.

    Raises:
        InputError: If memory is short.
    """
    with Image.open(source, formats=formats()) as image:
        # libjpeg keeps all coefficients of a progressive image, however much it scales
        coefficients = math.prod(image.size) if image.info.get("progressive") else 0
        image.draft(None, (2 * side, 2 * side))  # libjpeg scales by 1/2, 1/4 or 1/8 while it decodes
        width, height = image.size
        check_pixels(width, height)
        try:
            with _large_image if max(coefficients, width * height) > _LARGE else nullcontext():
                image.load()  # before its metadata are read, which may be damaged
                turn_upright(image)
                return to_square(to_rgb(image), side, fit)
        except MemoryError as error:
            # the picture is whole: leaving it out would make the set depend on what else runs on this machine
            raise InputError(
                f"{path}: memory is short for its {width:,} x {height:,} pixels: decode fewer images at a time by "
                "data.workers=1, or make the images smaller"
            ) from error


@cache
def formats() -> tuple[str, ...]:
    """Return the names of the formats that can be read here; HEIF if pillow-heif is installed."""
    with suppress(ImportError):
        from pillow_heif import register_heif_opener  # noqa: PLC0415  an extra

        register_heif_opener()
    Image.init()  # fills Image.OPEN
    return tuple(name for name in FORMATS if name in Image.OPEN)


def check_pixels(width: int, height: int) -> None:
    """Raise UnreadableError for more pixels than PIL's limit, about which PIL itself only warns."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise UnreadableError(
            f"a decompression bomb, or too large: {width:,} x {height:,} pixels, of which {limit:,} are allowed "
            "(PIL.Image.MAX_IMAGE_PIXELS)"
        )


def turn_upright(image: Image.Image) -> None:
    """Turn an image as its EXIF orientation says; leave it as it is if that cannot be read."""
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception:  # PIL raises exceptions of any type for damaged EXIF
        return


def explain(error: Exception, path: Path) -> Exception:
    """Return an UnreadableError with the reason in words, or an InputError if it lies in the machine."""
    if isinstance(error, UnidentifiedImageError):
        return UnreadableError(unknown_kind(path))
    in_machine = isinstance(error, OSError) and error.errno is not None and error.errno not in _FILE_ERRORS
    message = getattr(error, "strerror", None) or str(error)
    reason = " ".join(message.split()) or type(error).__name__
    if in_machine or isinstance(error, MemoryError):
        return InputError(f"{path} cannot be read at the moment ({reason}): start again when the cause is mended")
    return UnreadableError(reason)


def unknown_kind(path: Path) -> str:
    """Return the reason why no reader knows a file."""
    with path.open("rb") as file:
        start = file.read(12)
    if start[4:8] == b"ftyp" and start[8:] in _HEIF_BRANDS and "HEIF" not in formats():
        return 'HEIC, which PIL does not read by itself: pip install "lightconv[heif]"'
    return "not an image, or of a kind that is not read"


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB: transparent pixels over white, 16 bits scaled to 8.

    A large image is converted in strips: the steps between take many times the memory of its pixels.

    Raises:
        UnreadableError: If the range of the pixel values is unknown.
    """
    width, height = image.size
    if width * height <= _STRIP:
        return convert_pixels(image)
    rgb = Image.new("RGB", image.size)
    rows = max(1, _STRIP // width)
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        rgb.paste(convert_pixels(strip), (0, top))
    return rgb


def convert_pixels(image: Image.Image) -> Image.Image:
    """Convert an image to RGB at once; see `to_rgb`."""
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
