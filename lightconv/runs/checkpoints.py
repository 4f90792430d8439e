"""Checkpoints of a run: find them, load their weights, and correct the paths in those of a moved run."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightconv.errors import InputError
from lightconv.files import replacing
from lightconv.models.weights import read_checkpoint
from lightconv.runs.configuration import former_directory, relocate
from lightconv.tasks import Classification


def find_last_checkpoint(directory: Path) -> Path | None:
    """Return the checkpoint of a run's last step; None if the run did not finish its first epoch."""
    path = directory / "checkpoints" / "last.ckpt"
    return path if path.is_file() else None


def find_checkpoint(directory: Path, name: str) -> Path:
    """Return a checkpoint by its name in the run, or by its path.

    Args:
        directory: directory of the run.
        name: ``best``, ``last``, or a path.

    Raises:
        InputError: If there is no such checkpoint; the message lists those of the run.
    """
    folder = directory / "checkpoints"
    for path in (folder / f"{name}.ckpt", folder / name, Path(name)):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in folder.glob("*.ckpt"))) or "none"
    raise InputError(f"checkpoint={name} is neither a file nor in {folder}. Choose one of that folder: {known}")


def check_epoch(checkpoint: Path, max_epochs: int) -> None:
    """Check a checkpoint before resuming from it.

    Args:
        checkpoint: checkpoint to go on from.
        max_epochs: epochs to train in all; -1 for no limit.

    Raises:
        InputError: If the checkpoint is damaged, or lies beyond ``max_epochs``.
    """
    epoch = read_checkpoint(checkpoint)["epoch"]
    # the file counts epochs from 0, the message from 1
    if 0 <= max_epochs < epoch:
        raise InputError(
            f"trainer.max_epochs={max_epochs}: the run in {checkpoint.parents[1]} is in epoch {epoch + 1} already. "
            f"Set trainer.max_epochs to at least {epoch}."
        )


def rewrite_moved_checkpoint(checkpoint: Path, directory: Path) -> None:
    """Correct the paths in a checkpoint if its run was moved; otherwise leave the file alone.

    Lightning's ModelCheckpoint stores the path of the best weights, and starts over without them if it lies in
    another directory than the one configured.

    Args:
        checkpoint: checkpoint to rewrite.
        directory: directory of the run today.
    """
    old, new = former_directory(directory), str(directory.resolve())
    if old == new:
        return
    # the paths are keys and values of the callbacks' states
    content = read_checkpoint(checkpoint)
    content["callbacks"] = relocate(content["callbacks"], old, new)
    write_checkpoint(checkpoint, content)


def load_weights(task: Classification, path: Path) -> None:
    """Load the weights of a checkpoint or of a weights.pt into a task, and nothing else of the file.

    Raises:
        InputError: If the file is damaged, or holds the weights of another network.
    """
    content = read_checkpoint(path)
    try:
        # a checkpoint of Lightning holds the task's state, weights.pt the network's alone
        if "state_dict" in content:
            task.load_state_dict(content["state_dict"])
        else:
            task.model.load_state_dict(content)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"{path} does not hold the weights of this {type(task.model).__name__}: {error}") from error


def read_validation(path: Path) -> dict[str, float]:
    """Return the validation figures of a checkpoint's weights; empty if an earlier version wrote it.

    Raises:
        InputError: If the file is damaged.
    """
    figures: dict[str, float] = read_checkpoint(path, mmap=True).get("validation", {})
    return figures


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a network's state dict for plain torch: tensors on the CPU, contiguous."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_checkpoint(path, weights)


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a file of torch's atomically."""
    # torch names the archive within the file after the path, and the temporary path is random: pass an open file
    with replacing(path) as fresh, fresh.open("wb") as file:
        torch.save(content, file)
