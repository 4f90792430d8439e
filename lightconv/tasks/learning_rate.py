"""A learning rate from a range test: it rises from step to step, and the loss says from where on that helps.

Leslie N. Smith: Cyclical learning rates for training neural networks, WACV 2017.
"""

import math
from dataclasses import dataclass
from itertools import takewhile

import lightning as L
import numpy as np
from lightning.pytorch.tuner.tuning import Tuner

from lightconv.errors import InputError

_SMOOTHING = 0.98  # of the losses, Lightning's
_SKIPPED = 10  # first losses, of too few batches to tell a slope
_LEAST_FALL = 0.003  # of the loss, less is noise; plain SGD falls by 1 % before it diverges


@dataclass(frozen=True)
class RangeTest:
    """Learning rates, evenly spaced in their logarithm, and the smoothed loss after a step with each."""

    rates: list[float]
    losses: list[float]

    def suggestion(self) -> float:
        """Half the rate at which the loss falls fastest: the smoothed loss lags behind.

        Lightning's own suggestion takes the slope over the rate itself, not over its logarithm, which lets noise at the
        smallest rates win.

        Raises:
            InputError: if the loss does not fall, or there are too few losses to tell.
        """
        losses = list(takewhile(math.isfinite, self.losses))[_SKIPPED:]
        if len(losses) < 3 or min(losses) > (1 - _LEAST_FALL) * losses[0]:
            raise InputError(
                f"no learning rate from {self.rates[0]:g} to {self.rates[-1]:g} lets the loss fall in "
                f"{len(self.losses)} steps: set optimizer.lr by hand"
            )
        return self.rates[_SKIPPED + int(np.gradient(losses)[:-1].argmin())] / 2


def range_test(
    trainer: L.Trainer,
    task: L.LightningModule,
    data: L.LightningDataModule,
    smallest: float = 1e-6,
    largest: float = 1.0,
    steps: int = 100,
) -> RangeTest:
    """Train for a hundred steps with a rising learning rate, by Lightning's Tuner, which then restores the weights.

    Args:
        trainer: with ``max_epochs=-1`` goes through the data as often as it takes.
        task: whose optimizer has no scheduler yet.
        data: to train on.
        smallest: rate of the first step.
        largest: rate of the last step.
        steps: of the optimizer, fewer if the loss diverges.
    """
    found = Tuner(trainer).lr_find(
        task, datamodule=data, min_lr=smallest, max_lr=largest, num_training=steps, update_attr=False
    )
    assert found is not None  # it is only with fast_dev_run
    # Lightning divides each moving average by the weight of one loss more than there are
    weights = [1 - _SMOOTHING**count for count in range(1, len(found.results["loss"]) + 2)]
    losses = [loss * weights[i + 1] / weights[i] for i, loss in enumerate(found.results["loss"])]
    return RangeTest(found.results["lr"], losses)
