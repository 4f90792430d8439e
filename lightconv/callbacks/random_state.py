"""Random generators in the checkpoint, which Lightning leaves out."""

from typing import Any

import lightning as L
import torch


class RandomState(L.Callback):
    """Store torch's random generators in every checkpoint and restore them when training resumes.

    Together with lightconv.data.Batches a resumed run continues bit for bit, dropout included.
    """

    def __init__(self) -> None:
        self._restored: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """The state of the CPU's generator and of every GPU's."""
        return {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the state until training starts: setting up may still draw numbers."""
        self._restored = state_dict

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore the generators, as far as this machine has them."""
        if not self._restored:
            return
        torch.set_rng_state(self._restored["cpu"].cpu())
        for device, state in enumerate(self._restored["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(state.cpu(), device)
        self._restored = {}
