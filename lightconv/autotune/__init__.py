"""Measure on a GPU which kernel, and which tile, serves each layer fastest."""

from lightconv.autotune.search import tune

__all__ = ["tune"]
