"""Output directories made by Hydra before a verb runs, removed again if the verb leaves them empty."""

from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException


class EmptyOutputs(Callback):
    """Hydra callback to remember the directories that a command is about to make, for ``remove_empty``.

    A refused command leaves nothing behind then. Hydra's own ``on_run_end`` is skipped after SystemExit.
    """

    made: ClassVar[list[Path]] = []

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Remember the directories of a single run."""
        # a wrong resume= or run= raises here, and again where Hydra reports it
        with suppress(OmegaConfBaseException):
            EmptyOutputs.made = missing_directories(Path(config.hydra.run.dir))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Remember the directories of a sweep."""
        with suppress(OmegaConfBaseException):
            EmptyOutputs.made = missing_directories(Path(config.hydra.sweep.dir))


def missing_directories(directory: Path) -> list[Path]:
    """Return a directory and those above it that do not exist yet, the innermost first."""
    path = directory.absolute()
    return [place for place in (path, *path.parents) if not place.exists()]


def remove_empty() -> None:
    """Remove the directories remembered last, as far as they are empty."""
    made, EmptyOutputs.made = EmptyOutputs.made, []
    for directory in made:
        # not empty, or never made
        with suppress(OSError):
            directory.rmdir()
