"""Kernels judged without a GPU: traffic, machine code, prediction."""

from lightconv.analysis.traffic import Traffic, compare, traffic
from lightconv.deprecated import moved

__all__ = ["Traffic", "compare", "traffic"]

__getattr__ = moved(__name__, dict.fromkeys(("Explanation", "explain"), "lightconv.surgery.explain"))
