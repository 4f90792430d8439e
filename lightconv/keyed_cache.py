"""Files stored under a key and verified on reading.

An entry is one file: its content, a line of JSON with its key and its notes, and the SHA-256 digest of all before it.

    content                          any bytes, at the start of the file so a memory map is aligned
    {"key": "...", "notes": {...}}   one line
    0f3c...                          64 hexadecimal digits, one line

A missing, truncated, damaged or foreign file reads as None. Its owner then computes the content again.
"""

import hashlib
import json
import logging
import mmap
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from lightconv.files import remove_leftovers, replacing

_DIGEST_LINE = 65  # 64 hexadecimal digits and a newline


class Stored(NamedTuple):
    """Verified content of a cache entry.

    Attributes:
        content: bytes of the file, memory-mapped. Writes to them stay in this process and never reach the file.
        notes: small values stored beside the content, such as a shape.
    """

    content: memoryview
    notes: dict[str, Any]


class CacheEntry:
    """One file of a cache, valid under one key.

    Args:
        path: the file.
        key: text for everything the content depends on, such as a digest. A file stored under another key is ignored.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as directory:
        ...     entry = CacheEntry(Path(directory) / "squares", key="squares below 10")
        ...     with entry.lock():
        ...         if entry.read() is None:
        ...             entry.write([b"0 1 ", b"4 9"], {"count": 4})
        ...     stored = entry.read()
        >>> bytes(stored.content), stored.notes
        (b'0 1 4 9', {'count': 4})
    """

    def __init__(self, path: str | Path, key: str) -> None:
        self.path = Path(path)
        self.key = key

    @contextmanager
    def lock(self, waiting: str = "") -> Iterator[None]:
        """Keep other processes out of a ``with`` block: one computes, the others wait and read.

        The lock file lies beside the entry. The system releases it if the process dies.

        Args:
            waiting: warning logged if another process holds the lock; none is logged if empty.
        """
        from filelock import FileLock, Timeout  # noqa: PLC0415  reading alone does not need it

        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{self.path}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            if waiting:
                logging.getLogger(__name__).warning("%s (%s)", waiting, self.path)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def read(self) -> Stored | None:
        """Return the content, or None if the file is missing, damaged or stored under another key."""
        try:
            file = self.path.open("rb")
        except OSError:
            return None
        with file:
            if os.fstat(file.fileno()).st_size <= _DIGEST_LINE:
                return None
            # a private map: tensors over it may be written to
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        digest_start = len(mapped) - _DIGEST_LINE
        view = memoryview(mapped)
        if bytes(view[digest_start:]) != _digest_line(hashlib.sha256(view[:digest_start])):
            return None
        # the digest vouches for the layout: the last line before it is JSON
        content_end = mapped.rfind(b"\n", 0, digest_start - 1)
        description = json.loads(bytes(view[content_end:digest_start]))
        if description["key"] != self.key:
            return None
        return Stored(view[:content_end], description["notes"])

    def write(self, blocks: Iterable[bytes | memoryview], notes: dict[str, Any] | None = None) -> None:
        """Replace the file atomically. The caller holds the lock.

        Readers keep the file they have mapped. An error while writing leaves the old file as it was.

        Args:
            blocks: content in pieces, written one after the other, so that it need not fit into memory.
            notes: JSON values stored beside the content. They are read after the last block, so the generator of the
                blocks may fill them in.
        """
        remove_leftovers(self.path)
        digest = hashlib.sha256()
        with replacing(self.path) as fresh, fresh.open("wb") as file:
            for block in blocks:
                file.write(block)
                digest.update(block)
            description = b"\n" + json.dumps({"key": self.key, "notes": notes or {}}).encode() + b"\n"
            digest.update(description)
            file.write(description + _digest_line(digest))


def _digest_line(digest: Any) -> bytes:
    return digest.hexdigest().encode() + b"\n"
