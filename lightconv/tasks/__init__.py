"""LightningModules: what a network is trained to do."""

from lightconv.tasks.classification import Classification
from lightconv.tasks.learning_rate import RangeTest, range_test

__all__ = ["Classification", "RangeTest", "range_test"]
