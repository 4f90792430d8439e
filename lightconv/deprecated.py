"""Deprecation of moved public names: the old place resolves them with a DeprecationWarning."""

import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def moved(old_module: str, new_places: Mapping[str, str]) -> Callable[[str], Any]:
    """Build the ``__getattr__`` of an old module for names moved elsewhere.

    Args:
        old_module: the module's own ``__name__``.
        new_places: new module per name.

    Returns:
        Function to assign to ``__getattr__`` in the old module. It warns with the new place and returns the object.
    """

    def resolve(name: str) -> Any:
        if name not in new_places:
            raise AttributeError(f"module {old_module!r} has no attribute {name!r}")
        new_module = new_places[name]
        message = f"{old_module}.{name} moved: import {name} from {new_module}"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return getattr(importlib.import_module(new_module), name)

    return resolve
