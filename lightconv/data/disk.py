"""Decoded images in a file that is mapped into memory: read by the next run, and by all processes of this one."""

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import PIL
import torch
from filelock import FileLock
from torch import Tensor

from lightconv.data.decoding import VERSION
from lightconv.data.stored import BadRows, Decoder, ReadRows
from lightconv.errors import InputError

_BLOCK = 2**24  # bytes that are summed up at a time


def cache_on_disk(paths: Sequence[Path], decoder: Decoder, folder: Path) -> tuple[ReadRows, BadRows]:
    """Map what the folder holds, or decode all files into it where it does not hold just these, whole and unchanged.

    A file counts as unchanged by its path, size and time of modification. Those that could not be read are tried again,
    and what is stored is read once, for its checksum: nothing is trusted that was damaged.

    Args:
        paths: the image files.
        decoder: decodes them.
        folder: of this set of files alone. Another process that wants it has to wait.

    Raises:
        InputError: if the folder cannot be written, or for a file that cannot be read, if the decoder is strict.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            stored = _opened(paths, decoder, folder)
            if stored is None:
                _write(paths, decoder, folder)
                stored = _opened(paths, decoder, folder)
    except OSError as error:
        size = len(paths) * _shape(decoder, 1).numel() / 1e9
        raise InputError(
            f"{folder} cannot be written ({error.strerror or error}): give another by data.cache_dir=FOLDER, with room "
            f"for {size:.1f} GB, or choose data.cache=none"
        ) from error
    if stored is None:
        raise InputError(f"{folder}: image files change while they are read; choose data.cache=none")
    images, bad = stored
    return partial(torch.index_select, images, 0), bad


def _opened(paths: Sequence[Path], decoder: Decoder, folder: Path) -> tuple[Tensor, BadRows] | None:
    shape = _shape(decoder, len(paths))
    try:
        index = json.loads((folder / "index.json").read_text())
        bad = {int(position): reason for position, reason in index["bad"].items()}
        known, checksum = index["files"] == _fingerprint(paths, decoder), index["checksum"]
        whole = (folder / "images").stat().st_size == shape.numel()
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None  # nothing there, or nothing that can be understood
    if not known or not whole:
        return None
    images = np.memmap(folder / "images", np.uint8, mode="c", shape=tuple(shape))
    results = decoder.decode_files([paths[row] for row in bad])
    if _checksum(images) != checksum or any(isinstance(result, Tensor) for result in results):
        return None
    return torch.from_numpy(images), bad


def _write(paths: Sequence[Path], decoder: Decoder, folder: Path) -> None:
    fresh = folder.with_suffix(".new")
    bad: BadRows = {}
    checksum = 0
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    files = _fingerprint(paths, decoder)  # before they are read: what changes meanwhile is not what is stored
    blank = bytes(_shape(decoder, 1).numel())
    with (fresh / "images").open("wb") as file:
        for row, result in enumerate(decoder.decode_files(paths)):
            block = blank
            if isinstance(result, str):
                bad[row] = result
            else:
                block = result.numpy().tobytes()
            file.write(block)
            checksum = zlib.crc32(block, checksum)
    index = {"files": files, "bad": bad, "checksum": checksum}
    (fresh / "index.json").write_text(json.dumps(index))
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def _shape(decoder: Decoder, count: int) -> torch.Size:
    return torch.Size((count, 3, decoder.side, decoder.side))


def _fingerprint(paths: Sequence[Path], decoder: Decoder) -> str:
    versions = [VERSION, PIL.__version__, decoder.side, decoder.fit]
    files = [[os.fsencode(path).hex(), *_state(path)] for path in paths]
    return hashlib.sha256(json.dumps([versions, files]).encode()).hexdigest()


def _state(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _checksum(images: np.ndarray) -> int:
    content, checksum = images.reshape(-1).data, 0
    for start in range(0, len(content), _BLOCK):
        checksum = zlib.crc32(content[start : start + _BLOCK], checksum)
    return checksum
