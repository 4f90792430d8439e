"""Find images that are in two splits: as one file, as files of the same bytes, or as the same pixels."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from lightconv.data.base import Images

_IMAGES_PER_BLOCK = 256  # stored images are read block by block, because they need not fit into memory


def find_same_files(files: Sequence[Path], others: Sequence[Path]) -> list[int]:
    """Return the positions of files that are among others, through links or as copies.

    Only files of one size are read.
    """
    identities: set[tuple[int, int]] = set()
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path, status in _existing(others):
        identities.add((status.st_dev, status.st_ino))
        by_size[status.st_size].append(path)
    digests: dict[int, set[bytes]] = {}
    positions = {path: position for position, path in enumerate(files)}
    same = []
    for path, status in _existing(files):
        size = status.st_size
        is_same = (status.st_dev, status.st_ino) in identities
        if not is_same and size in by_size:
            if size not in digests:
                digests[size] = set(map(_file_digest, by_size[size]))
            is_same = _file_digest(path) in digests[size]
        if is_same:
            same.append(positions[path])
    return same


def find_same_images(images: Images, others: Images) -> list[int]:
    """Return the positions of images whose pixels are those of one of the others.

    All images are compared by their middle rows, and only those with equal ones as a whole.
    """
    by_row: dict[bytes, list[int]] = defaultdict(list)
    for position, digest in enumerate(_digests(others, range(len(others)), middle_row=True)):
        by_row[digest].append(position)
    candidates = []
    suspects: set[int] = set()
    for position, digest in enumerate(_digests(images, range(len(images)), middle_row=True)):
        if digest in by_row:
            candidates.append(position)
            suspects.update(by_row[digest])
    known = set(_digests(others, sorted(suspects)))
    digests = _digests(images, candidates)
    return [position for position, digest in zip(candidates, digests, strict=True) if digest in known]


def _existing(paths: Sequence[Path]) -> Iterator[tuple[Path, os.stat_result]]:
    for path in paths:
        with suppress(OSError):  # gone since the files were listed
            yield path, path.stat()


def _file_digest(path: Path) -> bytes:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        return os.fsencode(path)


def _digests(images: Images, positions: Sequence[int], *, middle_row: bool = False) -> Iterator[bytes]:
    for first in range(0, len(positions), _IMAGES_PER_BLOCK):
        block = images[list(positions[first : first + _IMAGES_PER_BLOCK])]
        if middle_row:
            # (b, c, h, w) -> (b, c, w)
            block = block[:, :, block.shape[2] // 2]
        for image in block:
            yield hashlib.sha256(image.contiguous().numpy()).digest()
