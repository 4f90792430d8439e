"""Checksums of torch's files: SHA-256, kept in the comment of the zip archive that such a file is.

    archive            entries, central directory, end record with the length of the comment
    sha256:0f3c...     the comment: the digest of all bytes before it

torch.load and every other reader of zip archives skip the comment. torch.load checks no checksum itself, not even the
CRC-32 of the archive's entries, so a file with flipped bits would load.
"""

import hashlib
import os
import zipfile
from pathlib import Path
from typing import BinaryIO

_PREFIX = b"sha256:"
_SEAL_BYTES = len(_PREFIX) + 64
_BLOCK_BYTES = 1 << 20
_END_SIGNATURE = b"PK\x05\x06"
_END_BYTES = 22  # of an end record without a comment; its last two bytes are the length of the comment


def seal(path: Path) -> None:
    """Write the SHA-256 of a zip archive into its comment. The archive must have no comment yet."""
    with path.open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(_SEAL_BYTES.to_bytes(2, "little"))
        file.seek(0)
        digest = _hash(file, path.stat().st_size)
        file.write(_PREFIX + digest)


def find_damage(path: Path) -> str | None:
    """Return what is wrong with a file of torch; None if nothing is.

    A file with a seal is compared with it, bit by bit. A file of another program has the CRC-32 of its entries. Files
    that are no zip archives, such as those of torch before 1.6, have no checksum, and count as whole.

    Raises:
        OSError: If the file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            return None
        file.seek(max(0, size - _SEAL_BYTES))
        ending = file.read()
        if ending.startswith(_PREFIX):
            file.seek(0)
            whole = _hash(file, size - _SEAL_BYTES) == ending.removeprefix(_PREFIX)
            return None if whole else "its bytes have changed since it was written"
    end_record = ending[-_END_BYTES:]
    if not end_record.startswith(_END_SIGNATURE) or not end_record.endswith(b"\0\0"):
        return "its end is missing"
    return find_damaged_entry(path)


def find_damaged_entry(path: Path) -> str | None:
    """Return what is wrong with the entries of a zip archive, by their CRC-32; None if nothing is."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = archive.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError) as error:
        return f"it is no whole archive ({error})"
    return None if name is None else f"the checksum of its entry {name} is wrong"


def _hash(file: BinaryIO, count: int) -> bytes:
    """Return the hexadecimal SHA-256 of the next ``count`` bytes."""
    digest = hashlib.sha256()
    while count > 0 and (block := file.read(min(count, _BLOCK_BYTES))):
        digest.update(block)
        count -= len(block)
    return digest.hexdigest().encode()
