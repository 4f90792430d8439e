"""Triton convolution and max-pooling for PyTorch Lightning, and everything from images to a trained CNN."""

import importlib
from typing import Any

from lightconv import functional, nn
from lightconv.nn.fuse import fuse, unfuse
from lightconv.nn.swap import restore, swap
from lightconv.operators.backend import use_backend

__version__ = "0.1.0"
__all__ = [
    "FineTuning",
    "KernelPrecision",
    "KernelSummary",
    "KernelSwap",
    "analysis",
    "callbacks",
    "data",
    "explain",
    "functional",
    "fuse",
    "models",
    "nn",
    "restore",
    "swap",
    "tasks",
    "tune",
    "unfuse",
    "use_backend",
    "visualize",
]

_ON_FIRST_USE = {
    "FineTuning": "callbacks",
    "KernelPrecision": "callbacks",
    "KernelSummary": "callbacks",
    "KernelSwap": "callbacks",
    "explain": "analysis",
    "tune": "analysis.tuning",
}
_MODULES_ON_FIRST_USE = {"analysis", "callbacks", "data", "models", "tasks", "visualize"}


def __getattr__(name: str) -> Any:
    """Import the parts that need more than torch on first use: the operators alone load without them."""
    if name in _ON_FIRST_USE:
        return getattr(importlib.import_module(f"lightconv.{_ON_FIRST_USE[name]}"), name)
    if name in _MODULES_ON_FIRST_USE:
        return importlib.import_module(f"lightconv.{name}")
    raise AttributeError(f"module 'lightconv' has no attribute {name!r}; it has {', '.join(__all__)}")
