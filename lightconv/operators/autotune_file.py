"""Files of ``lightconv tune`` with measured answers: one per GPU name and versions of torch, Triton and lightconv.

They lie in the user's cache directory. The environment variable XDG_CACHE_HOME moves it.

A file is a JSON list with one row per question::

    {"question": KEY, "answer": OPTION}         # JSON has no tuples: lists are read as tuples
"""

import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_path

from lightconv._version import __version__
from lightconv.files import write_text
from lightconv.kernels import autotune
from lightconv.kernels.autotune import NO_ANSWERS, Answers
from lightconv.keyed_cache import CacheEntry


def path(gpu: str) -> Path:
    """Return the path for a GPU's name and the installed versions."""
    import triton  # noqa: PLC0415  not installed everywhere

    name = f"{gpu} torch {torch.__version__} triton {triton.__version__} lightconv {__version__}"
    file_name = re.sub(r"[^A-Za-z0-9.]+", "-", name) + ".json"
    return user_cache_path("lightconv", appauthor=False) / "tuned" / file_name


def load(gpu: str) -> Answers:
    """Return the answers stored for a GPU's name."""
    return read(path(gpu))


def read(file: Path) -> Answers:
    """Return the answers in a file. A missing file has none. A damaged file has none and causes a warning."""
    try:
        rows = json.loads(file.read_text())
        return {_as_tuples(row["question"]): _as_tuples(row["answer"]) for row in rows}
    except FileNotFoundError:
        return NO_ANSWERS
    except (OSError, ValueError, KeyError, TypeError) as error:
        warnings.warn(f"{file} is damaged and ignored ({error!r}): run lightconv tune again", stacklevel=2)
        return NO_ANSWERS


def write(file: Path, answers: Answers) -> None:
    """Replace a file's answers and let calls in this process use them.

    The caller must hold the file's lock, see `locked`.
    """
    rows = [json.dumps({"question": key, "answer": answer}) for key, answer in answers.items()]
    write_text(file, "[\n" + ",\n".join(rows) + "\n]\n")
    autotune.set_source(load)


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Let one process at a time measure for a file, for example one rank of a DDP job."""
    waiting = "waiting for another process that tunes this kind of GPU"
    with CacheEntry(file, key=file.stem).lock(waiting):
        yield


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value
