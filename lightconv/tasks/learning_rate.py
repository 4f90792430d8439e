"""Learning-rate range test: the rate increases in every step, and the loss shows the rates that train well.

Leslie N. Smith: Cyclical learning rates for training neural networks, WACV 2017.
"""

import math
from dataclasses import dataclass
from itertools import takewhile

import lightning as L
import numpy as np
from lightning.pytorch.tuner.tuning import Tuner

from lightconv.errors import InputError

_SMOOTHING = 0.98  # factor of Lightning's moving average of losses
_SKIPPED = 10  # first losses: means of too few batches for a slope
_SMALLEST_FALL = 0.003  # relative fall of the loss; less is noise, plain SGD reaches 1 % before it diverges


@dataclass(frozen=True)
class RangeTest:
    """Result of a range test.

    Attributes:
        rates: learning rate of each step, evenly spaced in its logarithm.
        losses: smoothed loss after each step.

    Example:
        >>> rates = np.logspace(-6, 0, 61).tolist()
        >>> losses = [2 - math.tanh(4 * (math.log10(rate) + 2)) for rate in rates]
        >>> RangeTest(rates, losses).suggestion()  # the loss falls fastest at 0.01
        0.005
    """

    rates: list[float]
    losses: list[float]

    def suggestion(self) -> float:
        """Return half the rate at which the loss falls fastest, because the smoothed loss lags behind.

        The slope is taken over the logarithm of the rate. Lightning's own suggestion takes it over the rate itself, so
        noise at the smallest rates can win.

        Raises:
            InputError: If the loss does not fall or there are too few losses.
        """
        losses = list(takewhile(math.isfinite, self.losses))[_SKIPPED:]
        if len(losses) < 3 or min(losses) > (1 - _SMALLEST_FALL) * losses[0]:
            raise InputError(
                f"no learning rate from {self.rates[0]:g} to {self.rates[-1]:g} lets the loss fall in "
                f"{len(self.losses)} steps: set optimizer.lr by hand"
            )
        # np.gradient's last slope is one-sided
        steepest = int(np.gradient(losses)[:-1].argmin())
        return self.rates[_SKIPPED + steepest] / 2


def range_test(
    trainer: L.Trainer,
    task: L.LightningModule,
    data: L.LightningDataModule,
    smallest: float = 1e-6,
    largest: float = 1.0,
    steps: int = 100,
) -> RangeTest:
    """Train with an increasing learning rate by Lightning's Tuner, which restores the weights afterwards.

    Args:
        trainer: Trainer with ``max_epochs=-1``, which repeats the data as often as needed.
        task: module whose optimizer has no scheduler yet.
        data: training data.
        smallest: learning rate of the first step.
        largest: learning rate of the last step.
        steps: number of optimizer steps. The test ends earlier if the loss diverges.

    Example:
        >>> from lightconv.data import Digits
        >>> from lightconv.models import LeNet
        >>> from lightconv.tasks import Classification
        >>> quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
        >>> trainer = L.Trainer(max_epochs=-1, accelerator="cpu", **quiet)
        >>> len(range_test(trainer, Classification(LeNet()), Digits(batch_size=32), steps=5).losses)
        5
    """
    found = Tuner(trainer).lr_find(
        task, datamodule=data, min_lr=smallest, max_lr=largest, num_training=steps, update_attr=False
    )
    assert found is not None  # None only with fast_dev_run
    # Lightning corrects the bias of each moving average by 1 - 0.98**(count + 1) instead of 1 - 0.98**count, because it
    # counts one loss too many. Undo its correction and apply the right one.
    losses = []
    for count, loss in enumerate(found.results["loss"], 1):
        losses.append(loss * (1 - _SMOOTHING ** (count + 1)) / (1 - _SMOOTHING**count))
    return RangeTest(found.results["lr"], losses)
