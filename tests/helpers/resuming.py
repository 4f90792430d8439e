"""A short run, whole or stopped and resumed, and all that can be compared of it."""

from functools import partial
from pathlib import Path

import lightning as L
import torch
from helpers.trainers import QUIET
from lightning.pytorch.callbacks import Callback
from torch import nn

import lightconv as lc
from lightconv.callbacks import GracefulStop, LastCheckpoint, RandomState
from lightconv.tasks import Classification

BATCHES = 8  # per epoch


class Record(Callback):
    """Validation losses by the step before them, over all parts of a run."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}
        self.validations = 0

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.validations += 1
            self.losses[trainer.fit_loop.total_batch_idx] = trainer.callback_metrics["val/loss"].item()


class SignalAt(Callback):
    """Raise a signal within a training step."""

    def __init__(self, step: int, number: int, times: int = 1) -> None:
        self.step = step
        self.number = number
        self.times = times

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.step == trainer.fit_loop.total_batch_idx:
            import signal

            for _ in range(self.times):
                signal.raise_signal(self.number)


class Copies(Callback):
    """Copy last.ckpt whenever it was written."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.copies: list[Path] = []
        self._seen: bytes = b""

    def _copy(self):
        last = self.directory / "last.ckpt"
        if last.is_file() and last.read_bytes() != self._seen:
            self._seen = last.read_bytes()
            path = self.directory / f"copy{len(self.copies)}.ckpt"
            path.write_bytes(self._seen)
            self.copies.append(path)

    def on_train_batch_start(self, trainer, *args):
        self._copy()

    def on_train_epoch_start(self, trainer, *args):
        self._copy()


def train(directory: Path, record: Record, *callbacks: Callback, checkpoint: Path | None = None, **settings):
    """Train a network with dropout for two epochs; return its weights and learning curve."""
    L.seed_everything(0, verbose=False)
    network = nn.Sequential(lc.models.LeNet(width=0.5), nn.Dropout(0.1))
    task = Classification(network, optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9))
    every = settings.pop("every_n_train_steps", None)
    last = LastCheckpoint(
        directory, "last", save_on_exception=True, enable_version_counter=False, every_n_train_steps=every
    )
    trainer = L.Trainer(
        **QUIET,
        max_epochs=2,
        limit_train_batches=BATCHES,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        callbacks=[GracefulStop(), *callbacks, record, RandomState(), last],
        **settings,
    )
    trainer.fit(task, lc.data.Digits(), ckpt_path=checkpoint)
    return torch.cat([parameter.detach().flatten() for parameter in task.parameters()])
