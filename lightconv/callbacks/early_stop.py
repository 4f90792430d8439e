"""Early stopping that a resume neither undoes nor ties to an earlier patience."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping


class EarlyStop(EarlyStopping):
    """Lightning's EarlyStopping, but a resumed run has the patience it is given now, and none left trains no epoch."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting, up to the patience of now."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop at once where training had stopped already."""
        trainer.should_stop = self.wait_count >= self.patience
