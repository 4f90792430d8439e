"""Regression: numbers read off an image, such as where something is."""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import huber_loss, l1_loss, mse_loss, smooth_l1_loss
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric, MetricCollection
from torchmetrics.regression import MeanAbsoluteError, MeanSquaredError, R2Score

from lightconv.errors import InputError
from lightconv.tasks.base import Batch, Task

_LOSSES: dict[str, Callable[..., Tensor]] = {
    "mse": mse_loss,
    "l1": l1_loss,
    "smooth_l1": smooth_l1_loss,
    "huber": huber_loss,
}


class Regression(Task):
    """Train a network to say numbers: a mean over images and outputs is minimised.

    Validation and test log the loss, the mean absolute error (mae), the root of the mean squared one (rmse), over all
    outputs, and R2, a mean of the outputs' own.

    Args:
        model: maps (n, c, h, w) images to (n, outputs) numbers.
        outputs: how many numbers an image has.
        optimizer: called with the trainable parameters; AdamW by default.
        scheduler: called with the optimizer, and as it is said in ``lightconv.tasks.schedules.schedule``.
        loss: mse, l1, smooth_l1 or huber.

    Raises:
        InputError: for an unknown loss.
    """

    def __init__(
        self,
        model: nn.Module,
        outputs: int,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = torch.optim.AdamW,
        scheduler: Callable[..., LRScheduler] | None = None,
        loss: str = "mse",
    ) -> None:
        super().__init__(model, optimizer, scheduler)
        if loss not in _LOSSES:
            raise InputError(f"loss={loss}: choose one of {', '.join(_LOSSES)}")
        self.outputs, self.loss = outputs, loss
        errors: dict[str, Metric | MetricCollection] = {
            "mae": MeanAbsoluteError(),
            "rmse": MeanSquaredError(squared=False),
            "r2": R2Score(),
        }
        self.validation_metrics = MetricCollection(errors, prefix="val/")
        self.test_metrics = self.validation_metrics.clone(prefix="test/")

    def training_loss(
        self, outputs: Float[Tensor, "n outputs"], targets: Float[Tensor, "n outputs"]
    ) -> Float[Tensor, ""]:
        """The mean over images and outputs."""
        return _LOSSES[self.loss](outputs, targets)

    def evaluate(
        self, outputs: Float[Tensor, "n outputs"], targets: Float[Tensor, "n outputs"]
    ) -> tuple[Tensor, Tensor]:
        """The sum over the images, and the outputs."""
        return self.training_loss(outputs, targets) * len(targets), outputs

    def on_validation_epoch_end(self) -> None:
        """Log loss and errors."""
        self._log_errors(self.validation_metrics)

    def on_test_epoch_end(self) -> None:
        """Log loss and errors."""
        self._log_errors(self.test_metrics)

    def predict_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, "n outputs"]:
        """Return the outputs."""
        return self(batch[0])

    def _log_errors(self, metrics: MetricCollection) -> None:
        metrics.update(*self._collected())
        self.log(f"{metrics.prefix}loss", self._mean(self._evaluation), prog_bar=True, sync_dist=True)
        self.log_dict(metrics.compute(), prog_bar=True, sync_dist=True)
        metrics.reset()
