"""Moving average of the weights, used for validation, checkpoints and tests."""

from functools import partial

import lightning as L
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from lightconv.errors import InputError


class WeightAverage(WeightAveraging):
    """Lightning's WeightAveraging with a decay for runs of any length.

    After n steps the decay is (1 + n) / (10 + n), as in TensorFlow's ExponentialMovingAverage, until it reaches
    ``decay``. The average thus spans about the last tenth of the steps so far, and short runs forget their first
    weights. Checkpoints hold the average as the model's ``state_dict`` and, besides, the state needed to resume.

    An exception during validation leaves the current weights in the module. Lightning's EMAWeightAveraging would leave
    the average there.

    Args:
        decay: largest share of the average kept in a step, from 0 to below 1; 0.999 spans about 1,000 steps.

    Raises:
        InputError: If ``decay`` is out of range.

    Example:
        >>> trainer = L.Trainer(max_epochs=10, callbacks=[WeightAverage(decay=0.99)], logger=False)
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise InputError(f"decay={decay} is out of range: set it from 0 to less than 1")
        super().__init__(avg_fn=partial(_update_average, decay=decay))
        self._validating = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Start a new average. A checkpoint's average is loaded later."""
        super().setup(trainer, pl_module, stage)
        # the last step of an earlier run would delay the average by as many steps
        self._latest_update_step = 0

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Swap the average into the module."""
        super().on_validation_epoch_start(trainer, pl_module)
        self._validating = True

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Swap the current weights back."""
        super().on_validation_epoch_end(trainer, pl_module)
        self._validating = False

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Swap the current weights back, so that a checkpoint saved now does not confuse them with the average."""
        if self._validating:
            self.on_validation_epoch_end(trainer, pl_module)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Drop the average. The module holds it now, and a later validation would swap it into another module."""
        self._average_model = None


def _update_average(average: Tensor, current: Tensor, steps: Tensor, decay: float) -> Tensor:
    """Return the average after one more step."""
    if not average.is_floating_point():
        return current  # BatchNorm's counter of batches must not be averaged
    decay_now = ((1 + steps) / (10 + steps)).clamp(max=decay)
    return average + (current - average) * (1 - decay_now)
