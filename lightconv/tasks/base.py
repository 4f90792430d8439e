"""What all tasks share: any torch optimizer and scheduler, and losses and predictions that are summed up by epochs."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric

from lightconv.tasks.schedules import build_part, build_schedule

Batch = Sequence[Tensor]  # images and targets, in a tuple or, from a DataLoader, a list


class Task(L.LightningModule):
    """Train a network, and test it: a subclass adds losses and metrics.

    Nothing is logged in a step: losses are summed, predictions collected, and torchmetrics sees them once an epoch.

    Args:
        model: maps (n, c, h, w) images to n rows of outputs.
        optimizer: called with the trainable parameters; AdamW by default.
        scheduler: called with the optimizer, and as it is said in ``lightconv.tasks.schedules.schedule``.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = torch.optim.AdamW,
        scheduler: Callable[..., LRScheduler] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.optimizer, self.scheduler = model, optimizer, scheduler
        self.mean_loss = MeanMetric()  # weighs processes by their images
        self._training, self._evaluation, self._learning_rate = Sum(), Sum(), 0.0
        self._predictions: list[Tensor] = []
        self._targets: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        """Return the model's outputs."""
        return self.model(images)

    def training_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss to be minimised, a mean over the images."""
        raise NotImplementedError

    def evaluate(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of the losses of a batch, and its predictions."""
        raise NotImplementedError

    def configure_optimizers(self) -> Any:
        """Build the optimizer and, if there is one, the scheduler with its length filled in."""
        optimizer = build_part("optimizer", self.optimizer, (p for p in self.parameters() if p.requires_grad))
        if self.scheduler is None:
            return optimizer
        config = build_schedule(optimizer, self.scheduler, self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": config}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        images, targets = batch
        loss = self.training_loss(self(images), targets)
        self._training.add(loss.detach() * len(targets), len(targets))
        return loss

    def on_train_epoch_start(self) -> None:
        """Note the learning rate of the epoch's first step."""
        self._learning_rate = self.trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_epoch_end(self) -> None:
        """Log the mean loss over the epoch."""
        self.log_dict({"train/loss": self._mean(self._training), "lr": self._learning_rate}, sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what the epoch has summed up so far."""
        checkpoint["epoch_so_far"] = {**vars(self._training), "lr": self._learning_rate}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on summing where the checkpoint stopped."""
        if so_far := checkpoint.get("epoch_so_far"):
            self._training = Sum(so_far["total"], so_far["count"])
            self._learning_rate = so_far["lr"]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect predictions and loss."""
        self._evaluate(self(batch[0]), batch[1])

    def on_validation_epoch_start(self) -> None:
        """Forget what an interrupted validation has left."""
        self._forget()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect predictions and loss."""
        self._evaluate(self(batch[0]), batch[1])

    def on_test_epoch_start(self) -> None:
        """Forget what an interrupted test has left."""
        self._forget()

    def _evaluate(self, outputs: Tensor, targets: Tensor) -> None:
        loss, predictions = self.evaluate(outputs, targets)
        self._evaluation.add(loss, len(targets))
        self._predictions.append(predictions)
        self._targets.append(targets)

    def _mean(self, losses: "Sum") -> Tensor:
        self.mean_loss.update(losses.total / max(losses.count, 1), weight=losses.count)
        mean = self.mean_loss.compute()
        self.mean_loss.reset()
        losses.total, losses.count = 0.0, 0
        return mean

    def _forget(self) -> None:
        self._evaluation = Sum()
        self._predictions.clear()
        self._targets.clear()

    def _collected(self) -> tuple[Tensor, Tensor]:
        predictions, targets = torch.cat(self._predictions), torch.cat(self._targets)
        self._predictions.clear()
        self._targets.clear()
        return predictions, targets


@dataclass
class Sum:
    """A running sum of losses, on whatever device they come from, and how many they are."""

    total: Tensor | float = 0.0
    count: int = 0

    def add(self, loss: Tensor, count: int) -> None:
        """Add the losses of ``count`` images."""
        self.total = loss + self.total
        self.count += count
