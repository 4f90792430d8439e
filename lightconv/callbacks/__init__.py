"""Lightning callbacks."""

from lightconv.callbacks.random_state import RandomState

__all__ = ["RandomState"]
