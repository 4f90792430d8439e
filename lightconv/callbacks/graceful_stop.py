"""Ctrl-C between two steps instead of in the middle of one."""

import signal
import threading
from types import FrameType
from typing import Any

import lightning as L


class GracefulStop(L.Callback):
    """Let Ctrl-C wait for the end of the training step, so that what is saved then resumes bit for bit.

    A second Ctrl-C stops at once. Lightning treats SIGTERM like this by itself.
    """

    def __init__(self) -> None:
        self._asked = False
        self._previous: Any = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take Ctrl-C over, which only the main thread may, and come after the callbacks that have to finish a step."""
        trainer.callbacks = [c for c in trainer.callbacks if c is not self] + [self]  # type: ignore[attr-defined]
        if threading.current_thread() is threading.main_thread():
            self._asked = False
            self._previous = signal.signal(signal.SIGINT, self._ask)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Stop here if asked to, but not between the last step of an epoch and its validation, which none repeats."""
        if not trainer.is_last_batch:
            self._stop()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop here if asked to in the last step before."""
        self._stop()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give Ctrl-C back."""
        self._give_back()

    def _stop(self) -> None:
        if self._asked:
            self._give_back()
            raise KeyboardInterrupt

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            self._give_back()
            raise KeyboardInterrupt
        self._asked = True

    def _give_back(self) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None
