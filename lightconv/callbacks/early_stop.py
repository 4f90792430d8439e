"""Early stopping that a resume neither undoes nor ties to an earlier patience."""

import math
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping


class EarlyStop(EarlyStopping):
    """Lightning's EarlyStopping, but a resumed run has the patience it is given now, and none left trains no epoch."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Begin to count; what a checkpoint has counted, which may be loaded next, goes before it."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self.wait_count, self.stopped_epoch = 0, 0
            self.best_score = torch.tensor(math.inf if self.mode == "min" else -math.inf)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting, up to the patience of now."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop at once where training had stopped already."""
        trainer.should_stop = self.wait_count >= self.patience
