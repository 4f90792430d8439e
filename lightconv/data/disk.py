"""Decoded images in one file mapped into memory: read by the next run, and by all processes of this one."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import PIL
import torch
from torch import Tensor

from lightconv.data.decoding import VERSION
from lightconv.data.stored import BadRows, Decoder, ReadRows
from lightconv.errors import InputError
from lightconv.keyed_cache import CacheEntry


def cache_on_disk(paths: Sequence[Path], decoder: Decoder, cache: Path) -> tuple[ReadRows, BadRows]:
    """Map the cached images of these files, or decode all files into the cache if it does not hold exactly these.

    A file counts as unchanged if its path, size and time of modification are the same. Files without an image are tried
    again. A damaged cache is decoded again: a digest of its whole content is checked once per run.

    Args:
        paths: image files.
        decoder: decoder of the files.
        cache: file for the images of this set alone. A second process that wants it waits.

    Returns:
        A function that reads rows, and the bad rows, which are zeros.

    Raises:
        InputError: If the cache cannot be written, files change meanwhile, or a file is unreadable and the decoder is
            strict.
    """
    try:
        with CacheEntry(cache, key="").lock():
            cached = _read(paths, decoder, cache)
            if cached is None:
                check_space(paths, decoder, cache)
                _write(paths, decoder, cache)
                cached = _read(paths, decoder, cache)
    except OSError as error:
        size = len(paths) * bytes_per_image(decoder) / 1e6
        raise InputError(
            f"{cache} cannot be written ({error.strerror or error}): set another directory by data.cache_dir=FOLDER, "
            f"with room for {size:,.1f} MB, or choose data.cache=none"
        ) from error
    if cached is None:
        raise InputError(f"{cache}: image files change while they are read; choose data.cache=none")
    images, bad = cached
    return partial(torch.index_select, images, 0), bad


def bytes_per_image(decoder: Decoder) -> int:
    """Return the size of a decoded image."""
    return 3 * decoder.side**2


def check_space(paths: Sequence[Path], decoder: Decoder, cache: Path) -> None:
    """Raise OSError if the disk has no room for the images, before hours of decoding are lost."""
    # an old file stays until the new one is complete
    if shutil.disk_usage(cache.parent).free < len(paths) * bytes_per_image(decoder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _read(paths: Sequence[Path], decoder: Decoder, cache: Path) -> tuple[Tensor, BadRows] | None:
    stored = CacheEntry(cache, _fingerprint(paths, decoder)).read()
    if stored is None:
        return None
    bad = {int(row): reason for row, reason in stored.notes["bad"].items()}
    # a bad file may have become readable at the same size and time, such as a link whose target has come back
    results = decoder.decode_files([paths[row] for row in bad])
    if any(isinstance(result, Tensor) for result in results):
        return None
    # bytes -> (n, 3, side, side) uint8, still in the file
    images = torch.frombuffer(stored.content, dtype=torch.uint8)
    return images.view(len(paths), 3, decoder.side, decoder.side), bad


def _write(paths: Sequence[Path], decoder: Decoder, cache: Path) -> None:
    # The fingerprint is taken before the files are read. If one changes meanwhile, reading the entry fails.
    entry = CacheEntry(cache, _fingerprint(paths, decoder))
    bad: BadRows = {}

    def blocks() -> Iterator[bytes]:
        blank = bytes(bytes_per_image(decoder))
        for row, result in enumerate(decoder.decode_files(paths)):
            if isinstance(result, str):
                bad[row] = result
                yield blank
            else:
                yield result.numpy().tobytes()

    entry.write(blocks(), {"bad": bad})
    # earlier versions of lightconv kept a folder, which nobody reads any more
    shutil.rmtree(cache.with_suffix(""), ignore_errors=True)


def _fingerprint(paths: Sequence[Path], decoder: Decoder) -> str:
    """Return a digest of everything the decoded images depend on."""
    versions = [VERSION, PIL.__version__, decoder.side, decoder.fit]
    # names may be no text, so their bytes are written as hexadecimal digits
    files = [[os.fsencode(path).hex(), *_size_and_time(path)] for path in paths]
    return hashlib.sha256(json.dumps([versions, files]).encode()).hexdigest()


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns
