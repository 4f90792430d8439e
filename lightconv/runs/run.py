"""Finished runs opened from Python."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import nn

from lightconv.data import ImageData
from lightconv.errors import InputError
from lightconv.preprocessing import Preprocessing
from lightconv.runs.build import build_data, build_task
from lightconv.runs.checkpoints import find_checkpoint, load_weights
from lightconv.runs.configuration import load_config
from lightconv.runs.directory import existing_run
from lightconv.tasks import Classification


class Run:
    """Run of ``lightconv train``: its network, data and figures, each loaded on first use.

    Args:
        directory: directory that ``lightconv train`` wrote.
        config: configuration to build network and data from.
        checkpoint: weights to load: ``best``, ``last``, or a path.

    Attributes:
        directory: directory of the run.
        config: resolved configuration of the run; its paths are those of today if the run was moved.

    Example:
        >>> import contextlib, io, torch
        >>> import lightconv as lc
        >>> from lightconv.cli import main
        >>> with contextlib.redirect_stdout(io.StringIO()):  # the same as `lightconv train debug=smoke ...`
        ...     main(["train", "debug=smoke", "trainer.enable_progress_bar=false", "hydra.run.dir=runs/first"])
        >>> run = lc.open_run("runs/first")
        >>> run.network(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
        >>> run.classes[:3], run.figures["epochs"]
        (('0', '1', '2'), 1)
    """

    def __init__(self, directory: Path, config: DictConfig, checkpoint: str = "best") -> None:
        self.directory = directory
        self.config = config
        self._checkpoint = checkpoint

    @cached_property
    def task(self) -> Classification:
        """Task with the trained weights, in evaluation mode.

        Raises:
            InputError: If there is no such checkpoint, or it is damaged.
        """
        task = build_task(self.config)
        load_weights(task, find_checkpoint(self.directory, self._checkpoint))
        return task.eval()

    @property
    def network(self) -> nn.Module:
        """Trained network in evaluation mode: maps (n, c, h, w) normalised images to (n, classes) logits."""
        return self.task.model

    @cached_property
    def data(self) -> ImageData:
        """Data of the run, as its network expects them; images are read by ``data.setup(stage)``."""
        return build_data(self.config, self.task)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of the network's outputs."""
        return self.data.classes

    @property
    def preprocessing(self) -> Preprocessing:
        """Size, mean and std of the training images."""
        return Preprocessing(
            image_size=self.data.image_shape[1],
            mean=self.data.mean,
            std=self.data.std,
        )

    @cached_property
    def figures(self) -> dict[str, Any]:
        """Contents of metrics.json: validation and test figures, and those of each class under ``classes``.

        Raises:
            InputError: If the run was stopped before its end, or the file is damaged.
        """
        path = self.directory / "metrics.json"
        if not path.is_file():
            raise InputError(
                f"{path} is missing: the run was stopped before its end. Resume it: "
                f"lightconv train resume={self.directory}"
            )
        try:
            figures: dict[str, Any] = json.loads(path.read_text())
        except ValueError as error:
            raise InputError(f"{path} is damaged: {error}") from error
        return figures


def open_run(directory: str | Path, checkpoint: str = "best", allow: str | Sequence[str] = ()) -> Run:
    """Open a run of ``lightconv train``.

    Args:
        directory: directory that ``lightconv train`` wrote.
        checkpoint: weights to load: ``best``, ``last``, or a path.
        allow: classes and functions of your own that the run may build, such as "mynet.Net" or "mynet.*". A run that
            names anything but lightconv's kinds of parts is refused otherwise, since it may come from a stranger.

    Raises:
        InputError: If no run is there, or its configuration is damaged, or names a target that is not allowed.

    Example:
        >>> import lightconv as lc
        >>> try:
        ...     run = lc.open_run("no/such/run")
        ... except lc.InputError as error:
        ...     print(error)
        directory=no/such/run is not a run: it has no config.yaml. Name a directory that `lightconv train` wrote.
    """
    path = existing_run(directory, "directory")
    # network and data are built on first use, so that reading figures costs nothing
    patterns = [allow] if isinstance(allow, str) else list(allow)
    return Run(path, load_config(path, patterns), checkpoint)
