"""LightningModules that train a network for a task, and the learning-rate range test."""

from lightconv.tasks.classification import Classification
from lightconv.tasks.learning_rate import RangeTest, range_test
from lightconv.tasks.regression import Regression

__all__ = ["Classification", "RangeTest", "Regression", "range_test"]
