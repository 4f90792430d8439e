"""Metrics of torchmetrics, defined for every set of images: some classes missing, or one image alone."""

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassStatScores
from torchmetrics.regression import R2Score


class BalancedAccuracy(MulticlassStatScores):
    """Mean recall over the classes that have images, as scikit-learn's ``balanced_accuracy_score``.

    torchmetrics' macro average counts a class without images as 0 as soon as an image is taken for it.

    Args:
        classes: number of classes.
    """

    def __init__(self, classes: int) -> None:
        super().__init__(classes, average=None)

    def compute(self) -> Tensor:
        """Return the mean recall, NaN without images."""
        scores = super().compute()  # (classes, 5): true and false positives, true and false negatives, images
        true_positives, images = scores[:, 0], scores[:, 4]
        has_images = images > 0
        return (true_positives[has_images] / images[has_images]).mean()


class DefinedR2Score(R2Score):
    """R2 score, NaN for a single image: torchmetrics raises an error there."""

    def compute(self) -> Tensor:
        """Return R2 as a mean over the network's outputs."""
        if self.total < 2:
            return torch.tensor(torch.nan, device=self.total.device)
        return super().compute()
