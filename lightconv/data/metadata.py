"""Copies of PNG and JPEG files without their metadata: for files of which nothing but the metadata is damaged."""

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
_LARGEST = 2**28  # bytes of a file to copy
# start of scan, end of image: after them a JPEG file has no segments with a length
_SCAN = {0xDA, 0xD9}
_COMMENT = 0xFE
_ADOBE = 0xEE  # tells whether the pixels are RGB, YCbCr or CMYK
_ADOBE_LENGTH = 14


def without_metadata(path: Path) -> bytes | None:
    """Return the content of a PNG or JPEG file without its metadata, None for other files and very large ones."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size > _LARGEST:
            return None
        content = file.read()
    if content.startswith(_PNG):
        return _PNG + b"".join(png_chunks(content))
    if content.startswith(_JPEG):
        return _JPEG + b"".join(jpeg_segments(content))
    return None


def png_chunks(content: bytes) -> Iterator[bytes]:
    """Yield the chunks of a PNG file that pixels depend on, up to a truncated one."""
    start = len(_PNG)
    while start + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, start)
        end = start + 12 + length
        kind = content[start + 4 : start + 8]
        # ancillary chunks have a small first letter; transparency is the one that pixels depend on
        if kind[:1].isupper() or (kind == b"tRNS" and has_right_checksum(content[start:end])):
            yield content[start:end]
        start = end


def has_right_checksum(chunk: bytes) -> bool:
    """Return True if the last four bytes of a PNG chunk are its checksum."""
    return struct.pack(">I", zlib.crc32(chunk[4:-4])) == chunk[-4:]


def jpeg_segments(content: bytes) -> Iterator[bytes]:
    """Yield the segments of a JPEG file that pixels depend on, and the scans."""
    start = len(_JPEG)
    while start + 4 <= len(content) and content[start] == 0xFF and content[start + 1] not in _SCAN:
        marker = content[start + 1]
        (length,) = struct.unpack_from(">H", content, start + 2)
        end = start + 2 + length
        is_application = 0xE0 <= marker <= 0xEF and not (marker == _ADOBE and length >= _ADOBE_LENGTH)
        if marker != _COMMENT and not is_application:
            yield content[start:end]
        start = end
    yield content[start:]
