"""Directory of a run: unused, claimed once, and complete enough to be understood and repeated years later."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from lightconv.errors import InputError
from lightconv.files import replacing, write_text
from lightconv.runs.environment import environment
from lightconv.runs.literal import escape_references


def existing_run(directory: str | Path | None, setting: str) -> Path:
    """Return the directory of a run.

    Args:
        directory: directory to look at.
        setting: name of the setting or argument that gives the directory, for the message.

    Raises:
        InputError: If no run is there.
    """
    if directory is None or not (Path(directory) / "config.yaml").is_file():
        raise InputError(
            f"{setting}={directory} is not a run: it has no config.yaml. Name a directory that `lightconv train` wrote."
        )
    return Path(directory)


@contextmanager
def claimed_directory(directory: Path, *, numbered: bool = False) -> Iterator[Path]:
    """Create a run's directory and keep other processes out of it during a ``with`` block.

    The system releases the claim of a process that dies. A directory made here that holds no run at the end is removed
    if it is empty: a refused command leaves nothing behind.

    Args:
        directory: directory of the run.
        numbered: True to choose another name, ending in _2, _3, ..., if the directory is claimed or holds a run.

    Yields:
        The directory of the run.

    Raises:
        InputError: If another process has claimed the directory.
    """
    is_new = not directory.exists() or numbered
    lock = _claim_numbered(directory) if numbered else _claim(directory)
    claimed = Path(lock.lock_file).parent
    try:
        yield claimed
    finally:
        if not (claimed / "config.yaml").exists():
            Path(lock.lock_file).unlink(missing_ok=True)
            if is_new:
                with suppress(OSError):  # raised if it is not empty
                    claimed.rmdir()
        lock.release()


def _claim(directory: Path) -> FileLock:
    lock = FileLock(directory / ".lock")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        raise InputError(
            f"{directory} is in use: another process trains there. Wait for its end, or choose another hydra.run.dir"
        ) from None
    except OSError as error:
        raise InputError(f"{directory} cannot be written ({error.strerror}): choose another hydra.run.dir") from error
    return lock


def _claim_numbered(directory: Path) -> FileLock:
    """Claim the first directory of the names NAME, NAME_2, NAME_3, ... that is neither claimed nor holds a run."""
    for number in count(1):
        candidate = directory if number == 1 else directory.with_name(f"{directory.name}_{number}")
        with suppress(InputError):
            lock = _claim(candidate)
            # checked after the claim: until then another process may still write its run
            if not (candidate / "config.yaml").exists():
                return lock
            lock.release()
    raise AssertionError("unreachable: count never ends")


def check_unused(directory: Path) -> None:
    """Check a directory for a new run.

    Raises:
        InputError: If the directory holds a run already.
    """
    # config.yaml is written when all checks have passed: before that a failed command leaves no run
    if (directory / "config.yaml").exists():
        raise InputError(
            f"{directory} already holds a run. Choose another hydra.run.dir, or resume that run: resume={directory}"
        )


def write_definition(directory: Path, config: DictConfig) -> None:
    """Write config.yaml, resolved, and environment.json: from here on the directory holds a run."""
    resolved = OmegaConf.to_container(config, resolve=True)
    with replacing(directory / "config.yaml") as fresh:
        OmegaConf.save(OmegaConf.create(escape_references(resolved)), fresh)
    write_json(directory / "environment.json", environment())


def write_json(path: Path, content: dict[str, Any] | list[Any]) -> None:
    """Write indented JSON atomically. NaN and infinities become null: JSON has no such numbers."""
    write_text(path, json.dumps(_without_non_numbers(content), indent=2, allow_nan=False) + "\n")


def _without_non_numbers(value: Any) -> Any:
    """Copy nested dictionaries and lists with None for floats that are not finite."""
    if isinstance(value, dict):
        return {key: _without_non_numbers(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_non_numbers(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
