"""States of torch's random generators in checkpoints."""

from typing import Any

import lightning as L
import torch


class RandomState(L.Callback):
    """Store torch's random generators in every checkpoint and restore them when training resumes.

    Lightning leaves them out. Together with `lightconv.data.Batches` a resumed run continues bit for bit, dropout
    included.

    Example:
        >>> trainer = L.Trainer(max_epochs=10, callbacks=[RandomState()], logger=False)
    """

    def __init__(self) -> None:
        self._restored: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the CPU's generator and of each GPU's."""
        return {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until training starts, because setup may still draw random numbers."""
        self._restored = state_dict

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore the generators of all devices present on this machine."""
        if not self._restored:
            return
        torch.set_rng_state(self._restored["cpu"].cpu())
        for device, state in enumerate(self._restored["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(state.cpu(), device)
        self._restored = {}
