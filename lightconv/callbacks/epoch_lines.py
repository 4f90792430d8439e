"""Progress of a run in words: a line per epoch for files and pipes, and the reason of an early stop."""

import time
from contextlib import suppress

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping

_FIGURES = ("train/loss", "val/loss", "val/accuracy")


class EpochLines(L.Callback):
    """Print a line per epoch, and a line after an early stop.

    Args:
        lines: print the line per epoch, too; a progress bar shows the same in a terminal.

    Example:
        >>> trainer = L.Trainer(max_epochs=10, callbacks=[EpochLines()], logger=False, enable_progress_bar=False)
    """

    def __init__(self, *, lines: bool = True) -> None:
        self.lines = lines
        self._started = 0.0
        self._ended: tuple[str, str] | None = None

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the line of the epoch before, and start the clock."""
        self._print_epoch(trainer)
        self._started = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock; the line is printed later, since Lightning has not averaged the training loss yet."""
        limit = trainer.max_epochs
        # max_epochs is -1 if steps or time limit the run
        total = f"/{limit}" if limit is not None and limit > 0 else ""
        self._ended = (f"epoch {trainer.current_epoch + 1}{total}", f"{time.perf_counter() - self._started:.1f} s")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the line of the last epoch, and the reason of an early stop."""
        self._print_epoch(trainer)
        for stop in trainer.early_stopping_callbacks:
            # patience, a threshold or a figure that is not finite: Lightning words each
            if isinstance(stop, EarlyStopping) and stop.stopping_reason_message and trainer.is_global_zero:
                reason = stop.stopping_reason_message.removesuffix(" Signaling Trainer to stop.")
                _print_line(f"stopped after epoch {trainer.current_epoch}: {reason}")

    def _print_epoch(self, trainer: L.Trainer) -> None:
        if self._ended is None:
            return
        (epoch, seconds), self._ended = self._ended, None
        metrics = trainer.callback_metrics
        figures = [f"{name} {float(metrics[name]):.3f}" for name in _FIGURES if name in metrics]
        if self.lines and trainer.is_global_zero:
            _print_line("  ".join([epoch, *figures, seconds]))


def _print_line(line: str) -> None:
    # a reader that has gone away must not end the training
    with suppress(OSError):
        print(line, flush=True)
