"""Atomic replacement of files: write beside the target, flush to the disk, then rename."""

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` and rename it to ``path`` when the block ends without an error.

    The temporary file lies in the same directory, so the rename is atomic: readers see the old content or the new
    content. After an error the temporary file is removed and ``path`` is unchanged.

    Args:
        path: target file; its directory must exist.
    """
    path = Path(path)
    fresh = path.with_name(f".{path.name}.{uuid4().hex}.new")
    try:
        fresh.touch(exist_ok=False)  # not a file of tempfile's, which only its owner may read: it follows the umask
        yield fresh
        _flush(fresh)
        fresh.replace(path)
    except BaseException as error:
        if isinstance(error, OSError):
            # the user knows the target; an error in write() names no file at all
            error.filename = str(path)
        with suppress(OSError):  # raised if the directory has vanished
            fresh.unlink(missing_ok=True)
        raise
    _flush(path.parent)


def remove_leftovers(path: str | Path) -> None:
    """Remove temporary files left beside ``path`` by killed processes.

    The caller holds a lock on ``path``: another writer would lose its temporary file.
    """
    path = Path(path)
    for leftover in path.parent.glob(glob.escape(f".{path.name}.") + "*.new"):
        leftover.unlink(missing_ok=True)


def write_text(path: str | Path, content: str) -> None:
    """Replace a file's text atomically."""
    with replacing(path) as fresh:
        fresh.write_text(content)


def _flush(path: Path) -> None:
    """Wait until a file's content, or a directory's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
