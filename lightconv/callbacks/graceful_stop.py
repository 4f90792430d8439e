"""Ctrl-C between two training steps."""

import signal
import threading
from types import FrameType
from typing import Any

import lightning as L


class GracefulStop(L.Callback):
    """Delay Ctrl-C until the training step has ended, so that the saved checkpoint resumes bit for bit.

    A second Ctrl-C stops at once. Lightning itself delays SIGTERM in the same way.

    Example:
        >>> trainer = L.Trainer(max_epochs=10, callbacks=[GracefulStop()], logger=False)
    """

    def __init__(self) -> None:
        self._stop_requested = False
        self._previous_handler: Any = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Install the handler of Ctrl-C and move this callback to the end of the list.

        The other callbacks then finish the step before this one raises. Only the main thread may install handlers.
        """
        others = [callback for callback in trainer.callbacks if callback is not self]  # type: ignore[attr-defined]
        # a new list, because Lightning is iterating over the old one
        trainer.callbacks = [*others, self]  # type: ignore[attr-defined]
        if threading.current_thread() is threading.main_thread():
            self._stop_requested = False
            self._previous_handler = signal.signal(signal.SIGINT, self._handle_signal)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Stop if requested, except after the last step of an epoch.

        A run resumed from there would skip the epoch's validation.
        """
        if not trainer.is_last_batch:
            self._stop_if_requested()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop if requested in the last step of the epoch before."""
        self._stop_if_requested()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Restore the previous handler of Ctrl-C."""
        self._restore_handler()

    def _stop_if_requested(self) -> None:
        if self._stop_requested:
            self._restore_handler()
            raise KeyboardInterrupt

    def _handle_signal(self, number: int, frame: FrameType | None) -> None:
        self._stop_if_requested()  # true on the second Ctrl-C
        self._stop_requested = True

    def _restore_handler(self) -> None:
        if self._previous_handler is not None:
            signal.signal(signal.SIGINT, self._previous_handler)
            self._previous_handler = None
