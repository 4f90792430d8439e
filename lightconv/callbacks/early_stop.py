"""Early stopping for resumed runs."""

import math
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason


class EarlyStop(EarlyStopping):
    """Lightning's EarlyStopping, except on resume.

    A resumed run uses the patience configured now. It stops at once if this patience is used up. Lightning's own
    restores the old patience. The arguments are those of lightning.pytorch.callbacks.EarlyStopping.

    Example:
        >>> callback = EarlyStop("val/loss", patience=5)
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Reset the counts, so that a second run with this callback has all its patience.

        A checkpoint's counts are loaded later.
        """
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self.wait_count = 0
            self.stopped_epoch = 0
            self.best_score = torch.tensor(math.inf if self.mode == "min" else -math.inf)
            self._forget_reason()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the counts of a checkpoint and keep the configured patience."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop before the first step if the patience is used up.

        Another callback may have decided to stop: its word stands.
        """
        # with a patience of 0, too, only a check without improvement stops
        if self.wait_count >= max(1, self.patience):
            trainer.should_stop = True
        else:
            self._forget_reason()

    def _forget_reason(self) -> None:
        """Forget why an earlier run stopped, or this one before it got more patience."""
        self.stopping_reason = EarlyStoppingReason.NOT_STOPPED
        self.stopping_reason_message = None
