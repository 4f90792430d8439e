"""Image classification: cross-entropy, with accuracies and figures per class computed once per epoch."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

from lightconv.errors import InputError
from lightconv.tasks.base import OptimizerFactory, SchedulerFactory, Task, at_least_float32
from lightconv.tasks.metrics import BalancedAccuracy

Batch = tuple[Float[Tensor, "n ..."], Int64[Tensor, " n"]]
View = Literal["flip", "vertical_flip"]
# splits whose labels a stage needs; a test's files are read when the test starts
_SPLITS = {"fit": ("train", "validation"), "validate": ("validation",), "test": ("test",)}
# (n, c, h, w) -> (n, c, h, w)
VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "flip": lambda images: images.flip(3),
    "vertical_flip": lambda images: images.flip(2),
}


class Classification(Task):
    """Train a network to tell classes apart.

    Validation and test log the loss, the accuracy and the balanced accuracy. The test also computes precision, recall,
    F1 score and the confusion matrix per class.

    Args:
        model: network from (n, c, h, w) images to (n, classes) logits.
        classes: number of classes. None takes the model's attribute ``classes``, or 10 if it has none.
        optimizer: factory of the optimizer, see `lightconv.tasks.base.Task`.
        scheduler: factory of the scheduler, see `lightconv.tasks.base.Task`.
        label_smoothing: probability spread over all classes in the training loss, from 0 to below 1.
        class_weights: factor on the training loss per class, or "balanced". Balanced weights are scikit-learn's
            ``compute_class_weight`` on the datamodule's training labels, with a mean of 1 over its images. Validation
            and test losses stay unweighted, so that runs can be compared. For unbalanced data look at
            ``balanced_accuracy``, the mean recall over the classes that have images.
        views: additional views of each image in tests and predictions, whose probabilities are averaged. Each view
            takes one more forward pass. It hurts a network trained without such views: flips at test took LeNet on
            Fashion-MNIST, trained without them, from 0.911 to 0.863.

    Attributes:
        class_results: precision, recall, f1 and confusion of the last test, as CPU tensors.

    Raises:
        InputError: If a number is out of range or a view is unknown.

    Shape:
        - Input: (n, c, h, w)
        - Output: (n, classes) logits

    Example:
        >>> from lightconv.models import LeNet
        >>> task = Classification(LeNet(), label_smoothing=0.05, views="flip")
        >>> task(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    loss_weights: Tensor | None

    def __init__(
        self,
        model: nn.Module,
        classes: int | None = None,
        optimizer: OptimizerFactory = torch.optim.AdamW,
        scheduler: SchedulerFactory | None = None,
        label_smoothing: float = 0.0,
        class_weights: Literal["balanced"] | Sequence[float] | None = None,
        views: View | Sequence[View] = (),
    ) -> None:
        super().__init__(model, optimizer, scheduler)
        if not 0 <= label_smoothing < 1:
            raise InputError(f"label_smoothing={label_smoothing} is out of range: set it from 0 to less than 1")
        self.views = (views,) if isinstance(views, str) else tuple(views)
        for view in self.views:
            if view not in VIEWS:
                raise InputError(f"views={view}: choose some of {', '.join(VIEWS)}")
        if classes is None:
            classes = getattr(model, "classes", 10)
        assert isinstance(classes, int)
        if classes < 2:
            raise InputError(f"classes={classes}: a network tells at least two classes apart")
        self.classes = classes
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights
        # has its final size from the start, because a moving average of the task pairs its buffers with these
        self.register_buffer("loss_weights", _initial_loss_weights(class_weights, classes), persistent=False)
        accuracies: dict[str, Metric | MetricCollection] = {
            "accuracy": MulticlassAccuracy(classes, average="micro"),
            "balanced_accuracy": BalancedAccuracy(classes),
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

    def average_views(self, images: Float[Tensor, "n ..."]) -> Float[Tensor, "n classes"]:
        """Return the logits or, with ``views``, the logarithms of probabilities averaged over all views.

        Logits themselves cannot be averaged, because each view may shift them by any amount. In a mean of logarithms,
        a view that excludes a class would decide alone.
        """
        if not self.views:
            return self(images)
        all_views = [images, *(VIEWS[view](images) for view in self.views)]
        log_probabilities = torch.stack([at_least_float32(self(view)).log_softmax(1) for view in all_views])
        # (views, n, classes) -> (n, classes): log of the mean of exponentials
        return log_probabilities.logsumexp(0) - math.log(len(all_views))

    def setup(self, stage: str) -> None:
        """Check the model against the data and its labels, and count the labels for balanced weights."""
        data: Any = getattr(self.trainer, "datamodule", None)
        if hasattr(data, "image_shape") and hasattr(data, "classes"):
            self.check_fit(data)
            for name in _SPLITS.get(stage, ()):
                if hasattr(data, "split"):
                    self.check_labels(data.split(name)[1], f"{type(data).__name__}'s {name} images")
        if stage == "fit" and self.class_weights == "balanced":
            self.balance_class_weights(data)

    def check_fit(self, data: Any) -> None:
        """Run the model on one blank image, to find a mismatch before the first batch.

        Args:
            data: datamodule with ``classes`` and ``image_shape``, as in `lightconv.data.ImageData`.

        Raises:
            InputError: If the model cannot take the image, or does not return one logit per class.
        """
        name = type(data).__name__
        classes = len(data.classes)
        _check_model(self.model, data.image_shape, classes, name)
        if classes != self.classes:
            raise InputError(
                f"{name} has {classes} classes, but the task has {self.classes}: set task.classes={classes}"
            )

    def check_labels(self, labels: Int64[Tensor, " n"], owner: str) -> None:
        """Check that every label is a class: on a GPU the first wrong one would end the process.

        Args:
            labels: classes of images.
            owner: images in words, for the message.

        Raises:
            InputError: If there is no label, or if a label is negative or beyond the classes.
        """
        if not len(labels):
            raise InputError(f"{owner}: there are none")
        least, largest = int(labels.min()), int(labels.max())
        if least < 0 or largest >= self.classes:
            raise InputError(
                f"{owner} have labels from {least} to {largest}, but those of {self.classes} classes are 0 to "
                f"{self.classes - 1}: set model.classes={largest + 1} if there are that many, or correct the labels"
            )

    def balance_class_weights(self, data: Any) -> None:
        """Set the weights of the training loss from the number of training images per class.

        Args:
            data: datamodule with the labels as second part of ``split("train")``, as in `lightconv.data.ImageData`.

        Raises:
            InputError: If ``data`` has no such method, or no image of a class.
        """
        if not hasattr(data, "split"):
            raise InputError(
                "class_weights=balanced counts the labels of a datamodule like lightconv.data.ImageData, and this run "
                f"has none: give a list of {self.classes} weights"
            )
        labels = data.split("train")[1].numpy()
        missing = sorted(set(range(self.classes)) - set(labels.tolist()))
        if missing:
            raise InputError(
                f"class_weights=balanced: no training image is of class {', '.join(map(str, missing))}: give a list of "
                f"{self.classes} weights"
            )
        weights = compute_class_weight("balanced", classes=np.arange(self.classes), y=labels)
        self.loss_weights = torch.from_numpy(weights).float()

    def training_loss(self, logits: Float[Tensor, "n classes"], targets: Tensor) -> Float[Tensor, ""]:
        """Return the smoothed and weighted cross-entropy, a mean over the images.

        Args:
            logits: outputs of the model.
            targets: (n,) labels, or (n, classes) shares of classes of mixed images.
        """
        if self.loss_weights is None:
            return cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        # The mean is taken here: torch's own divides by the sum of the weights of a batch's labels, but by the number
        # of images if targets are shares. The two would give different scales.
        losses = cross_entropy(
            logits, targets, self.loss_weights, reduction="none", label_smoothing=self.label_smoothing
        )
        return losses.mean()

    def evaluate(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of the losses and the predicted classes."""
        return cross_entropy(outputs, targets, reduction="sum"), outputs.argmax(1)

    def on_validation_epoch_end(self) -> None:
        """Log loss and accuracies."""
        predictions, targets = self._take_predictions()
        self.validation_metrics.update(predictions, targets)
        self.log("val/loss", self._reduce_loss(self._evaluation_loss), prog_bar=True, sync_dist=True)
        # values are the same on all processes already; without sync_dist Lightning would warn
        self.log_dict(self.validation_metrics.compute(), prog_bar=True, sync_dist=True)
        self.validation_metrics.reset()

    def test_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Collect predictions and losses, averaged over the views."""
        images, targets = batch
        self._collect(self.average_views(images), targets)

    def on_test_epoch_end(self) -> None:
        """Log loss and accuracies, and store the figures per class in ``class_results``."""
        predictions, targets = self._take_predictions()
        self.test_metrics.update(predictions, targets)
        self.class_metrics.update(predictions, targets)
        self.log("test/loss", self._reduce_loss(self._evaluation_loss), sync_dist=True)
        self.log_dict(self.test_metrics.compute(), sync_dist=True)
        self.class_results = {name: values.cpu() for name, values in self.class_metrics.compute().items()}
        self.test_metrics.reset()
        self.class_metrics.reset()

    def predict_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, "n classes"]:
        """Return the probability of each class."""
        return self.average_views(batch[0]).softmax(1)


def _initial_loss_weights(
    class_weights: Literal["balanced"] | Sequence[float] | None, classes: int
) -> Float[Tensor, " classes"] | None:
    """Return the weights as a tensor, ones for balanced weights until the labels are counted.

    Raises:
        InputError: If the weights are not ``classes`` finite numbers of which none is negative and one is positive.
    """
    if class_weights is None:
        return None
    if class_weights == "balanced":
        return torch.ones(classes)
    valid = not isinstance(class_weights, str) and all(0 <= weight < math.inf for weight in class_weights)
    if not valid or len(class_weights) != classes or not any(class_weights):
        raise InputError(
            f"class_weights={class_weights}: give null, balanced, or a list of {classes} numbers, none of them negative"
        )
    return torch.tensor(list(class_weights), dtype=torch.get_default_dtype())


def _check_model(model: nn.Module, image_shape: tuple[int, int, int], classes: int, name: str) -> None:
    """Run a model on a blank image; ``name`` is that of the data in error messages.

    Raises:
        InputError: If the model fails or does not return ``classes`` values.
    """
    shape = " x ".join(map(str, image_shape))
    image = torch.zeros(1, *image_shape)
    parameter = next(model.parameters(), image)
    image = image.to(device=parameter.device, dtype=parameter.dtype)
    training = model.training
    try:
        with torch.no_grad():
            logits = model.eval()(image)
    except RuntimeError as error:
        raise InputError(
            f"{type(model).__name__} cannot take {name}'s images of {shape} (channels x height x width): {error}. "
            "Set model.channels and model.image_size to the images' own, if the model has these settings."
        ) from error
    finally:
        model.train(training)
    if logits.shape != (1, classes):
        values = " x ".join(map(str, logits.shape[1:]))
        raise InputError(
            f"{type(model).__name__} returns {values} values for an image of {shape}, but {name} has {classes} "
            f"classes: set model.classes={classes}"
        )
