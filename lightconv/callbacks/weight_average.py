"""A moving average of the weights: what is validated, kept and tested."""

from functools import partial

import lightning as L
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from lightconv.errors import InputError


class WeightAverage(WeightAveraging):
    """Lightning's WeightAveraging with a decay for runs of any length, and intact when validation is interrupted.

    After n steps the decay is (1 + n) / (10 + n), as in TensorFlow's ExponentialMovingAverage, until it reaches
    ``decay``: the average spans about the last tenth of the steps so far, so that short runs forget their first
    weights. Checkpoints hold the average as the model's ``state_dict``, and besides what it takes to resume.

    Args:
        decay: share of the average that a step leaves, at the most; 0.999 spans about 1,000 steps.

    Raises:
        InputError: for a decay out of range.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise InputError(f"decay={decay} is not from 0 to less than 1")
        super().__init__(avg_fn=partial(_average, decay=decay))
        self._validating = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Begin an average; a checkpoint's, which may be loaded next, goes before it."""
        super().setup(trainer, pl_module, stage)
        self._latest_update_step = 0  # an earlier run's would leave out as many steps

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the average into the module."""
        super().on_validation_epoch_start(trainer, pl_module)
        self._validating = True

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the current weights back."""
        super().on_validation_epoch_end(trainer, pl_module)
        self._validating = False

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Put the current weights back before a checkpoint takes them for the average, and the other way round."""
        if self._validating:
            self.on_validation_epoch_end(trainer, pl_module)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Forget the average, which the module has by now: a later validation is of whatever weights it is given."""
        self._average_model = None


def _average(average: Tensor, current: Tensor, steps: Tensor, decay: float) -> Tensor:
    if not average.is_floating_point():
        return current  # BatchNorm's count of batches
    return average + (current - average) * (1 - ((1 + steps) / (10 + steps)).clamp(max=decay))
