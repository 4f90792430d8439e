"""Lightning callbacks, and a part for precision plugins."""

from lightconv.callbacks.graceful_stop import GracefulStop
from lightconv.callbacks.kernel_summary import KernelSummary
from lightconv.callbacks.kernel_swap import KernelPrecision, KernelSwap
from lightconv.callbacks.random_state import RandomState

__all__ = ["GracefulStop", "KernelPrecision", "KernelSummary", "KernelSwap", "RandomState"]
