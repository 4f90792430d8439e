"""Ctrl-C, SIGTERM and SIGHUP between two training steps."""

import signal
import threading
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightconv.callbacks.last_checkpoint import ends_window, is_resumable

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # SIGHUP: the terminal was closed; Windows has no such signal


class GracefulStop(L.Callback):
    """Delay Ctrl-C, SIGTERM and SIGHUP to a step after which the saved checkpoint resumes bit for bit.

    Such a step ends a window of accumulated gradients. If a validation follows, it takes place first. A second Ctrl-C
    stops at once. Checkpoints with ``save_on_exception`` are saved at these steps only: a checkpoint from within a
    step, after an error or a second Ctrl-C, would resume with other numbers.

    Raises:
        KeyboardInterrupt: If Ctrl-C was pressed; Lightning exits with status 1.
        SIGTERMException: If SIGTERM or SIGHUP came; a SystemExit with status 128 plus the signal's number.

    Example:
        >>> trainer = L.Trainer(max_epochs=10, callbacks=[GracefulStop()], logger=False)
    """

    def __init__(self) -> None:
        self._requested: int | None = None
        self._previous_handlers: dict[int, Any] = {}
        self._saved_on_exception: list[ModelCheckpoint] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Move this callback to the end of the list, and let no checkpoint be saved from within a step.

        The other callbacks then finish the step before this one raises.
        """
        others = [callback for callback in trainer.callbacks if callback is not self]  # type: ignore[attr-defined]
        # a new list, because Lightning is iterating over the old one
        trainer.callbacks = [*others, self]  # type: ignore[attr-defined]
        self._requested = None
        self._saved_on_exception = []
        for callback in others:
            if isinstance(callback, ModelCheckpoint) and callback.save_on_exception:
                callback.save_on_exception = False
                self._saved_on_exception.append(callback)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Install the handlers. Only the main thread may do so.

        Lightning installs its own handlers after ``on_fit_start``.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        for name in _SIGNALS:
            number = getattr(signal, name, None)
            # with several processes, Lightning passes SIGTERM on to the others
            if number is None or (trainer.world_size > 1 and name != "SIGINT"):
                continue
            # a signal ignored before, as by nohup, stays ignored
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous_handlers[number] = signal.signal(number, self._handle_signal)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop if requested and the step can be resumed from."""
        if is_resumable(trainer, batch_idx):
            self._stop_if_requested()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop if requested, after a validation within the epoch."""
        if trainer.sanity_checking or trainer.is_last_batch:
            return
        if ends_window(trainer, trainer.fit_loop.batch_idx):
            self._stop_if_requested()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop if requested in the last step of the epoch before.

        Lightning cannot resume from here, so the checkpoint saved at the end of that epoch stands.
        """
        if self._requested is not None:
            self._raise(self._requested)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Let checkpoints be saved on exceptions again. They have handled this one already."""
        self._restore()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Restore the previous handlers."""
        self._restore()

    def _stop_if_requested(self) -> None:
        if self._requested is None:
            return
        for callback in self._saved_on_exception:
            callback.save_on_exception = True
        self._raise(self._requested)

    def _handle_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._requested == number:
            self._raise(number)
        self._requested = number

    def _raise(self, number: int) -> None:
        self._restore_handlers()
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SIGTERMException(128 + number)

    def _restore(self) -> None:
        self._restore_handlers()
        for callback in self._saved_on_exception:
            callback.save_on_exception = True
        self._saved_on_exception = []

    def _restore_handlers(self) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        self._previous_handlers = {}
