"""The files in which ``lightconv tune`` keeps what it measured: one a GPU name and versions of what runs on it.

They lie in the user's cache directory, which XDG_CACHE_HOME moves.
"""

import json
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_path

from lightconv._version import __version__
from lightconv.kernels import autotune
from lightconv.kernels.autotune import NO_ANSWERS, Answers


def path(gpu: str) -> Path:
    """The file of a GPU's name and of the versions that are installed."""
    import triton  # noqa: PLC0415  not installed everywhere

    name = f"{gpu} torch {torch.__version__} triton {triton.__version__} lightconv {__version__}"
    return user_cache_path("lightconv", appauthor=False) / "tuned" / f"{re.sub(r'[^A-Za-z0-9.]+', '-', name)}.json"


def read(file: Path) -> Answers:
    """Read answers; none, with a warning, from a damaged file."""
    try:
        rows = json.loads(file.read_text())
        return {_as_tuples(row["question"]): _as_tuples(row["answer"]) for row in rows}
    except FileNotFoundError:
        return NO_ANSWERS
    except (OSError, ValueError, KeyError, TypeError) as error:
        warnings.warn(f"{file} is damaged and ignored ({error!r}): run lightconv tune again", stacklevel=2)
        return NO_ANSWERS


def write(file: Path, answers: Answers) -> None:
    """Replace a file's answers, at once for all who read it; hold its lock."""
    rows = [json.dumps({"question": key, "answer": answer}) for key, answer in answers.items()]
    written = file.with_suffix(".new")
    written.write_text("[\n" + ",\n".join(rows) + "\n]\n")
    os.replace(written, file)
    autotune.set_source(load)


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Keep other processes that tune the same kind of GPU, such as the ranks of a DDP job, out of a ``with`` block."""
    from filelock import FileLock, Timeout  # noqa: PLC0415  who only reads answers need not load it

    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file.with_suffix(".lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        logging.getLogger(__name__).warning("waiting for another process that tunes this kind of GPU (%s)", file)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def load(gpu: str) -> Answers:
    """The answers for a kind of GPU."""
    return read(path(gpu))
