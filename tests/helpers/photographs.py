"""Small real photographs, and files of every kind found among people's photographs."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

TEMPLE, FLOWER = (Image.fromarray(pixels) for pixels in load_sample_images().images)
Writer = Callable[[Path], object]


def photograph(number: int = 0, of: Image.Image = FLOWER, size: tuple[int, int] = (48, 36)) -> Image.Image:
    """Cut a part out of a photograph; each number gives another part."""
    left, top = np.random.default_rng(number).integers(0, 200, 2).tolist()
    return of.crop((left, top, left + 240, top + 180)).resize(size)


def write_photographs(root: Path, count: int = 12) -> Path:
    """Write two classes of photographs into sub-folders."""
    for name, of in {"flower": FLOWER, "temple": TEMPLE}.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            photograph(number, of).save(root / name / f"{number}.jpg", quality=95)
    return root


def save(image: Image.Image, kind: str = "PNG", **options: object) -> Writer:
    """Return a function that writes an image to a path."""
    return lambda path: image.save(path, kind, **options)


def put(data: bytes) -> Writer:
    """Return a function that writes bytes to a path."""
    return lambda path: path.write_bytes(data)


def content(image: Image.Image, kind: str) -> bytes:
    """Return the bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


PHOTOGRAPH = photograph()
PIXELS = np.asarray(PHOTOGRAPH)
GREY = np.asarray(PHOTOGRAPH.convert("L"))


def over_white() -> Image.Image:
    """Return the photograph with a white left half, as a transparent one is shown."""
    pixels = PIXELS.copy()
    pixels[:, :24] = 255
    return Image.fromarray(pixels)


def with_hole() -> Image.Image:
    """Return the photograph with a transparent left half, red below the transparency."""
    pixels = np.asarray(PHOTOGRAPH.convert("RGBA")).copy()
    pixels[:, :24] = (255, 0, 0, 0)
    return Image.fromarray(pixels)


def palette_with_hole() -> Image.Image:
    """Return the photograph with a transparent left half in 256 colours, the last one transparent."""
    colours = PHOTOGRAPH.quantize(255)
    pixels = np.asarray(colours).copy()
    pixels[:, :24] = 255
    image = Image.frombytes("P", colours.size, pixels.tobytes())
    image.putpalette([*colours.getpalette()[: 255 * 3], 255, 0, 0])
    image.info["transparency"] = 255
    return image


def sideways(orientation: int, stored: Image.Image) -> Writer:
    """Return a function that writes an image with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(stored, "PNG", exif=exif)


def grey(image: Image.Image = PHOTOGRAPH) -> Image.Image:
    """Return an image without colours, as RGB."""
    return image.convert("L").convert("RGB")


_FRAMES = {"save_all": True, "append_images": [photograph(1)]}

# files that give an image: how to write them, and the image expected
ODD: dict[str, tuple[Writer, Image.Image]] = {
    "no_suffix": (save(PHOTOGRAPH), PHOTOGRAPH),
    "png_called.jpg": (save(PHOTOGRAPH), PHOTOGRAPH),
    "UPPER.PNG": (save(PHOTOGRAPH), PHOTOGRAPH),
    "space ünïcode\nnewline.png": (save(PHOTOGRAPH), PHOTOGRAPH),
    "progressive.jpg": (save(PHOTOGRAPH, "JPEG", quality=95, progressive=True), PHOTOGRAPH),
    "cmyk.jpg": (save(PHOTOGRAPH.convert("CMYK"), "JPEG", quality=95), PHOTOGRAPH),
    "ycbcr.tif": (save(PHOTOGRAPH.convert("YCbCr"), "TIFF"), PHOTOGRAPH),
    "palette.png": (save(PHOTOGRAPH.quantize(256)), PHOTOGRAPH),
    "palette_with_hole.png": (save(palette_with_hole()), over_white()),
    "transparent.png": (save(with_hole()), over_white()),
    "transparent.webp": (save(with_hole(), "WEBP", lossless=True), over_white()),
    "grey_transparent.png": (save(with_hole().convert("LA")), grey(over_white())),
    "grey.jpg": (save(PHOTOGRAPH.convert("L"), "JPEG", quality=95), grey()),
    "grey_16_bit.png": (save(Image.fromarray(GREY.astype(np.uint16) * 257)), grey()),
    "grey_16_bit.tif": (save(Image.fromarray(GREY.astype(np.uint16) * 257), "TIFF"), grey()),
    "grey_16_bit.pgm": (save(Image.fromarray(GREY.astype(np.uint16) * 257), "PPM"), grey()),
    "grey_32_bit.tif": (save(Image.fromarray(GREY.astype(np.int32) * 257), "TIFF"), grey()),
    "one_bit.png": (save(PHOTOGRAPH.convert("1")), PHOTOGRAPH.convert("1").convert("RGB")),
    "sideways.png": (sideways(6, PHOTOGRAPH.transpose(Image.Transpose.ROTATE_90)), PHOTOGRAPH),
    "animated.gif": (save(PHOTOGRAPH.quantize(256), "GIF", **_FRAMES), PHOTOGRAPH),
    "animated.png": (save(PHOTOGRAPH, **_FRAMES), PHOTOGRAPH),
    "pages.tif": (save(PHOTOGRAPH, "TIFF", **_FRAMES), PHOTOGRAPH),
    "bitmap.bmp": (save(PHOTOGRAPH, "BMP"), PHOTOGRAPH),
    "one_pixel.png": (save(PHOTOGRAPH.resize((1, 1))), PHOTOGRAPH.resize((1, 1))),
    "line.png": (save(PHOTOGRAPH.resize((500, 1))), PHOTOGRAPH.resize((500, 1))),
}


def _bomb() -> bytes:
    """Return the beginning of a PNG of 40,000 x 40,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    chunks = ((13, header), (0, b"IDAT"))
    result = b"\x89PNG\r\n\x1a\n"
    for length, chunk in chunks:
        result += struct.pack(">I", length) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return result


def _damage(data: bytes) -> bytes:
    """Flip all bits of the byte in the middle."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]


_UNKNOWN = "not an image, or of a kind that is not read"

# files that give no image: how to write them, and words of the reason expected
BAD: dict[str, tuple[Writer, str]] = {
    "empty.jpg": (put(b""), "empty"),
    "truncated.jpg": (put(content(PHOTOGRAPH, "JPEG")[:-200]), "truncated"),
    "truncated.png": (put(content(PHOTOGRAPH, "PNG")[:-200]), "truncated"),
    "truncated.gif": (put(content(PHOTOGRAPH.quantize(256), "GIF")[:-200]), "truncated"),
    "truncated.tif": (put(content(PHOTOGRAPH, "TIFF")[:-200]), "truncated"),
    "truncated.webp": (put(content(PHOTOGRAPH, "WEBP")[:-200]), "decoder"),
    "truncated.bmp": (put(content(PHOTOGRAPH, "BMP")[:-200]), "truncated"),
    "header_alone.jpg": (put(content(PHOTOGRAPH, "JPEG")[:100]), "Truncated"),
    "damaged.png": (put(_damage(content(PHOTOGRAPH, "PNG"))), "stream"),
    "zeros.jpg": (put(bytes(5000)), _UNKNOWN),
    "noise.jpg": (put(np.random.default_rng(0).bytes(5000)), _UNKNOWN),
    "text.jpg": (put(b"This is not a photograph.\n"), _UNKNOWN),
    "error_page.jpg": (put(b"<!DOCTYPE html><html><body>404 Not Found</body></html>"), _UNKNOWN),
    "drawing.svg": (put(b'<svg xmlns="http://www.w3.org/2000/svg"><circle r="9"/></svg>'), _UNKNOWN),
    "phone.heic": (put(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)), _UNKNOWN),
    "film.mp4": (put(b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(100)), _UNKNOWN),
    "paper.pdf": (put(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n"), _UNKNOWN),
    "drawing.eps": (put(content(PHOTOGRAPH, "EPS")), _UNKNOWN),
    "archive.zip": (put(b"PK\x05\x06" + bytes(18)), _UNKNOWN),
    "array.npy": (put(b"\x93NUMPY\x01\0v\0" + bytes(118)), _UNKNOWN),
    "notes.txt": (put(b"two of them are blurred\n"), _UNKNOWN),
    "labels.json": (put(b'{"0.jpg": "flower"}'), _UNKNOWN),
    "floating_point.tif": (save(Image.fromarray(PIXELS[..., 0] / np.float32(255)), "TIFF"), "floating-point"),
    "32_bits.tif": (save(Image.fromarray(GREY.astype(np.int32) * 2**20), "TIFF"), "beyond 16 bits"),
    "bomb.png": (put(_bomb()), "decompression bomb"),
    "folder.jpg": (Path.mkdir, "a folder"),
    "link.jpg": (lambda path: path.symlink_to("nowhere.jpg"), "a link to nothing"),
    "circle.jpg": (lambda path: path.symlink_to(path.name), "a link to nothing"),
    "pipe.jpg": (os.mkfifo, "not a regular file"),
}

# files that operating systems leave behind
CLUTTER = (".DS_Store", "._0.jpg", "Thumbs.db", "desktop.ini", ".hidden.jpg")


def write_odd_files(folder: Path) -> None:
    """Write one file of every kind above."""
    for name, (write, _) in {**ODD, **BAD}.items():
        write(folder / name)
    for name in CLUTTER:
        (folder / name).write_bytes(b"clutter")
