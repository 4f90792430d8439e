"""Lightning callbacks."""

from lightconv.callbacks.graceful_stop import GracefulStop
from lightconv.callbacks.random_state import RandomState

__all__ = ["GracefulStop", "RandomState"]
