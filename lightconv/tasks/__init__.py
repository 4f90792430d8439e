"""LightningModules: what a network is trained to do."""

from lightconv.tasks.classification import Classification

__all__ = ["Classification"]
