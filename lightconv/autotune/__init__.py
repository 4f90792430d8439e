"""Measure on a GPU: the fastest kernel and tile for each layer."""

from lightconv.autotune.search import tune

__all__ = ["tune"]
