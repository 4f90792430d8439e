"""Checkpoints of a run: write and verify them, find them, load their weights, correct the paths of a moved run."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins import TorchCheckpointIO
from torch import nn

from lightconv.errors import InputError, InputWarning
from lightconv.files import remove_leftovers, replacing
from lightconv.models.weights import read_checkpoint
from lightconv.runs.configuration import former_directory, relocate
from lightconv.seal import find_damage, seal
from lightconv.tasks import Classification

_LAST = "last.ckpt"
_PREVIOUS = "previous.ckpt"


class VerifiedCheckpoints(TorchCheckpointIO):
    """Plugin of Lightning's Trainer for checkpoints that survive a kill, a full disk and flipped bits.

    A checkpoint is written beside its target, flushed to the disk, and renamed. It carries its SHA-256, which is
    compared when it is read. The last.ckpt before the newest is kept as previous.ckpt. Lightning's own goes through
    TMPDIR, from where it is copied if that is another file system.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(plugins=[VerifiedCheckpoints()], max_epochs=10, logger=False)
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint atomically."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_checkpoint(path, checkpoint, keep_previous=path.name == _LAST)

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Verify and read a checkpoint.

        Raises:
            InputError: If it is damaged.
        """
        damage = find_damage(Path(path))
        if damage:
            raise InputError(f"{path} is damaged: {damage}")
        return super().load_checkpoint(path, *args, **kwargs)


def repair_last_checkpoint(directory: Path) -> None:
    """Replace a damaged or missing last.ckpt by the checkpoint before it, and warn about the damage.

    The caller holds the claim on the directory: files left by a killed process are removed.

    Raises:
        InputError: If all checkpoints are damaged.
    """
    folder = directory / "checkpoints"
    last = folder / _LAST
    remove_leftovers(last)
    damages: list[str] = []
    for path in (last, folder / _PREVIOUS):
        if not path.is_file():
            continue
        damage = find_damage(path)
        if damage is None:
            break
        damages.append(f"{path} is damaged: {damage}")
    else:
        if damages:
            # the best weights may be those of long ago: to go back there is the user's decision
            raise InputError(
                f"{'; '.join(damages)}. No checkpoint is left before it: start a new run, or copy "
                f"{folder / 'best.ckpt'} to last.ckpt to go back to the best weights."
            )
        return
    if damages:
        warnings.warn(f"{'; '.join(damages)}. The run goes on from {path.name}.", InputWarning, stacklevel=2)
    if path != last:
        with replacing(last) as fresh:
            shutil.copyfile(path, fresh)


def find_last_checkpoint(directory: Path) -> Path | None:
    """Return the checkpoint of a run's last step; None if the run did not finish its first epoch."""
    path = directory / "checkpoints" / _LAST
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


def rewrite_moved_checkpoints(directory: Path) -> None:
    """Correct the paths in the checkpoints of a run that was moved; otherwise leave the files alone.

    Lightning's ModelCheckpoint stores the path of the best weights, and starts over without them if it lies in
    another directory than the one configured.

    Args:
        directory: directory of the run today.
    """
    old, new = former_directory(directory), str(directory.resolve())
    if old == new:
        return
    for path in (directory / "checkpoints").glob("*.ckpt"):
        try:
            content = read_checkpoint(path)
        except InputError:
            continue  # a damaged one has no paths to correct
        # the paths are keys and values of the callbacks' states
        content["callbacks"] = relocate(content["callbacks"], old, new)
        write_checkpoint(path, content)


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


def write_checkpoint(path: Path, content: dict[str, Any], *, keep_previous: bool = False) -> None:
    """Write a file of torch's atomically, with its SHA-256.

    Args:
        path: file to write.
        content: content of the file.
        keep_previous: True to rename the file that is replaced to previous.ckpt.
    """
    with replacing(path) as fresh:
        # torch names the archive within the file after the path, and the temporary path is random: pass an open file
        with fresh.open("wb") as file:
            try:
                torch.save(content, file)
            except RuntimeError as error:
                # torch's writer hides a full disk behind an error of its own
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise
        seal(fresh)
        if keep_previous and path.is_file():
            path.replace(path.with_name(_PREVIOUS))
