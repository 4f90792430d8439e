"""Arguments of a command that resumes a run, split before Hydra composes a configuration.

A resumed run has a configuration of its own. Hydra would apply the settings to the groups that are the default today.
"""

import json
from pathlib import Path
from typing import NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser

from lightconv.errors import InputError


class Resume(NamedTuple):
    """Arguments of ``lightconv train`` in two parts.

    Attributes:
        arguments: flags, ``resume``, ``allow`` and settings of Hydra itself, for Hydra.
        settings: all other settings, for the configuration of the run. None for a new run: Hydra gets them all.
    """

    arguments: list[str]
    settings: list[str] | None


def split_arguments(arguments: list[str]) -> Resume:
    """Split the arguments of ``lightconv train``.

    ``resume=auto`` goes on with the run in hydra.run.dir, or begins it there. A command with it can be repeated as it
    is, by a scheduler for example.

    Raises:
        InputError: If ``resume=auto`` comes without hydra.run.dir, or another run with it.
    """
    values = {}
    for argument in arguments:
        name, _, value = argument.partition("=")
        values[name] = value
    resume = values.get("resume", "null")
    if resume == "auto":
        arguments = [argument for argument in arguments if argument != "resume=auto"]
        directory = values.get("hydra.run.dir")
        if directory is None:
            raise InputError("resume=auto resumes the run in hydra.run.dir, or begins it there: give hydra.run.dir")
        if not (Path(unquote(directory)) / "config.yaml").is_file():
            return Resume(arguments, None)
        resume = directory
        arguments = [argument for argument in arguments if not argument.startswith("hydra.run.dir=")]
        arguments.append(f"resume={directory}")
    elif resume != "null" and "hydra.run.dir" in values:
        raise InputError(f"resume={resume} goes on in the run's own directory: leave hydra.run.dir out")
    if resume == "null":
        return Resume(arguments, None)
    return _split(arguments, Path(unquote(resume)))


def _split(arguments: list[str], directory: Path) -> Resume:
    for_hydra, settings = [], []
    started_with = read_overrides(directory)
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if argument.startswith("-") or not (equals or argument.startswith("~")):
            for_hydra.append(argument)  # a flag, or the value of one
        elif name.lstrip("+~").startswith(("hydra.", "hydra/")) or name in {"resume", "allow"}:
            for_hydra.append(argument)
        elif argument not in started_with:
            settings.append(argument)
    return Resume(for_hydra, settings)


def read_overrides(directory: Path) -> list[str]:
    """Return the overrides that a run was started with: in a repeated command, they change nothing."""
    path = directory / "overrides.json"
    if not path.is_file():
        return []
    overrides: list[str] = json.loads(path.read_text())
    return overrides


def unquote(value: str) -> str:
    """Return the text of a value in Hydra's grammar."""
    return str(OverridesParser.create().parse_override(f"value={value}").value())
