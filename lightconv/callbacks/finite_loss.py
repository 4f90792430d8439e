"""Stop at a training loss that is NaN or infinite, before a checkpoint keeps weights that are no numbers."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, nn

from lightconv.errors import InputError, InputWarning, NonFiniteLossError

_INTERVAL = 50  # batches between two looks at a GPU's losses, each of which waits for the GPU


class FiniteLoss(L.Callback):
    """Stop training at the first loss that is NaN or infinite.

    The error names the step and the last checkpoint saved before. No checkpoint is saved after that step, not even by
    ``ModelCheckpoint(save_on_exception=True)``, so the checkpoints there are hold weights that are numbers.

    On a CPU each loss is checked at once. On a GPU losses are collected and checked together, every 50 batches, before
    each validation and before each checkpoint.

    Args:
        on_nan: "stop" raises the error; "warn" warns once and trains on.

    Raises:
        InputError: If ``on_nan`` is neither.
        NonFiniteLossError: While training, if a loss is no finite number.

    Example:
        >>> trainer = L.Trainer(max_epochs=10, callbacks=[FiniteLoss()], logger=False)
    """

    def __init__(self, on_nan: Literal["stop", "warn"] = "stop") -> None:
        if on_nan not in {"stop", "warn"}:
            raise InputError(f"on_nan={on_nan}: choose stop or warn")
        self.on_nan = on_nan
        self._losses: list[Tensor] = []
        self._steps: list[str] = []
        self._done = False
        self._muted: list[Any] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Begin afresh, also after a run that was stopped."""
        self._losses, self._steps, self._done = [], [], False
        for checkpoint in self._muted:
            checkpoint.save_on_exception = True
        self._muted = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the loss, and check the losses noted if that costs nothing or if there are many."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            # a step is counted from 1, as an epoch is in messages
            place = f"step {trainer.global_step} (epoch {trainer.current_epoch + 1}, batch {batch_idx + 1})"
            self._losses.append(loss.detach())
            self._steps.append(place)
        waits = pl_module.device.type != "cpu" or trainer.world_size > 1
        if not waits or (batch_idx + 1) % _INTERVAL == 0:
            self.check(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the losses noted."""
        self.check(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the losses noted, before time is spent on validation."""
        self.check(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Check losses and weights, so that neither is no number in a checkpoint."""
        self.check(trainer)
        # the last update before a checkpoint can spoil weights whose loss was a number
        if self.on_nan == "stop" and trainer.training and not are_finite(pl_module):
            raise NonFiniteLossError(self._describe(trainer, "weights are", f"step {trainer.global_step}"))

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Keep other callbacks from saving the weights of a stopped run."""
        if not isinstance(exception, NonFiniteLossError):
            return
        for checkpoint in trainer.checkpoint_callbacks:
            if getattr(checkpoint, "save_on_exception", False):
                checkpoint.save_on_exception = False  # type: ignore[attr-defined]
                self._muted.append(checkpoint)

    def check(self, trainer: L.Trainer) -> None:
        """Check the losses noted so far.

        Raises:
            NonFiniteLossError: If one is no finite number, and ``on_nan`` is "stop".
        """
        losses, steps = self._losses, self._steps
        self._losses, self._steps = [], []
        if self._done or not losses:
            return
        place = first_non_finite(losses, steps)
        # processes stop together: one alone would leave the others waiting for its gradients
        if trainer.strategy.reduce_boolean_decision(place is None):
            return
        self._done = True
        message = self._describe(trainer, "the training loss is", place or "a step of another process")
        if self.on_nan == "stop":
            raise NonFiniteLossError(message)
        warnings.warn(message, InputWarning, stacklevel=2)

    def _describe(self, trainer: L.Trainer, subject: str, place: str) -> str:
        """Return the message: the step, the last good checkpoint, and the remedy."""
        what = f"{subject} NaN or infinite since {place}."
        if self.on_nan == "warn":
            return f"{what} Training goes on with weights that are no numbers, because of on_nan=warn."
        checkpoint = last_checkpoint(trainer)
        left = f"The last good checkpoint is {checkpoint}." if checkpoint else "No checkpoint was saved before."
        return (
            f"{what} {left} Lower the learning rate (optimizer.lr), clip gradients (trainer.gradient_clip_val=1), or "
            "train in trainer.precision=32-true; on_nan=warn trains on"
        )


def first_non_finite(losses: list[Tensor], steps: list[str]) -> str | None:
    """Return the step of the first loss that is no finite number; None if all are.

    Args:
        losses: scalars on one device.
        steps: names of their steps.
    """
    # one transfer for all of them
    finite = torch.stack([loss.float() for loss in losses]).isfinite().tolist()
    for step, is_finite in zip(steps, finite, strict=True):
        if not is_finite:
            return step
    return None


def are_finite(module: nn.Module) -> bool:
    """Return True if no parameter holds NaN or infinity."""
    states = [parameter.detach().isfinite().all() for parameter in module.parameters()]
    return not states or bool(torch.stack(states).all())


def last_checkpoint(trainer: L.Trainer) -> Path | None:
    """Return the checkpoint that the Trainer's callbacks saved last; None if there is none."""
    paths = []
    for callback in trainer.checkpoint_callbacks:
        for name in ("last_model_path", "best_model_path"):
            path = getattr(callback, name, "")
            if path and Path(path).is_file():
                paths.append(Path(path))
    return max(paths, key=lambda path: path.stat().st_mtime, default=None)
