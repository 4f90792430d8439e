"""Moved to `lightconv.surgery.swap`."""

from lightconv.deprecated import moved

_NAMES = ("SwapReport", "restore", "swap")

__getattr__ = moved(__name__, dict.fromkeys(_NAMES, "lightconv.surgery.swap"))
