"""Regression: numbers predicted from an image, such as the position of an object."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import huber_loss, l1_loss, mse_loss, smooth_l1_loss
from torchmetrics import Metric, MetricCollection
from torchmetrics.regression import MeanAbsoluteError, MeanSquaredError

from lightconv.errors import InputError
from lightconv.tasks.base import Batch, OptimizerFactory, SchedulerFactory, Task
from lightconv.tasks.metrics import DefinedR2Score

Outputs = Float[Tensor, "n outputs"]
_LOSSES: dict[str, Callable[..., Tensor]] = {
    "mse": mse_loss,
    "l1": l1_loss,
    "smooth_l1": smooth_l1_loss,
    "huber": huber_loss,
}


class Regression(Task):
    """Train a network to predict numbers. The loss is a mean over images and outputs.

    Validation and test log the loss, the mean absolute error (mae), the root mean squared error (rmse) and the R2
    score. The errors are means over all outputs; R2 is the mean of the outputs' own scores,
    NaN for a single image.

    Args:
        model: network from (n, c, h, w) images to (n, outputs) numbers.
        outputs: number of outputs per image.
        optimizer: factory of the optimizer, see `lightconv.tasks.base.Task`.
        scheduler: factory of the scheduler, see `lightconv.tasks.base.Task`.
        loss: loss of torch.nn.functional, "mse" for ``mse_loss``.

    Raises:
        InputError: If the loss is unknown.

    Shape:
        - Input: (n, c, h, w)
        - Output: (n, outputs)

    Example:
        >>> task = Regression(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), outputs=2, loss="huber")
        >>> task(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        model: nn.Module,
        outputs: int,
        optimizer: OptimizerFactory = torch.optim.AdamW,
        scheduler: SchedulerFactory | None = None,
        loss: Literal["mse", "l1", "smooth_l1", "huber"] = "mse",
    ) -> None:
        super().__init__(model, optimizer, scheduler)
        if loss not in _LOSSES:
            raise InputError(f"loss={loss}: choose one of {', '.join(_LOSSES)}")
        self.outputs = outputs
        self.loss = loss
        errors: dict[str, Metric | MetricCollection] = {
            "mae": MeanAbsoluteError(),
            "rmse": MeanSquaredError(squared=False),
            "r2": DefinedR2Score(),
        }
        self.validation_metrics = MetricCollection(errors, prefix="val/")
        self.test_metrics = self.validation_metrics.clone(prefix="test/")

    def training_loss(self, outputs: Outputs, targets: Outputs) -> Float[Tensor, ""]:
        """Return the mean loss over images and outputs."""
        return _LOSSES[self.loss](outputs, targets)

    def evaluate(self, outputs: Outputs, targets: Outputs) -> tuple[Tensor, Tensor]:
        """Return the loss summed over the images, and the outputs."""
        return self.training_loss(outputs, targets) * len(targets), outputs

    def on_validation_epoch_end(self) -> None:
        """Log loss and errors."""
        self._log_errors(self.validation_metrics)

    def on_test_epoch_end(self) -> None:
        """Log loss and errors."""
        self._log_errors(self.test_metrics)

    def predict_step(self, batch: Batch, batch_idx: int) -> Outputs:
        """Return the outputs."""
        return self(batch[0])

    def _log_errors(self, metrics: MetricCollection) -> None:
        predictions, targets = self._take_predictions()
        metrics.update(predictions, targets)
        self.log(f"{metrics.prefix}loss", self._reduce_loss(self._evaluation_loss), prog_bar=True, sync_dist=True)
        # values are the same on all processes already; without sync_dist Lightning would warn
        self.log_dict(metrics.compute(), prog_bar=True, sync_dist=True)
        metrics.reset()
