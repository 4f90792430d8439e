"""Checkpoints from which a resumed run repeats the numbers of an uninterrupted one."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint


class LastCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, except that every checkpoint can be resumed from with the same numbers.

    With ``every_n_train_steps``, Lightning saves wherever the steps fall. A run resumed from a step before a
    validation skips that validation, and one resumed from within a window of accumulated gradients has lost them. Such
    steps are left out here, and the end of each epoch is saved, too. The arguments are those of
    lightning.pytorch.callbacks.ModelCheckpoint.

    Example:
        >>> callback = LastCheckpoint("checkpoints", "last", every_n_train_steps=100, enable_version_counter=False)
    """

    def __init__(self, *args: Any, save_on_train_epoch_end: bool | None = True, **kwargs: Any) -> None:
        super().__init__(*args, save_on_train_epoch_end=save_on_train_epoch_end, **kwargs)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if a checkpoint is due and the step can be resumed from."""
        if is_resumable(trainer, batch_idx):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the end of the epoch."""
        super().on_train_epoch_end(trainer, pl_module)
        if self.every_n_epochs == 0:  # Lightning saves steps or epochs, not both
            trainer.save_checkpoint(self.format_checkpoint_name({}), self.save_weights_only)


def is_resumable(trainer: L.Trainer, batch_idx: int) -> bool:
    """Return True if a checkpoint saved now, at the end of a training step, resumes with the same numbers.

    Args:
        trainer: Trainer within ``on_train_batch_end``.
        batch_idx: index of the batch in its epoch.
    """
    if trainer.is_last_batch or validation_follows(trainer, batch_idx):
        return False
    return ends_window(trainer, batch_idx)


def ends_window(trainer: L.Trainer, batch_idx: int) -> bool:
    """Return True if a batch completes a window of accumulated gradients."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def validation_follows(trainer: L.Trainer, batch_idx: int) -> bool:
    """Return True if Lightning validates right after the training step.

    Args:
        trainer: Trainer within ``on_train_batch_end``.
        batch_idx: index of the batch in its epoch.
    """
    if not trainer.enable_validation:
        return False
    every = trainer.check_val_every_n_epoch
    if every is not None and (trainer.current_epoch + 1) % every != 0:
        return False
    interval = trainer.val_check_batch
    if interval is None or interval == float("inf"):
        # by the clock, or at the end of an epoch of unknown length
        return bool(trainer.is_last_batch)
    # without epochs between validations, Lightning counts the batches of the whole run
    index = trainer.fit_loop.total_batch_idx if every is None else batch_idx
    return (index + 1) % interval == 0
