"""Moved to `lightconv.surgery.fuse`. Pickles of fused models written by version 0.1.0 name this module."""

from lightconv.deprecated import moved

_NAMES = ("FusedConv2d", "Fusion", "Row", "_new", "fuse", "unfuse")

__getattr__ = moved(__name__, dict.fromkeys(_NAMES, "lightconv.surgery.fuse"))
