"""Lightning callbacks, and a part for precision plugins."""

from lightconv.callbacks.early_stop import EarlyStop
from lightconv.callbacks.fine_tuning import FineTuning
from lightconv.callbacks.finite_loss import FiniteLoss
from lightconv.callbacks.graceful_stop import GracefulStop
from lightconv.callbacks.kernel_summary import KernelSummary
from lightconv.callbacks.kernel_swap import KernelPrecision, KernelSwap
from lightconv.callbacks.last_checkpoint import LastCheckpoint
from lightconv.callbacks.random_state import RandomState
from lightconv.callbacks.stages import Stage
from lightconv.callbacks.weight_average import WeightAverage

__all__ = [
    "EarlyStop",
    "FineTuning",
    "FiniteLoss",
    "GracefulStop",
    "KernelPrecision",
    "KernelSummary",
    "KernelSwap",
    "LastCheckpoint",
    "RandomState",
    "Stage",
    "WeightAverage",
]
