"""LightningModules: what a network is trained to do."""

from lightconv.tasks.classification import Classification
from lightconv.tasks.learning_rate import RangeTest, range_test
from lightconv.tasks.regression import Regression

__all__ = ["Classification", "RangeTest", "Regression", "range_test"]
