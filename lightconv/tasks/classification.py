"""Classification: cross-entropy, any torch optimizer and scheduler, metrics once an epoch."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

from lightconv.errors import InputError
from lightconv.tasks.base import Task

Batch = tuple[Float[Tensor, "n ..."], Int64[Tensor, " n"]]
VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "flip": lambda images: images.flip(3),
    "vertical_flip": lambda images: images.flip(2),
}


class Classification(Task):
    """Train a network to tell classes apart.

    Nothing is logged in a step: losses are summed, predictions collected, and torchmetrics sees them once an epoch.

    Args:
        model: maps (n, c, h, w) images to (n, classes) logits.
        classes: number of classes, the model's own attribute ``classes`` or 10 if not given.
        optimizer: called with the trainable parameters; AdamW by default.
        scheduler: called with the optimizer, and as it is said in ``lightconv.tasks.schedules.schedule``.
        label_smoothing: of the training loss.
        class_weights: factors on the training loss of each class's images, or "balanced": rarer classes weigh more, as
            in scikit-learn's ``compute_class_weight``, by the datamodule's training labels, with a mean of 1 over its
            images. Validation and test losses stay without, so that runs can be compared; for unbalanced data there is
            ``balanced_accuracy``, the mean over the classes.
        views: in tests and predictions, also look at these views of each image, "flip" or "vertical_flip", and average
            the probabilities. It takes a pass a view, and it hurts a network that has not been trained on such views:
            flips at test took LeNet on Fashion-MNIST, trained without, from 0.911 to 0.863.

    Raises:
        InputError: for a number out of range, or an unknown view.
    """

    loss_weights: Tensor | None

    def __init__(
        self,
        model: nn.Module,
        classes: int | None = None,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = torch.optim.AdamW,
        scheduler: Callable[..., LRScheduler] | None = None,
        label_smoothing: float = 0.0,
        class_weights: str | Sequence[float] | None = None,
        views: str | Sequence[str] = (),
    ) -> None:
        super().__init__(model, optimizer, scheduler)
        if not 0 <= label_smoothing < 1:
            raise InputError(f"label_smoothing={label_smoothing} is not between 0 and 1")
        self.views = (views,) if isinstance(views, str) else tuple(views)
        for view in self.views:
            if view not in VIEWS:
                raise InputError(f"views={view}: choose some of {', '.join(VIEWS)}")
        classes = getattr(model, "classes", 10) if classes is None else classes
        assert isinstance(classes, int)
        self.classes, self.label_smoothing = classes, label_smoothing
        self.class_weights = class_weights
        # of its size from the start: averaged copies of the task pair its buffers with their own
        self.register_buffer("loss_weights", _loss_weights(class_weights, classes), persistent=False)
        accuracies: dict[str, Metric | MetricCollection] = {
            "accuracy": MulticlassAccuracy(classes, average="micro"),
            "balanced_accuracy": MulticlassAccuracy(classes, average="macro"),
        }
        self.validation_metrics = MetricCollection(accuracies, prefix="val/")
        self.test_metrics = self.validation_metrics.clone(prefix="test/")
        self.class_metrics = MetricCollection(
            {
                "precision": MulticlassPrecision(classes, average=None),
                "recall": MulticlassRecall(classes, average=None),
                "f1": MulticlassF1Score(classes, average=None),
                "confusion": MulticlassConfusionMatrix(classes),
            }
        )
        self.class_results: dict[str, Tensor] = {}

    def averaged(self, images: Float[Tensor, "n ..."]) -> Float[Tensor, "n classes"]:
        """Return the model's logits or, with ``views``, the logarithms of probabilities averaged over all views.

        Probabilities, since logits may be shifted by any amount, and since a view that excludes a class would decide
        alone in a mean of logarithms.
        """
        logits = self(images)
        if not self.views:
            return logits
        every = [logits, *(self(VIEWS[view](images)) for view in self.views)]
        return torch.stack([view.log_softmax(1) for view in every]).logsumexp(0) - math.log(len(every))

    def setup(self, stage: str) -> None:
        """Check the model against the data, where these say what they are, and count what is to be balanced."""
        data: Any = getattr(self.trainer, "datamodule", None)
        if hasattr(data, "image_shape") and hasattr(data, "classes"):
            self.check_fit(data)
        if stage == "fit" and self.class_weights == "balanced":
            self.weigh_classes(data)

    def check_fit(self, data: Any) -> None:
        """Try the model on one blank image, so that a misfit is an error before the first batch.

        Args:
            data: names its ``classes`` and the ``image_shape``, as ImageData does.

        Raises:
            InputError: if the model cannot take such an image, or does not answer with one logit a class.
        """
        name, classes = type(data).__name__, len(data.classes)
        _check_model(self.model, data.image_shape, classes, name)
        if classes != self.classes:
            raise InputError(
                f"{name} has {classes} classes, the task counts {self.classes}: set task.classes={classes}"
            )

    def weigh_classes(self, data: Any) -> None:
        """Weigh the training loss by how rare each class is among the training images.

        Args:
            data: gives labels as the second part of ``split("train")``, as ImageData does.

        Raises:
            InputError: if the data do not, or have no image of a class.
        """
        if not hasattr(data, "split"):
            raise InputError(
                "class_weights=balanced counts the labels of a datamodule like lightconv.data.ImageData, and there is "
                f"none here: give a list of {self.classes} weights"
            )
        labels = data.split("train")[1].numpy()
        if missing := sorted(set(range(self.classes)) - set(labels.tolist())):
            raise InputError(
                f"class_weights=balanced: no training image is of class {', '.join(map(str, missing))}: give a list of "
                f"{self.classes} weights"
            )
        weights = compute_class_weight("balanced", classes=np.arange(self.classes), y=labels)
        self.loss_weights = torch.from_numpy(weights).float()

    def training_loss(self, logits: Float[Tensor, "n classes"], targets: Tensor) -> Float[Tensor, ""]:
        """The smoothed and weighted loss, a mean over the images, whose targets are classes or shares of them."""
        if self.loss_weights is None:
            return cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        # torch's own mean divides by the weights of the batch's labels, but by the number of images for soft targets
        losses = cross_entropy(
            logits, targets, self.loss_weights, reduction="none", label_smoothing=self.label_smoothing
        )
        return losses.mean()

    def on_validation_epoch_end(self) -> None:
        """Log loss and accuracy."""
        predictions, targets = self._collected()
        self.validation_metrics.update(predictions, targets)
        self.log("val/loss", self._mean(self._evaluation), prog_bar=True, sync_dist=True)
        # already the same on every process; saying so spares a warning
        self.log_dict(self.validation_metrics.compute(), prog_bar=True, sync_dist=True)
        self.validation_metrics.reset()

    def test_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Collect predictions and loss."""
        self._evaluate(self.averaged(batch[0]), batch[1])

    def on_test_epoch_end(self) -> None:
        """Log loss and accuracy, and keep the figures of each class in ``class_results``."""
        predictions, targets = self._collected()
        self.test_metrics.update(predictions, targets)
        self.class_metrics.update(predictions, targets)
        self.log("test/loss", self._mean(self._evaluation), sync_dist=True)
        self.log_dict(self.test_metrics.compute(), sync_dist=True)
        self.class_results = {name: values.cpu() for name, values in self.class_metrics.compute().items()}
        self.test_metrics.reset()
        self.class_metrics.reset()

    def predict_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, "n classes"]:
        """Return the probability of each class."""
        return self.averaged(batch[0]).softmax(1)

    def evaluate(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of the losses, and the predicted classes."""
        return cross_entropy(outputs, targets, reduction="sum"), outputs.argmax(1)


def _loss_weights(class_weights: str | Sequence[float] | None, classes: int) -> Tensor | None:
    if class_weights is None:
        return None
    if class_weights == "balanced":
        return torch.ones(classes)  # until the labels are counted
    valid = not isinstance(class_weights, str) and all(0 <= weight < math.inf for weight in class_weights)
    if not valid or len(class_weights) != classes or not any(class_weights):
        raise InputError(
            f"class_weights={class_weights}: give null, balanced, or a list of {classes} numbers, none of them negative"
        )
    return torch.tensor(list(class_weights), dtype=torch.get_default_dtype())


def _check_model(model: nn.Module, image_shape: tuple[int, int, int], classes: int, name: str) -> None:
    shape = " x ".join(map(str, image_shape))
    parameter = next(model.parameters(), torch.empty(0))
    training = model.training
    try:
        with torch.no_grad():
            logits = model.eval()(torch.zeros(1, *image_shape, device=parameter.device, dtype=parameter.dtype))
    except RuntimeError as error:
        raise InputError(
            f"{type(model).__name__} cannot take {name}'s images of {shape} (channels x height x width): {error}. "
            "Set model.channels and model.image_size to the images' own, where the model has them."
        ) from error
    finally:
        model.train(training)
    if logits.shape != (1, classes):
        raise InputError(
            f"{type(model).__name__} answers an image of {shape} with {' x '.join(map(str, logits.shape[1:]))} values, "
            f"{name} has {classes} classes: set model.classes={classes}"
        )
