"""Triton convolution and max-pooling for PyTorch Lightning, and everything from images to a trained CNN.

Every public name loads on first use: ``import lightconv`` alone loads neither torch nor Lightning nor Triton.
"""

import importlib
from typing import TYPE_CHECKING, Any

from lightconv._version import __version__

if TYPE_CHECKING:
    from lightconv import (
        analysis,
        autotune,
        callbacks,
        data,
        functional,
        models,
        nn,
        operators,
        runs,
        surgery,
        tasks,
        visualize,
    )
    from lightconv.autotune import tune
    from lightconv.callbacks import FineTuning, KernelPrecision, KernelSummary, KernelSwap
    from lightconv.errors import InputError, InputWarning, NonFiniteLossError
    from lightconv.operators.backend import use_backend
    from lightconv.preprocessing import Preprocessing
    from lightconv.runs import open_run
    from lightconv.surgery.explain import explain
    from lightconv.surgery.fuse import fuse, unfuse
    from lightconv.surgery.swap import restore, swap

_MODULES = {
    "analysis",
    "autotune",
    "callbacks",
    "data",
    "functional",
    "models",
    "nn",
    "operators",
    "runs",
    "surgery",
    "tasks",
    "visualize",
}
_NAMES = {
    "FineTuning": "lightconv.callbacks",
    "InputError": "lightconv.errors",
    "InputWarning": "lightconv.errors",
    "KernelPrecision": "lightconv.callbacks",
    "KernelSummary": "lightconv.callbacks",
    "KernelSwap": "lightconv.callbacks",
    "NonFiniteLossError": "lightconv.errors",
    "Preprocessing": "lightconv.preprocessing",
    "explain": "lightconv.surgery",
    "fuse": "lightconv.surgery",
    "open_run": "lightconv.runs",
    "restore": "lightconv.surgery",
    "swap": "lightconv.surgery",
    "tune": "lightconv.autotune",
    "unfuse": "lightconv.surgery",
    "use_backend": "lightconv.operators.backend",
}

__all__ = [
    "FineTuning",
    "InputError",
    "InputWarning",
    "KernelPrecision",
    "KernelSummary",
    "KernelSwap",
    "NonFiniteLossError",
    "Preprocessing",
    "__version__",
    "analysis",
    "autotune",
    "callbacks",
    "data",
    "explain",
    "functional",
    "fuse",
    "models",
    "nn",
    "open_run",
    "operators",
    "restore",
    "runs",
    "surgery",
    "swap",
    "tasks",
    "tune",
    "unfuse",
    "use_backend",
    "visualize",
]


def __getattr__(name: str) -> Any:
    """Load a public name and keep it, so that the next use costs nothing."""
    if name in _MODULES:
        value = importlib.import_module(f"lightconv.{name}")
    elif name in _NAMES:
        value = getattr(importlib.import_module(_NAMES[name]), name)
    else:
        raise AttributeError(f"module 'lightconv' has no attribute {name!r}; it has {', '.join(__all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List every public name, loaded or not."""
    return sorted({*globals(), *__all__})
