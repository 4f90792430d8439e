"""Rewrite a model's layers in place and undo it; explain which kernel serves each layer."""

from lightconv.surgery.explain import Explanation, explain
from lightconv.surgery.fuse import Fusion, fuse, unfuse
from lightconv.surgery.swap import SwapReport, restore, swap

__all__ = ["Explanation", "Fusion", "SwapReport", "explain", "fuse", "restore", "swap", "unfuse"]
