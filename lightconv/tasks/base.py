"""Base of all tasks: any torch optimizer and scheduler, with losses and predictions collected over an epoch.

Logging the loss in every step costs about 0.2 ms per step on a CPU, and two torchmetrics 0.6 ms more. Tasks therefore
log nothing in a step: they sum losses, collect predictions, and update torchmetrics once per epoch.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric, MetricCollection

from lightconv.tasks.schedules import build_part, build_schedule, check_schedule_end, check_scheduler

Batch = Sequence[Tensor]  # images and targets: a tuple, or a list from a DataLoader
OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
SchedulerFactory = Callable[..., LRScheduler]


class Task(L.LightningModule):
    """Base class for training and testing a network. Subclasses add losses and metrics.

    Args:
        model: network from (n, c, h, w) images to n rows of outputs.
        optimizer: factory called with the trainable parameters, AdamW by default.
        scheduler: factory called with the optimizer. `lightconv.tasks.schedules.build_schedule` adds its length.

    Shape:
        - Input: (n, c, h, w)
        - Output: (n, outputs)
    """

    validation_metrics: MetricCollection

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFactory = torch.optim.AdamW,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.mean_loss = MeanMetric()  # weighs processes by their numbers of images
        self._training_loss = RunningSum()
        self._evaluation_loss = RunningSum()
        self._learning_rate = 0.0
        self._epoch_figures: dict[str, float] = {}  # of the epoch that has just ended
        self._predictions: list[Tensor] = []
        self._targets: list[Tensor] = []

    @property
    def figures(self) -> list[str]:
        """Names of the figures logged while it trains, for callbacks that monitor one."""
        return ["train/loss", "lr", "val/loss", *map(str, self.validation_metrics.keys())]

    def forward(self, images: Tensor) -> Tensor:
        """Return the model's outputs."""
        return self.model(images)

    def training_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss to minimise, a mean over the images."""
        raise NotImplementedError

    def evaluate(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of a batch's losses and its predictions."""
        raise NotImplementedError

    def configure_optimizers(self) -> Any:
        """Build the optimizer and the scheduler, if there is one."""
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = build_part("optimizer", self.optimizer, parameters)
        if self.scheduler is None:
            return optimizer
        check_scheduler(self.scheduler, self.trainer)
        config = build_schedule(
            optimizer,
            self.scheduler,
            steps=self.trainer.estimated_stepping_batches,
            epochs_per_validation=self.trainer.check_val_every_n_epoch or 1,
        )
        return {"optimizer": optimizer, "lr_scheduler": config}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        images, targets = batch
        loss = self.training_loss(self(images), targets)
        self._training_loss.add(at_least_float32(loss.detach()) * len(targets), len(targets))
        return loss

    def on_train_start(self) -> None:
        """Check the length of the schedule. After a resume at the end of an epoch, log the figures of that epoch.

        Loggers get an epoch's figures after its checkpoint: a process killed between the two would lose them.

        Raises:
            InputError: If the run is longer than its schedule.
        """
        if self.scheduler is not None:
            check_schedule_end(self.scheduler, self.trainer, self.trainer.estimated_stepping_batches)
        if self._epoch_figures:
            for logger in self.loggers:
                logger.log_metrics(self._epoch_figures, step=self.trainer.global_step - 1)

    def on_train_epoch_start(self) -> None:
        """Record the learning rate of the epoch's first step."""
        self._epoch_figures = {}
        self._learning_rate = self.trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_epoch_end(self) -> None:
        """Log the mean loss over the epoch and the learning rate."""
        loss = self._reduce_loss(self._training_loss)
        self.log_dict({"train/loss": loss, "lr": self._learning_rate}, sync_dist=True)
        self._epoch_figures = {
            "epoch": self.trainer.current_epoch,
            "train/loss": loss.item(),
            # in the precision that Lightning logs it in
            "lr": torch.tensor(self._learning_rate).item(),
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the epoch's sum of losses so far, or its figures if it has ended, and the last validation's figures."""
        checkpoint["epoch_so_far"] = {**vars(self._training_loss), "lr": self._learning_rate}
        checkpoint["epoch_figures"] = self._epoch_figures
        figures = {}
        for name, value in self.trainer.callback_metrics.items():
            if name.startswith("val/"):
                figures[name] = value.item()
        checkpoint["validation"] = figures

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue the sum of losses of an interrupted epoch."""
        self._epoch_figures = checkpoint.get("epoch_figures", {})
        epoch_so_far = checkpoint.get("epoch_so_far")
        if epoch_so_far:
            self._training_loss = RunningSum(epoch_so_far["total"], epoch_so_far["count"])
            self._learning_rate = epoch_so_far["lr"]

    def on_validation_epoch_start(self) -> None:
        """Drop predictions left by an interrupted validation."""
        self._reset_evaluation()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect predictions and losses."""
        images, targets = batch
        self._collect(self(images), targets)

    def on_test_epoch_start(self) -> None:
        """Drop predictions left by an interrupted test."""
        self._reset_evaluation()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect predictions and losses."""
        images, targets = batch
        self._collect(self(images), targets)

    def _collect(self, outputs: Tensor, targets: Tensor) -> None:
        loss, predictions = self.evaluate(at_least_float32(outputs), at_least_float32(targets))
        self._evaluation_loss.add(loss, len(targets))
        self._predictions.append(predictions)
        self._targets.append(targets)

    def _take_predictions(self) -> tuple[Tensor, Tensor]:
        """Return all collected predictions and targets and drop them."""
        # batches x (n, ...) -> (images, ...)
        predictions = torch.cat(self._predictions)
        targets = torch.cat(self._targets)
        self._predictions.clear()
        self._targets.clear()
        return predictions, targets

    def _reduce_loss(self, losses: "RunningSum") -> Tensor:
        """Return the mean loss over the images of all processes, and reset the sum."""
        self.mean_loss.set_dtype(torch.float32)  # precision "bf16-true" converts the metric along with the network
        self.mean_loss.update(losses.total / max(losses.count, 1), weight=losses.count)
        mean = self.mean_loss.compute()
        self.mean_loss.reset()
        losses.total = 0.0
        losses.count = 0
        return mean

    def _reset_evaluation(self) -> None:
        self._evaluation_loss = RunningSum()
        self._predictions.clear()
        self._targets.clear()


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return a tensor of half precision as float32, and any other one as it is.

    A bfloat16 sum stops to grow at 256 times its terms: sums and metrics need more than the network's precision.
    """
    if tensor.dtype in {torch.float16, torch.bfloat16}:
        return tensor.float()
    return tensor


@dataclass
class RunningSum:
    """Sum of losses.

    Attributes:
        total: sum, on the device of the losses.
        count: number of images.
    """

    total: Tensor | float = 0.0
    count: int = 0

    def add(self, loss: Tensor, count: int) -> None:
        """Add the summed losses of ``count`` images."""
        # a float turns into a tensor on the loss's device without a transfer
        self.total = loss + self.total
        self.count += count
