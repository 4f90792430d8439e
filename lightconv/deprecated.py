"""Names that moved: the old place still resolves them, with a DeprecationWarning that names the new one."""

import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def moved(old_module: str, new_places: Mapping[str, str]) -> Callable[[str], Any]:
    """Build a module's ``__getattr__`` for names that live elsewhere now.

    Args:
        old_module: the module's own ``__name__``.
        new_places: the module that holds each name today, keyed by name.

    Returns:
        A function to assign to ``__getattr__`` in the old module.
    """

    def resolve(name: str) -> Any:
        if name not in new_places:
            raise AttributeError(f"module {old_module!r} has no attribute {name!r}")
        new_module = new_places[name]
        message = f"{old_module}.{name} moved: import {name} from {new_module}"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return getattr(importlib.import_module(new_module), name)

    return resolve
