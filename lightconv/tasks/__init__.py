"""LightningModules: what a network is trained to do."""

from lightconv.tasks.classification import Classification, check_fit

__all__ = ["Classification", "check_fit"]
