"""Triton convolution and max-pooling for PyTorch Lightning, and everything from images to a trained CNN."""

import importlib
from types import ModuleType

from lightconv import functional, nn
from lightconv.operators.backend import use_backend

__version__ = "0.1.0"
__all__ = ["callbacks", "data", "functional", "models", "nn", "tasks", "use_backend", "visualize"]

_ON_FIRST_USE = {"callbacks", "data", "models", "tasks", "visualize"}


def __getattr__(name: str) -> ModuleType:
    """Import the parts that need Lightning on first use: the operators alone load without it."""
    if name in _ON_FIRST_USE:
        return importlib.import_module(f"lightconv.{name}")
    raise AttributeError(f"module 'lightconv' has no attribute {name!r}; it has {', '.join(__all__)}")
