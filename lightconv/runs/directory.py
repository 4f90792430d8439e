"""Directory of a run: unused, claimed once, and complete enough to be understood and repeated years later."""

import json
import math
from pathlib import Path
from typing import Any

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
